package lab

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
)

// removeAll is os.RemoveAll for folders in which a node made something immutable.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if out, bad := exec.Command("chattr", "-R", "-i", path).CombinedOutput(); bad != nil { //nolint:noctx // it ends by itself
		return errors.Join(err, bad, errors.New(string(out)))
	}
	return os.RemoveAll(path)
}
