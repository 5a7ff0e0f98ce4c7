package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// NomadTools builds nomad and nomad-driver-podman from the modules in
// nomadtools/ unless the cache has them, and returns the folder they are in.
// The first build takes some minutes and the network.
func NomadTools(ctx context.Context) (string, error) {
	src, err := sourceDir("nomadtools")
	if err != nil {
		return "", fmt.Errorf("cannot build nomad: %w", err)
	}
	builds := []struct{ dir, pkg, out string }{
		{src, "github.com/hashicorp/nomad", "nomad"},
		{filepath.Join(src, "driver"), "github.com/hashicorp/nomad-driver-podman", "plugins/nomad-driver-podman"},
	}
	sum := sha256.New()
	for _, b := range builds {
		for _, f := range []string{"go.mod", "go.sum"} {
			text, err := os.ReadFile(filepath.Join(b.dir, f))
			if err != nil {
				return "", fmt.Errorf("cannot build nomad: %w", err)
			}
			_, _ = sum.Write(text) // never fails
		}
	}
	dir := filepath.Join(Cache(), "tools", "nomad-"+hex.EncodeToString(sum.Sum(nil)[:6]))
	err = once(ctx, dir, func(tmp string) error {
		for _, b := range builds {
			// Tags and flags of the project's own build mean nothing to these modules.
			err := run(ctx, []string{"GOFLAGS=-buildvcs=false", "CGO_ENABLED=0"}, "nice", "-n", "10",
				"go", "build", "-C", b.dir, "-trimpath", "-o", filepath.Join(tmp, b.out), b.pkg)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("cannot build nomad: %w", err)
	}
	return dir, nil
}

// sourceDir finds a folder of the lab's sources from the working folder.
func sourceDir(name string) (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		path := filepath.Join(dir, "integration", "lab", name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		if dir == "/" {
			return "", errors.New("not inside of the project's folder")
		}
	}
	return "", err
}
