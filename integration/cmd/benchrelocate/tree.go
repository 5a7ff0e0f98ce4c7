package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tree is what a store looks like: layers of many small files in folders of about
// six, a tenth of them links, some large files.
type tree struct {
	files, folders int
	bytes          int64
	small          []string // regular files, relative
}

func makeFile(path string, size int64, seed uint64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1})
	buf := make([]byte, min(size, 1<<20))
	for left := size; left > 0 && err == nil; left -= int64(len(buf)) {
		_, _ = r.Read(buf) // never fails
		_, err = f.Write(buf[:min(left, int64(len(buf)))])
	}
	return errors.Join(err, f.Close())
}

func makeTree(ctx context.Context, root string, files, large int) (tree, error) {
	var t tree
	r := rand.New(rand.NewPCG(1, 2))
	for i := range files {
		if err := ctx.Err(); err != nil {
			return t, err
		}
		// Four folders deep, as usr/lib/python3/dist-packages is.
		dir := fmt.Sprintf("overlay/%032x/diff/%x/%x/d%d", i/8000, i/800, i/100, i/6)
		rel := filepath.Join(dir, fmt.Sprintf("file-%d.py", i))
		path := filepath.Join(root, rel)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		switch {
		case err != nil:
		case i%20 == 7:
			err = os.Symlink("../file", path)
		case i%20 == 13 && len(t.small) > 0:
			err = os.Link(filepath.Join(root, t.small[len(t.small)-1]), path)
		case i%50 == 9:
			err = unix.Mknod(path, unix.S_IFCHR, 0)
		default:
			// Half of them below 4 KB, the mean about 20 KB.
			size := int64(math.Exp(r.NormFloat64()*1.8 + 8.3))
			size = min(size, 4<<20)
			err = makeFile(path, size, uint64(i))
			t.bytes += size
			t.small = append(t.small, rel)
		}
		if err != nil {
			return t, err
		}
		t.files++
	}
	t.folders = files / 6
	for i := range large {
		size := int64(100+60*i/max(large, 1)) * 1_000_000
		if err := makeFile(filepath.Join(root, fmt.Sprintf("overlay/large/diff/blob-%d", i)), size, uint64(i)); err != nil {
			return t, err
		}
		t.bytes += size
		t.files++
	}
	return t, nil
}

// change appends to one file of a hundred.
func (t *tree) change(root string, round int) error {
	for i := round; i < len(t.small); i += 100 {
		f, err := os.OpenFile(filepath.Join(root, t.small[i]), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("changed")
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// makeEmpty makes n empty files in folders of ten.
func makeEmpty(ctx context.Context, root string, n int) error {
	for i := range n {
		dir := filepath.Join(root, fmt.Sprint(i/10_000), fmt.Sprint(i/100), fmt.Sprint(i/10))
		if i%10 == 0 {
			if err := errors.Join(ctx.Err(), os.MkdirAll(dir, 0o755)); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}
