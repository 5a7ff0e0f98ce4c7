package lab

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// freeFuseLoops lets go of the loop devices whose file was in a FUSE mount that
// nobody serves any more, as those of the images that storagectl-ceph served in
// a node that is dead: the kernel cannot tell of such a file what it is.
func freeFuseLoops() {
	devs, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, d := range devs {
		f, err := os.Open("/dev/" + strings.Split(d, "/")[3])
		if err != nil {
			continue // let go of meanwhile
		}
		if _, err := unix.IoctlLoopGetStatus64(int(f.Fd())); errors.Is(err, unix.ENOTCONN) {
			_ = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0) // it may be free by now
		}
		_ = f.Close()
	}
}
