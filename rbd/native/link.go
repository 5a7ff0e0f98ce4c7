//go:build cgo

package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/storagectl/storagectl/rbd"
)

// udevTime bounds what waits for udev: where it is slow, the link is made
// without it.
const udevTime = 10 * time.Second

// pattern is a text as udev's rules match it: what could be special in one stands for
// any character.
func pattern(text string) string {
	return regexp.MustCompile(`[^A-Za-z0-9./_-]`).ReplaceAllString(text, "?")
}

// rule tells udev to name the device that matches. systemd knows a device, and mounts
// it at boot, only by names of udev's.
func (s *served) rule(ctx context.Context, match string) {
	name, ok := strings.CutPrefix(s.req.Link, "/dev/")
	_, err := os.Stat("/run/udev/control")
	if err != nil || !ok || !regexp.MustCompile(`^[A-Za-z0-9._/-]+$`).MatchString(name) {
		return
	}
	text := fmt.Sprintf("SUBSYSTEM==\"block\", %s, SYMLINK+=\"%s\"\n", match, name)
	path := rbd.UdevRule(s.req.Dir)
	err = os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	if err == nil {
		err = run(ctx, "udevadm", "control", "--reload")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "udev will not name the device: %v\n", err)
	}
}

// link shows the device under its lasting name: by udev, where it has the rule,
// else by a link of ours.
func (s *served) link(ctx context.Context) error {
	if s.req.Link == "" {
		return nil
	}
	if _, err := os.Stat(rbd.UdevRule(s.req.Dir)); err == nil {
		err := errors.Join(
			run(ctx, "udevadm", "trigger", "--action=change", "--name-match="+s.mapping.Device),
			run(ctx, "udevadm", "settle", "--timeout=8"))
		if err != nil {
			fmt.Fprintf(os.Stderr, "udev does not name the device: %v\n", err)
		}
	}
	if to, err := filepath.EvalSymlinks(s.req.Link); err == nil && to == s.mapping.Device {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(s.req.Link), 0o755); err != nil {
		return err
	}
	if fi, err := os.Lstat(s.req.Link); err == nil && fi.Mode().Type() != fs.ModeSymlink {
		return fmt.Errorf("cannot make the link %s: something else is there", s.req.Link)
	}
	return renameio.Symlink(s.mapping.Device, s.req.Link)
}

func run(ctx context.Context, argv ...string) error {
	ctx, cancel := context.WithTimeout(ctx, udevTime)
	defer cancel()
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
