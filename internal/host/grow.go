package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The numbers of ioctls hold a direction that some processors encode in their
// own way; it is taken from a number that the system's headers have.
const (
	toKernel   = unix.FS_IOC_SETFLAGS &^ 0x1fffffff
	fromKernel = unix.FS_IOC_GETFLAGS &^ 0x1fffffff

	xfsGeometry = fromKernel | 112<<16 | 'X'<<8 | 100 // XFS_IOC_FSGEOMETRY_V1, known to every kernel
	xfsGrowData = toKernel | 16<<16 | 'X'<<8 | 110    // XFS_IOC_FSGROWFSDATA
	ext4Resize  = toKernel | 8<<16 | 'f'<<8 | 16      // EXT4_IOC_RESIZE_FS
)

// xfsGeom is struct xfs_fsop_geom_v1 of Linux.
type xfsGeom struct {
	Blocksize, Rtextsize, Agblocks, Agcount, Logblocks, Sectsize, Inodesize, Imaxpct uint32
	Datablocks, Rtblocks, Rtextents, Logstart                                        uint64
	UUID                                                                             [16]byte
	Sunit, Swidth                                                                    uint32
	Version                                                                          int32
	Flags, Logsectsize, Rtsectsize, Dirblocksize, _                                  uint32
}

func geometryXFS(root *os.File) (xfsGeom, error) {
	var g xfsGeom
	return g, ioctl(root, xfsGeometry, unsafe.Pointer(&g))
}

func ioctl(f *os.File, number uintptr, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), number, uintptr(arg)); e != 0 {
		return e
	}
	return nil
}

// Grow makes a mounted XFS or ext4 as large as its device, online, and gives its
// size in bytes before and after, as statfs(2) reckons it. The descriptor is of
// a folder in it. One that is as large already stays. Other filesystems are
// [errors.ErrUnsupported].
func Grow(dir *os.File) (before, after int64, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot grow the filesystem of %s: %w", dir.Name(), err)
		}
	}()
	f, err := Readable(dir)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(f.Fd()), &fs), unix.Fstat(int(f.Fd()), &st)); err != nil {
		return 0, 0, err
	}
	before = int64(fs.Blocks) * fs.Bsize
	size, err := sizeOf(st.Dev)
	if err != nil {
		return before, before, err
	}
	switch fs.Type {
	case unix.XFS_SUPER_MAGIC:
		g, err := geometryXFS(f)
		if err != nil {
			return before, before, err
		}
		grow := struct {
			Blocks uint64
			Maxpct uint32
			_      uint32
		}{Blocks: size / uint64(g.Blocksize), Maxpct: g.Imaxpct}
		if grow.Blocks <= g.Datablocks {
			return before, before, nil
		}
		if err := ioctl(f, xfsGrowData, unsafe.Pointer(&grow)); err != nil {
			return before, before, err
		}
		if g, err = geometryXFS(f); err == nil && g.Datablocks < grow.Blocks-uint64(g.Agblocks) {
			err = fmt.Errorf("it has %d of %d blocks afterwards", g.Datablocks, grow.Blocks)
		}
		if err != nil {
			return before, before, err
		}
	case unix.EXT4_SUPER_MAGIC:
		blocks := size / uint64(fs.Bsize)
		if err := ioctl(f, ext4Resize, unsafe.Pointer(&blocks)); err != nil {
			return before, before, err
		}
	default:
		return before, before, errors.ErrUnsupported
	}
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return before, before, err
	}
	return before, int64(fs.Blocks) * fs.Bsize, nil
}

// Full reports whether the mounted XFS or ext4 of a device is as large as that:
// [Grow] would add nothing, or less than a group of ext4's. The descriptor is of a
// folder in it. Other filesystems are [errors.ErrUnsupported].
func Full(dir *os.File, device string) (full bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot tell how large the filesystem of %s is: %w", dir.Name(), err)
		}
	}()
	f, err := Readable(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(f.Fd()), &fs), unix.Fstat(int(f.Fd()), &st)); err != nil {
		return false, err
	}
	size, err := sizeOf(st.Dev)
	if err != nil {
		return false, err
	}
	switch fs.Type {
	case unix.XFS_SUPER_MAGIC:
		const least = 64 // blocks of an allocation group; XFS leaves out a last one of fewer
		g, err := geometryXFS(f)
		return err == nil && size/uint64(g.Blocksize) < g.Datablocks+least, err
	case unix.EXT4_SUPER_MAGIC:
		blocks, group, err := blocksExt4(device)
		return err == nil && size/uint64(fs.Bsize) < blocks+group, err
	}
	return false, errors.ErrUnsupported
}

// sizeOf is the size of a block device in bytes.
func sizeOf(dev uint64) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/size", unix.Major(dev), unix.Minor(dev)))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return sectors * 512, err // whatever the device's own sectors are
}

// blocksExt4 reads from the superblock how many blocks an ext4 has, and how many
// one of its groups has: what statfs tells leaves out its own tables.
func blocksExt4(device string) (blocks, group uint64, err error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	sb := make([]byte, 1024)
	if _, err := f.ReadAt(sb, 1024); err != nil {
		return 0, 0, err
	}
	le := binary.LittleEndian
	const wide = 0x80 // INCOMPAT_64BIT: more than 2^32 blocks
	blocks, group = uint64(le.Uint32(sb[4:])), uint64(le.Uint32(sb[32:]))
	if le.Uint32(sb[96:])&wide != 0 {
		blocks |= uint64(le.Uint32(sb[0x150:])) << 32
	}
	return blocks, group, nil
}
