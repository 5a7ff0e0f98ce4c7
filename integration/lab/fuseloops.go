package lab

import (
	"bytes"
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

// abortFuse ends the FUSE connections with requests that no process sees a mount
// of. A process that serves a file under a mounted loop device, and dies as the
// last of its mount namespace, unmounts that device while its own end of the
// connection is still open: it would wait for itself for ever, and with it
// whoever looks at the loop device. Only those that were so a while ago, too: one that
// was unmounted lazily and still writes back is another node's. It returns those of now.
func abortFuse(before map[string]bool) map[string]bool {
	now := map[string]bool{}
	const control = "/sys/fs/fuse/connections"
	conns, _ := filepath.Glob(control + "/[0-9]*")
	if len(conns) == 0 {
		_ = unix.Mount("fusectl", control, "fusectl", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "") // EBUSY: it is, and empty
		conns, _ = filepath.Glob(control + "/[0-9]*")
	}
	for _, c := range conns {
		waiting, err := os.ReadFile(filepath.Join(c, "waiting"))
		if err == nil && strings.TrimSpace(string(waiting)) != "0" && !seen("0:"+filepath.Base(c)) {
			now[c] = true
			if before[c] {
				_ = os.WriteFile(filepath.Join(c, "abort"), []byte("1"), 0) // it is gone: so much the better
			}
		}
	}
	return now
}

// seen tells whether any process sees a mount of a device, MAJOR:MINOR.
func seen(dev string) bool {
	all, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, path := range all {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(" "+dev+" ")) {
			return true
		}
	}
	return false
}
