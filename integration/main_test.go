package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/ceph"
)

// tags and the environment are the Makefile's, so that a plain `go test`
// tests the same binary.
const tags = "exclude_graphdriver_btrfs,exclude_graphdriver_devicemapper,containers_image_openpgp"

func TestMain(m *testing.M) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	// A folder of its own: a build by hand while the tests run must not change
	// what they test.
	bin, err := os.MkdirTemp("", "storagectl-bin-")
	if err == nil {
		err = prepare(ctx, bin)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "cannot prepare the end-to-end tests: %v\n", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(bin) // the system cleans /tmp if this did not
	os.Exit(code)
}

// prepare builds what runs in the nodes and removes what dead tests left.
func prepare(ctx context.Context, bin string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("the lab needs root")
	}
	if err := os.Setenv("STORAGECTL_LAB_BIN", bin); err != nil {
		return err
	}
	if err := os.Chmod(bin, 0o755); err != nil { // users of the nodes run it, too
		return err
	}
	builds := [][]string{
		{"generate", "./verify/..."},
		{"build", "-tags=" + tags, "-trimpath", "-o", bin + "/storagectl", "./cmd/storagectl"},
		{"build", "-tags=" + tags + ",sweep", "-trimpath", "-o", bin + "/storagectl-sweep", "./cmd/storagectl"},
		{"build", "-o", bin + "/labtree", "./integration/cmd/labtree"},
	}
	helper := []string{"build", "-tags=pacific", "-trimpath", "-o", bin + "/storagectl-ceph", "./cmd/storagectl-ceph"}
	for i, args := range append(builds, helper) {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = ".."
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if i == len(builds) { // it links Ceph's libraries
			cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %v: %w: %s", args, err, bytes.TrimSpace(out))
		}
	}
	return errors.Join(lab.Clean(ctx, false), ceph.Clean(false))
}

// root is the project's root folder.
func root(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
