package convert

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"

	tarstorage "github.com/vbatts/tar-split/tar/storage"
)

// lineUnpacker reads a tar-split list for asm.IterateHeaders. The format is a
// JSON object a line; general JSON decoding takes three quarters of the time
// of reading a list, so the two shapes that tar-split writes are taken apart
// by hand and only another is left to encoding/json.
//
// The entry and its payload are valid until the next call.
type lineUnpacker struct {
	lines *bufio.Scanner
	entry tarstorage.Entry
	buf   []byte
}

const (
	filePrefix    = `{"type":1,`
	segmentPrefix = `{"type":2,"payload":"`
)

func newLineUnpacker(r io.Reader) *lineUnpacker {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), 1<<30)
	return &lineUnpacker{lines: s}
}

func (u *lineUnpacker) Next() (*tarstorage.Entry, error) {
	for u.lines.Scan() {
		line := u.lines.Bytes()
		if len(line) == 0 {
			continue
		}
		if line[len(line)-1] == '}' {
			if bytes.HasPrefix(line, []byte(filePrefix)) {
				// Only that a file follows counts: its name is in the header.
				u.entry = tarstorage.Entry{Type: tarstorage.FileType}
				return &u.entry, nil
			}
			if u.segment(line) {
				return &u.entry, nil
			}
		}
		u.entry = tarstorage.Entry{}
		if err := json.Unmarshal(line, &u.entry); err != nil {
			return nil, err
		}
		return &u.entry, nil
	}
	if err := u.lines.Err(); err != nil {
		return nil, err
	}
	return nil, io.EOF
}

func (u *lineUnpacker) segment(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte(segmentPrefix))
	if !ok {
		return false
	}
	end := bytes.IndexByte(rest, '"')
	if end < 0 {
		return false
	}
	if n := base64.StdEncoding.DecodedLen(end); n > len(u.buf) {
		u.buf = make([]byte, n)
	}
	n, err := base64.StdEncoding.Decode(u.buf, rest[:end])
	if err != nil {
		return false
	}
	u.entry = tarstorage.Entry{Type: tarstorage.SegmentType, Payload: u.buf[:n]}
	return true
}
