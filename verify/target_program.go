package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// programTime bounds the start of a program that mounts overlays.
const programTime = 30 * time.Second

// ProbeProgram tries on a folder whether a program (fuse-overlayfs) mounts overlays
// there in the kernel's place, and understands layers that the kernel's overlay
// made. For who tries, and what is left, see [ProbeTarget].
func ProbeProgram(ctx context.Context, target *os.File, program string) (Feature, error) {
	p, err := newProbe(target)
	if err != nil {
		return Feature{}, fmt.Errorf("cannot try what %s is good for: %w", target.Name(), err)
	}
	err = p.program(ctx, program)
	f := Feature{Name: "an overlay mount by " + program, Need: NeedProgram, OK: err == nil, Saw: reason(err)}
	if err := p.remove(); err != nil {
		return f, fmt.Errorf("cannot try what %s is good for: %w", target.Name(), err)
	}
	return f, ctx.Err()
}

func (p probe) program(ctx context.Context, program string) (err error) {
	at := func(parts ...string) string { return filepath.Join(append([]string{p.dir}, parts...)...) }
	for _, d := range []string{"lower/covered", "middle/covered", "upper", "work", "merged"} {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{"lower/changed", "lower/gone", "lower/removed", "lower/covered/old", "lower/others", "middle/covered/new"} {
		if err := os.WriteFile(at(f), []byte("below"), 0o640); err != nil {
			return err
		}
	}
	opaque := "trusted.overlay.opaque"
	if p.userNS {
		opaque = "user.overlay.opaque"
	}
	if err := unix.Mknod(at("middle/removed"), unix.S_IFCHR, 0); err != nil {
		return called("mknod", err)
	}
	if err := unix.Setxattr(at("middle/covered"), opaque, []byte("y"), 0); err != nil {
		return called("setxattr", err)
	}
	if p.other > 0 { // whoever is not the owner has the kernel ask for access control lists
		if err := os.Lchown(at("lower/others"), p.other, p.other); err != nil {
			return err
		}
	}
	said, err := os.Create(at("said"))
	if err != nil {
		return err
	}
	defer said.Close()
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-o", fmt.Sprintf("lowerdir=%s:%s,upperdir=%s,workdir=%s", "middle", "lower", "upper", "work"), "merged")
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, said, said // it goes into the background
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(at("said")) // only for the message
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(text)))
	}
	merged := at("merged")
	defer func() {
		err2 := unix.Unmount(merged, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err2, unix.EBUSY) {
			err2 = unix.Unmount(merged, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err == nil && err2 != nil {
			err = called("umount", err2)
		}
	}()
	absent := func(name string) error {
		if _, err := os.Lstat(at("merged", name)); !os.IsNotExist(err) {
			return but(err, "%s is there", name)
		}
		return nil
	}
	return errors.Join(
		stage("lookup", func() error { return reads(at("merged/changed"), "below") }),
		stage("reading what is another's", func() error { return reads(at("merged/others"), "below") }),
		stage("the kernel's whiteout", func() error { return absent("removed") }),
		stage("the kernel's opaque mark", func() error { return errors.Join(absent("covered/old"), reads(at("merged/covered/new"), "below")) }),
		stage("copy-up", func() error {
			if err := os.WriteFile(at("merged/changed"), []byte("above"), 0); err != nil {
				return err
			}
			return errors.Join(reads(at("merged/changed"), "above"), reads(at("upper/changed"), "above"), reads(at("lower/changed"), "below"))
		}),
		stage("removing a file", func() error { return errors.Join(os.Remove(at("merged/gone")), absent("gone")) }),
	)
}
