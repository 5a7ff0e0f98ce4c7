package convert

import (
	"context"
	"errors"
)

// fillWhole copies what a layer shows: vfs keeps the whole tree of each.
func (s *stager) fillWhole(ctx context.Context, l *layer, dest string) (_ Counts, _ []Damage, err error) {
	v, err := s.o.view(ctx, l)
	if err != nil {
		return Counts{}, nil, err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	f, err := newFiller(ctx, v.dir, dest, l.ID, Copy)
	if err != nil {
		return Counts{}, nil, err
	}
	f.seen, f.pace, f.leave = &s.seen, &s.pace, nil
	if err := f.putTree(""); err != nil {
		f.close()
		return Counts{}, nil, err
	}
	if err := f.done(); err != nil {
		return Counts{}, nil, err
	}
	return s.verdict(f)
}
