package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/integration/lab/ceph"
	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/rbd"
)

// diskSize is how large the filesystems are; what is not written takes no room.
const diskSize = 64 << 30

// disk is a filesystem of ours and what it lies on: an image file behind a loop
// device, or an image of Ceph that mapper fuse has made a device.
type disk struct {
	dir    string
	image  *rbd.Spec // nil: the file dir.img
	device string    // of the image
}

// A pool is a cluster for the destinations.
type pool struct {
	cluster *ceph.Cluster
	host    *rbd.Host
}

func newPool(ctx context.Context, size int64) (*pool, error) {
	helper, err := filepath.Abs(filepath.Join("bin", cephlink.Helper))
	if err != nil {
		return nil, err
	}
	c, err := ceph.Start(ctx, ceph.Options{Size: size})
	if err != nil {
		return nil, err
	}
	link, err := cephlink.Start(ctx, cephlink.Options{Path: helper,
		Cluster: cephlink.Cluster{Conf: c.Conf(), Keyring: c.Keyring("admin")}})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &pool{c, &rbd.Host{Link: link, Run: &host.Runner{}}}, nil
}

func (p *pool) close() error { return errors.Join(p.host.Link.Close(), p.cluster.Close()) }

// mount makes an empty filesystem. XFS is made on an image of Ceph where the
// destinations are to lie there.
func (b *bench) mount(ctx context.Context, kind, dir string) error {
	d := &disk{dir: filepath.Clean(dir)}
	on := d.dir + ".img"
	if b.pool != nil && kind == "xfs" {
		d.image = &rbd.Spec{Pool: ceph.RBDPool, Image: filepath.Base(d.dir)}
		if err := b.pool.host.Create(ctx, *d.image, rbd.CreateOptions{Size: diskSize}); err != nil {
			return err
		}
		if err := b.mapImage(ctx, d); err != nil {
			return err
		}
		on = d.device
	} else if err := makeSparse(on); err != nil {
		return err
	}
	b.disks = append(b.disks, d)
	if _, err := b.measure(ctx, "", "mkfs."+kind, "-q", on); err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	if err := b.attach(ctx, d); err != nil {
		return err
	}
	// Not every method leaves it out.
	if err := os.Remove(filepath.Join(d.dir, "lost+found")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func makeSparse(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(diskSize), f.Close())
}

func (b *bench) mapImage(ctx context.Context, d *disk) error {
	m, err := b.pool.host.Map(ctx, *d.image, rbd.MapOptions{Mapper: rbd.Fuse})
	d.device = m.Device
	return err
}

func (b *bench) unmapImage(ctx context.Context, d *disk) error {
	all, err := b.pool.host.Mapped(ctx, *d.image)
	for _, m := range all {
		err = errors.Join(err, b.pool.host.Unmap(ctx, m))
	}
	return err
}

func (b *bench) attach(ctx context.Context, d *disk) error {
	device := d.device
	if d.image == nil {
		// Direct: a disk has no second page cache behind it, and no copying to it.
		out, err := exec.CommandContext(ctx, "losetup", "--find", "--show", "--direct-io=on", d.dir+".img").Output()
		if err != nil {
			return fmt.Errorf("cannot attach %s.img: %w", d.dir, err)
		}
		device = strings.TrimSpace(string(out))
		// Detached so, it goes when it is unmounted.
		defer func() { _ = exec.CommandContext(context.WithoutCancel(ctx), "losetup", "--detach", device).Run() }()
	}
	if _, err := b.measure(ctx, "", "mount", device, d.dir); err != nil {
		return err
	}
	// ext4 would write its inode tables in the background; XFS knows no such option.
	_ = exec.CommandContext(ctx, "mount", "-o", "remount,noinit_itable", d.dir).Run()
	return nil
}

// cold leaves nothing of our filesystems in memory, and leaves alone what others
// have there: they are unmounted, their image files dropped or their images
// unmapped, and mounted anew. What the cluster has in its own memory stays.
func (b *bench) cold(ctx context.Context) error {
	for _, d := range b.disks {
		if err := unix.Unmount(d.dir, 0); err != nil {
			return fmt.Errorf("cannot unmount %s: %w", d.dir, err)
		}
		if err := b.drop(ctx, d); err != nil {
			return err
		}
		if err := b.attach(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) drop(ctx context.Context, d *disk) error {
	if d.image != nil {
		return errors.Join(b.unmapImage(ctx, d), b.mapImage(ctx, d))
	}
	f, err := os.OpenFile(d.dir+".img", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}

func (b *bench) unmount(dir string) error {
	dir = filepath.Clean(dir)
	i := slices.IndexFunc(b.disks, func(d *disk) bool { return d.dir == dir })
	if i < 0 {
		return nil
	}
	d := b.disks[i]
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Errorf("cannot unmount %s: %w", dir, err)
	}
	b.disks = slices.Delete(b.disks, i, i+1)
	if d.image == nil {
		return os.Remove(dir + ".img")
	}
	ctx := context.Background() // also when we are told to end
	return errors.Join(b.unmapImage(ctx, d), b.pool.host.Remove(ctx, *d.image))
}

// clean leaves nothing, whatever happened before.
func (b *bench) clean() error {
	for _, d := range slices.Clone(b.disks) {
		if err := b.unmount(d.dir); err != nil { // it may have been unmounted, and not be mounted anew
			fmt.Fprintln(os.Stderr, "while cleaning up:", err)
		}
	}
	err := os.RemoveAll(b.dir)
	if b.pool != nil {
		err = errors.Join(err, b.pool.close())
	}
	return err
}
