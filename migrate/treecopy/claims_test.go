package treecopy

import (
	"os"

	"golang.org/x/sys/unix"
)

// claimsHold checks each claim of the index as it stands, of a copy that may not
// be complete: where the source still is as the claim says, the destination must
// be, too.
func (p *pair) claimsHold() (claims int) {
	p.t.Helper()
	x, made, err := openIndex(p.idx, true)
	must(p.t, err)
	defer x.close()
	if made {
		return 0
	}
	src, dst := open(p.t, p.src), open(p.t, p.dst)
	defer src.Close()
	defer dst.Close()
	v := &verifier{
		o: VerifyOptions{Workers: 1, Skip: func(string) bool { return false }}, dst: int(dst.Fd()), ix: x,
		meter: startMeter(Totals{}, nil), read1: map[uint64]bool{}, bad: map[uint64]bool{}, drop: map[string]bool{},
	}
	v.queue.init()
	w := newWorker(p.t.Context(), x.mac)
	for _, at := range x.folders {
		b, err := x.read(at.off, frameFolder)
		must(p.t, err)
		f, err := takeFolder(b, nil)
		must(p.t, err)
		dir, err := openIn(int(src.Fd()), f.path, openFolder, 0)
		if err != nil {
			continue
		}
		var s unix.Stat_t
		must(p.t, unix.Fstat(dir, &s))
		own := f.shard == 0 && f.self.same(&s)
		into, err := openIn(int(dst.Fd()), f.path, openFolder, 0)
		if err != nil {
			if own {
				p.t.Errorf("%q is claimed and missing", f.path)
			}
			unix.Close(dir)
			continue
		}
		var due []entry
		for _, e := range f.entries {
			if s, err := lstat(dir, e.name); err == nil && (e.same(&s) || e.kind == unix.DT_DIR && own) {
				due = append(due, e)
			}
		}
		claims += len(due)
		f.entries = due
		must(p.t, v.entries(w, f, into))
		for _, e := range due {
			if s, err := lstat(into, e.name); e.kind == unix.DT_DIR && (err != nil || s.Mode&unix.S_IFMT != unix.S_IFDIR) {
				p.t.Errorf("%q is claimed and missing: %v", join(f.path, e.name), err)
			}
		}
		unix.Close(dir)
		unix.Close(into)
	}
	for _, off := range x.partials {
		claims += p.partialHolds(v, w, off)
	}
	if v.report.Differing > 0 {
		p.t.Fatalf("claims that are not true: %v", v.report.Examples)
	}
	return claims
}

func (p *pair) partialHolds(v *verifier, w *worker, off int64) (ranges int) {
	p.t.Helper()
	b, err := v.ix.read(off, framePartial)
	must(p.t, err)
	part, err := takePartial(b)
	must(p.t, err)
	s, err := os.Lstat(p.src + "/" + part.path)
	if err != nil || s.Size() != part.id.size {
		return 0
	}
	fd, err := openIn(v.dst, part.path, openRead, 0)
	if err != nil {
		return 0 // finished and replaced, or removed
	}
	defer unix.Close(fd)
	d, err := fstat(fd)
	must(p.t, err)
	if d.Ino != part.dstIno {
		return 0
	}
	for i, done := range part.done {
		if !done {
			continue
		}
		at := int64(i) * rangeSize
		sum, err := w.hashRange(v, fd, -1, at, min(rangeSize, part.id.size-at), false)
		must(p.t, err)
		if sum != part.sums[i] {
			p.t.Errorf("%q: range %d is claimed and differs", part.path, i)
		}
		ranges++
	}
	return ranges
}
