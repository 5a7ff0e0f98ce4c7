package verify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// LayerSizes tells how many bytes of the disk the files of layers take, by layer: a
// file with several names in one layer is counted once. A layer that is not there, or
// goes meanwhile, is left out. What files of different layers share (reflinks) is not
// seen, so that a store may take less than the sum.
func LayerSizes(ctx context.Context, ref StoreRef, layers []string) (map[string]int64, error) {
	sizes := make(map[string]int64, len(layers))
	for _, id := range layers {
		n, err := treeSize(ctx, ref.tree(ref.GraphRoot, id))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot measure layer %s: %w", short(id), err)
		}
		sizes[id] = n
	}
	return sizes, nil
}

func treeSize(ctx context.Context, tree string) (int64, error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var bytes int64
	err := filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			key := inode{st.Dev, st.Ino}
			if seen[key] {
				return nil
			}
			seen[key] = true
		}
		bytes += st.Blocks * 512
		return nil
	})
	return bytes, err
}
