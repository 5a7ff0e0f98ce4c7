package treecopy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ids tells owners that this user namespace cannot name from real ones. Both
// show as the overflow id; where that id is itself mapped (it is "nobody" in
// most containers) only the kernel can tell them apart.
type ids struct {
	overflowUID, overflowGID uint32
	mappedUID, mappedGID     bool
	all                      bool // the initial namespace: every id is real
}

func readIDs() (ids, error) {
	var i ids
	uid, err := overflow("/proc/sys/kernel/overflowuid")
	if err != nil {
		return i, err
	}
	gid, err := overflow("/proc/sys/kernel/overflowgid")
	if err != nil {
		return i, err
	}
	i.overflowUID, i.overflowGID = uid, gid
	allUIDs, mappedUID, err := mapped("/proc/self/uid_map", uid)
	if err != nil {
		return i, err
	}
	allGIDs, mappedGID, err := mapped("/proc/self/gid_map", gid)
	if err != nil {
		return i, err
	}
	i.mappedUID, i.mappedGID, i.all = mappedUID, mappedGID, allUIDs && allGIDs
	return i, nil
}

func overflow(path string) (uint32, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	return uint32(n), err
}

// mapped reads an id map (user_namespaces(7)): does it cover all ids, or this one.
func mapped(path string, id uint32) (all, one bool, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return false, false, err
	}
	for line := range strings.Lines(string(b)) {
		var inside, outside, count uint64
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err != nil {
			return false, false, fmt.Errorf("%s: %w", path, err)
		}
		all = all || inside == 0 && outside == 0 && count == 1<<32-1
		one = one || inside <= uint64(id) && uint64(id) < inside+count
	}
	return all, one, nil
}

// check refuses an owner that has no id here. The path (see xattrsOf) is only asked
// where the stat leaves a doubt.
func (i *ids) check(s *unix.Stat_t, path string, follow bool) error {
	if i.all || s.Uid != i.overflowUID && s.Gid != i.overflowGID {
		return nil
	}
	if s.Uid == i.overflowUID && !i.mappedUID || s.Gid == i.overflowGID && !i.mappedGID {
		return ErrUnmapped
	}
	// The kernel looks whether both ids of the file are mapped before it looks
	// whether the root id of a file capability is. This one's root id never is, so
	// nothing is ever set: EPERM says the first, EINVAL the second.
	value := make([]byte, 24) // struct vfs_ns_cap_data, revision 3
	binary.LittleEndian.PutUint32(value, 0x03000000)
	binary.LittleEndian.PutUint32(value[20:], ^uint32(0))
	set := unix.Lsetxattr
	if follow {
		set = unix.Setxattr
	}
	switch err := set(path, "security.capability", value, 0); {
	case errors.Is(err, unix.EINVAL):
		return nil
	case errors.Is(err, unix.EPERM):
		return ErrUnmapped
	default:
		return fmt.Errorf("cannot learn whether its owner is mapped: %w", err)
	}
}
