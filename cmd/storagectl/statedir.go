package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/migrate"
)

// rootsOwn resolves root's state directory, and refuses one that others could change:
// what stands in its journals is done with root's rights, and its files are written. For
// any other user it is dir.
func rootsOwn(dir string) (string, error) {
	if os.Getuid() != 0 {
		return dir, nil
	}
	real, err := resolved(dir)
	if err == nil {
		err = host.TrustedPlace(filepath.Join(real, "runs"))
	}
	var why *host.UntrustedError
	switch {
	case errors.As(err, &why):
		return "", &migrate.Refusal{ID: "state-dir", Text: fmt.Sprintf("root does not use the state directory %s: %s", dir, why.Why),
			Hint: "go on with a run as the user who began it; or give a --state-dir that only root can change"}
	case err != nil && !errors.Is(err, os.ErrNotExist): // root makes it then
		return "", fmt.Errorf("cannot look at the state directory: %w", err)
	}
	return real, nil
}

// resolved follows the links of a path as far as it is there.
func resolved(path string) (string, error) {
	rest := ""
	for at := path; ; at = filepath.Dir(at) {
		real, err := filepath.EvalSymlinks(at)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if _, there := os.Lstat(at); !errors.Is(err, os.ErrNotExist) || there == nil { // a link to nothing
			return "", err
		}
		rest = filepath.Join(filepath.Base(at), rest)
	}
}
