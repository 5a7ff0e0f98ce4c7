package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Seed returns the data folder of a node on which make has run, for
// Options.Seed. It is made once and cached under name, which must change when
// make does. The node is shut down in order after make.
func Seed(ctx context.Context, name string, opts Options, make func(context.Context, *Node) error) (string, error) {
	dir := filepath.Join(Cache(), "seeds", name)
	err := once(ctx, dir, func(tmp string) error {
		n, err := Boot(ctx, opts)
		if err != nil {
			return err
		}
		err = make(ctx, n)
		if err == nil {
			err = n.Poweroff(ctx)
		}
		if err == nil {
			err = os.Rename(n.Data(), filepath.Join(tmp, "data"))
		}
		return errors.Join(err, n.Close())
	})
	if err != nil {
		return "", fmt.Errorf("cannot make the store %s: %w", name, err)
	}
	return filepath.Join(dir, "data"), nil
}
