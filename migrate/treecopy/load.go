package treecopy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// load reads the index twice: first for which frames are whole and which of them
// count, then for these. Bytes after the last whole frame are cut off.
func (x *index) load() (made bool, err error) {
	type span struct{ from, to int64 }
	var counts []span
	first := true
	end, err := x.frames(func(off int64, kind byte, b []byte) error {
		switch {
		case first:
			if kind != frameHeader || len(b) != headerSize || !bytes.HasPrefix(b, []byte(magic)) {
				return errFormat
			}
			first = false
			b = b[len(magic):]
			var h header
			for _, p := range [...]*uint64{&h.src.ino, &h.src.born, &h.dst.ino, &h.dst.born} {
				*p, b = binary.LittleEndian.Uint64(b), b[8:]
			}
			copy(h.key[:], b)
			return x.bear(h)
		case kind == framePass:
			if len(b) != 4 {
				return errFormat
			}
			x.pass, x.complete = binary.LittleEndian.Uint32(b), false
		case kind == frameConfirm:
			if len(b) != 8+8+4+1+32 {
				return errFormat
			}
			o := binary.LittleEndian
			counts = append(counts, span{int64(o.Uint64(b)), int64(o.Uint64(b[8:]))})
			if x.complete = b[20] == 1; x.complete {
				t := b[21:]
				x.totals = Totals{
					Files: int64(o.Uint64(t)), Folders: int64(o.Uint64(t[8:])),
					Bytes: int64(o.Uint64(t[16:])), Allocated: int64(o.Uint64(t[24:])),
				}
			}
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	if first {
		// Nothing, or the torn beginning of a header.
		info, err := x.file.Stat()
		if err != nil {
			return false, err
		}
		if info.Size() > int64(headerSize+frameOverhead) {
			return false, errFormat
		}
	}
	if err := x.file.Truncate(end); err != nil {
		return false, err
	}
	x.flushed, x.from = end, end
	lost := map[uint64]bool{}
	_, err = x.frames(func(off int64, kind byte, b []byte) error {
		for len(counts) > 0 && off >= counts[0].to {
			counts = counts[1:]
		}
		return x.apply(off, kind, b, len(counts) > 0 && off >= counts[0].from, lost)
	})
	if err == nil {
		err = x.relink(lost)
	}
	return first, err
}

// apply takes over what one frame says; not confirmed, only drops count.
func (x *index) apply(off int64, kind byte, b []byte, confirmed bool, lost map[uint64]bool) error {
	switch {
	case kind == frameDrop:
		f, err := takeFolder(b, nil)
		if err != nil {
			return err
		}
		k := x.key(f.path, f.shard)
		if at, ok := x.folders[k]; ok {
			delete(x.folders, k)
			return x.forgetLinks(at.off, lost)
		}
		delete(x.partials, k)
	case kind == frameFolder && confirmed:
		f, err := takeFolder(b, func(e *entry) {
			if e.nlink > 1 && e.dstIno != 0 {
				x.links.known[e.ino] = off
			}
		})
		if err != nil {
			return err
		}
		x.folders[x.key(f.path, f.shard)] = located{off: off}
	case kind == frameLink && confirmed:
		f, err := takeFolder(b, nil)
		if err != nil || len(f.entries) != 1 {
			return errors.Join(errFormat, err)
		}
		x.links.known[f.entries[0].ino] = off
	case kind == framePartial && confirmed:
		p, err := takePartial(b)
		if err != nil {
			return err
		}
		x.partials[x.key(p.path, 0)] = off
	}
	return nil
}

// frames calls fn for each frame up to the first that is not whole, and returns
// where that is.
func (x *index) frames(fn func(off int64, kind byte, payload []byte) error) (int64, error) {
	info, err := x.file.Stat()
	if err != nil {
		return 0, err
	}
	r := bufio.NewReaderSize(io.NewSectionReader(x.file, 0, info.Size()), 1<<20)
	var off int64
	var head [frameOverhead]byte
	var payload []byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return off, tail(err)
		}
		size := int64(binary.LittleEndian.Uint32(head[:]))
		if size > info.Size()-off-frameOverhead {
			return off, nil
		}
		if int64(cap(payload)) < size {
			payload = make([]byte, size+size/4)
		}
		payload = payload[:size]
		if _, err := io.ReadFull(r, payload); err != nil {
			return off, tail(err)
		}
		if checksum(head[8], off, payload) != binary.LittleEndian.Uint32(head[4:]) {
			return off, nil
		}
		if err := fn(off, head[8], payload); err != nil {
			return off, err
		}
		off += frameOverhead + size
	}
}

// tail: an end within a frame is an end.
func tail(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
