package dockerapi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// What a socket says is not believed: it is the owner's, and who answers on it may be
// anybody of theirs, while what is read fills memory that is counted as root's.
const (
	// mostOfLog bounds the log of a container of the replay, which writes some lines.
	mostOfLog = 1 << 20
	// mostSaid bounds what one connection may say: a list of all containers and images
	// of a large host is some megabytes.
	mostSaid = 32 << 20
)

// The streams of a log, as its frames are marked.
const (
	streamOut  = 1
	streamErr  = 2
	streamFail = 3 // the engine's own word that it cannot go on
)

// readFrames takes the log of a container without a terminal apart: frames of a head of
// eight bytes, with the stream and the length of what follows. The length is the
// engine's word: nothing is made room for before it has come.
func readFrames(r io.Reader) (out, errs string, err error) {
	var stdout, stderr, fail bytes.Buffer
	left := int64(mostOfLog)
	for {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); cut(err) {
			break
		} else if err != nil {
			return "", "", fmt.Errorf("cannot read the log: %w", err)
		}
		to, length := &stdout, int64(binary.BigEndian.Uint32(head[4:]))
		switch head[0] {
		case streamErr:
			to = &stderr
		case streamFail:
			to = &fail
		default:
			if head[0] > streamOut {
				return "", "", fmt.Errorf("the log has a frame of a stream %d that there is not", head[0])
			}
		}
		if length > left {
			return "", "", fmt.Errorf("the log has a frame of %d bytes, where the container wrote some lines", length)
		}
		left -= length
		if _, err := io.CopyN(to, r, length); cut(err) {
			break
		} else if err != nil {
			return "", "", fmt.Errorf("cannot read the log: %w", err)
		}
	}
	if fail.Len() > 0 {
		return "", "", fmt.Errorf("the log says: %q", tail(fail.Bytes()))
	}
	return stdout.String(), stderr.String(), nil
}

// cut reports the end of a stream, also within a frame: what has come is judged, and
// Docker's own reader takes that for an end, too.
func cut(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// scantConn is a connection that may say so much and no more.
type scantConn struct {
	net.Conn
	left int
}

func (c *scantConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, fmt.Errorf("the socket says more than %d MB", mostSaid>>20)
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}
