package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// moreLoops makes loop devices, which a node gets when it boots and never later:
// enough for all the filesystems of the nodes that run at once.
func moreLoops() {
	const enough = 32
	control, err := os.Open("/dev/loop-control")
	if err != nil {
		return // a node can do without
	}
	defer func() { _ = control.Close() }()
	for i := range enough {
		_ = unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, i) // EEXIST: is there
	}
}

// freeLoops lets go of the loop devices that hold files of a node which is dead:
// they are the kernel's and outlive it, as no disk outlives a power cut.
func freeLoops(dir string) error {
	type file struct{ dev, inode uint64 }
	held := map[string]map[file]string{} // by name, then by file: the device
	devs, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, d := range devs {
		back, err := os.ReadFile(d)
		if err != nil {
			continue // let go of meanwhile
		}
		loop := "/dev/" + strings.Split(d, "/")[3]
		f, err := os.Open(loop)
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
		_ = f.Close()
		if err != nil {
			continue
		}
		// The path is one of a namespace that is gone; its last name is right.
		name := filepath.Base(strings.TrimSuffix(string(back), "\n"))
		if held[name] == nil {
			held[name] = map[file]string{}
		}
		held[name][file{info.Device, info.Inode}] = loop
	}
	if len(held) == 0 {
		return nil
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || held[d.Name()] == nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		loop := held[d.Name()][file{st.Dev, st.Ino}]
		if loop == "" {
			return nil
		}
		f, err := os.Open(loop)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
			return fmt.Errorf("%s: %w", loop, err)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
