//go:build cgo

package native

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	librbd "github.com/ceph/go-ceph/rbd"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/rbd"
	"github.com/storagectl/storagectl/rbd/ahead"
)

// fileNode is the node number of the one file there is, beside the root.
const fileNode = 2

// blockSize is what stat says of the file; the loop device takes it as the
// grain of what it discards.
const blockSize = 4096

// imageFS is a filesystem with one file, which is the image. Nothing of it is
// cached in the kernel, and here no more than is read ahead: the loop device above
// has the page cache, and what is flushed there is flushed in the cluster before it
// is told so.
type imageFS struct {
	fuse.RawFileSystem
	img   *librbd.Image
	ahead *ahead.Image
	since time.Time
	known atomic.Uint64 // the image's size, when it was last told
}

func newImageFS(img *librbd.Image) *imageFS {
	return &imageFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), img: img, ahead: ahead.New(img.ReadAt), since: time.Now()}
}

// sizeTime is how long the cluster may take to tell the size.
const sizeTime = time.Second

// size is the image's size. Programs that look for a free loop device, as mount
// does, ask for it: they must not wait for a cluster that does not answer.
func (f *imageFS) size() (uint64, error) {
	type answer struct {
		size uint64
		err  error
	}
	told := make(chan answer, 1)
	go func() {
		size, err := f.img.GetSize()
		if err == nil {
			f.known.Store(size)
		}
		told <- answer{size, err}
	}()
	select {
	case a := <-told:
		return a.size, a.err
	case <-time.After(sizeTime):
	}
	if known := f.known.Load(); known > 0 {
		return known, nil
	}
	a := <-told // the first time
	return a.size, a.err
}

func (f *imageFS) String() string { return "storagectl-rbd" }

// status is what the kernel gets for an error of librbd. A client that the
// cluster has shut out (108, ESHUTDOWN) reads and writes no more.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	switch num := syscall.Errno(cephlink.Errno(err)); {
	case errors.Is(num, syscall.ENOSPC), errors.Is(num, syscall.EDQUOT):
		return fuse.Status(syscall.ENOSPC)
	case errors.Is(num, syscall.EROFS):
		return fuse.EROFS
	}
	return fuse.EIO
}

func (f *imageFS) attr(node uint64, out *fuse.Attr) fuse.Status {
	out.Ino, out.Nlink, out.Blksize = node, 1, blockSize
	out.SetTimes(&f.since, &f.since, &f.since)
	if node == fuse.FUSE_ROOT_ID {
		out.Mode, out.Nlink = syscall.S_IFDIR|0o700, 2
		return fuse.OK
	}
	size, err := f.size()
	out.Mode, out.Size, out.Blocks = syscall.S_IFREG|0o600, size, size/512
	return status(err)
}

func (f *imageFS) Lookup(_ <-chan struct{}, dir *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if dir.NodeId != fuse.FUSE_ROOT_ID || name != rbd.ServedFile {
		return fuse.ENOENT
	}
	// Attributes are not kept: the image may have grown.
	out.NodeId, out.EntryValid = fileNode, 3600
	return f.attr(fileNode, &out.Attr)
}

func (f *imageFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return f.attr(in.NodeId, &out.Attr)
}

func (f *imageFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId != fileNode || in.Flags&uint32(os.O_TRUNC) != 0 {
		return fuse.EPERM
	}
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return fuse.OK
}

func (f *imageFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, err := f.ahead.ReadAt(buf, int64(in.Offset))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, status(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Writev gets what is written in the pieces in which it came.
func (f *imageFS) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	var done uint32
	err := f.ahead.Change(int64(in.Offset), int64(in.Size), func() error {
		for _, part := range data {
			n, err := f.img.WriteAt(part, int64(in.Offset)+int64(done))
			if done += uint32(n); err != nil {
				return err
			}
		}
		return nil
	})
	return done, status(err)
}

func (f *imageFS) Fsync(_ <-chan struct{}, _ *fuse.FsyncIn) fuse.Status { return status(f.img.Flush()) }

func (f *imageFS) Flush(_ <-chan struct{}, _ *fuse.FlushIn) fuse.Status { return status(f.img.Flush()) }

// Fallocate makes room: what is punched, or to be zeros, reads as zeros from then
// on. Loop devices use it for discard and for writing zeros. That room stays set
// aside for zeros is not promised: no image that is not written in full does.
func (f *imageFS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if in.Mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0 {
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	// One request of librbd is bounded by what it can hold of object names.
	const most = 1 << 30
	for off, left := in.Offset, in.Length; left > 0; {
		n := min(left, most)
		err := f.ahead.Change(int64(off), int64(n), func() error {
			_, err := f.img.Discard(off, n)
			return err
		})
		if err != nil {
			return status(err)
		}
		off, left = off+n, left-n
	}
	return fuse.OK
}

func (f *imageFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, 255
	return fuse.OK
}
