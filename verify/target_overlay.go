package verify

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// overlay mounts one and does with it what containers do.
func (p probe) overlay() (err error) {
	at := func(parts ...string) string { return filepath.Join(append([]string{p.dir, "overlay"}, parts...)...) }
	for _, d := range []string{"lower/covered/in", "lower/emptied", "upper", "work", "merged"} {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{"changed", "gone", "covered/old", "emptied/file"} {
		if err := os.WriteFile(at("lower", f), []byte("below"), 0o640); err != nil {
			return err
		}
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", at("lower"), at("upper"), at("work"))
	opaque := "trusted.overlay.opaque"
	if p.userNS {
		data += ",userxattr"
		opaque = "user.overlay.opaque"
	}
	merged := at("merged")
	if err := unix.Mount("overlay", merged, "overlay", 0, data); err != nil {
		return called("mount", err)
	}
	defer func() {
		err2 := unix.Unmount(merged, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err2, unix.EBUSY) {
			err2 = unix.Unmount(merged, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err == nil && err2 != nil {
			err = called("umount", err2)
		}
	}()
	return errors.Join(
		stage("lookup", func() error { return reads(at("merged", "changed"), "below") }),
		stage("copy-up", func() error {
			if err := os.WriteFile(at("merged", "changed"), []byte("above"), 0); err != nil {
				return err
			}
			return errors.Join(reads(at("merged", "changed"), "above"), reads(at("upper", "changed"), "above"), reads(at("lower", "changed"), "below"))
		}),
		stage("removing a file", func() error {
			if err := os.Remove(at("merged", "gone")); err != nil {
				return err
			}
			if _, err := os.Lstat(at("merged", "gone")); !os.IsNotExist(err) {
				return but(err, "it is there still")
			}
			return whiteout(at("upper", "gone"))
		}),
		stage("replacing a folder", func() error {
			covered := at("merged", "covered")
			if err := os.RemoveAll(covered); err != nil {
				return err
			}
			if err := os.Mkdir(covered, 0o755); err != nil {
				return err
			}
			if es, err := os.ReadDir(covered); err != nil || len(es) != 0 {
				return but(err, "the new one holds %v", es)
			}
			got := make([]byte, 8)
			if n, err := unix.Getxattr(at("upper", "covered"), opaque, got); err != nil || n != 1 || got[0] != 'y' {
				return but(err, "it is not marked opaque")
			}
			return nil
		}),
		stage("removing a merged folder", func() error {
			if err := os.WriteFile(at("merged", "emptied", "more"), []byte("above"), 0o600); err != nil {
				return err
			}
			if err := os.RemoveAll(at("merged", "emptied")); err != nil {
				return err
			}
			return whiteout(at("upper", "emptied"))
		}),
	)
}

func stage(name string, do func() error) error {
	if err := do(); err != nil {
		return fmt.Errorf("%s: %s", name, reason(err))
	}
	return nil
}

func reads(path, want string) error {
	got, err := os.ReadFile(path)
	if err == nil && string(got) != want {
		err = fmt.Errorf("it reads %q instead of %q", got, want)
	}
	return err
}
