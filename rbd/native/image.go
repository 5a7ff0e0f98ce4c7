//go:build cgo

// Package native does with librbd what package rbd asks for. Only
// storagectl-ceph links it.
package native

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"

	"github.com/storagectl/storagectl/internal/cephlink"
	link "github.com/storagectl/storagectl/internal/cephlink/native"
	"github.com/storagectl/storagectl/rbd"
)

// Handlers are the requests about images.
func Handlers(s *link.Session) map[string]cephlink.Handler {
	return map[string]cephlink.Handler{
		"rbd.look": cephlink.Handle(func(spec rbd.Spec) (rbd.Image, error) {
			return withPool(s, spec, look)
		}),
		"rbd.create": cephlink.Handle(func(q struct {
			Spec    rbd.Spec
			Options rbd.CreateOptions
		}) (struct{}, error) {
			return create(s, q.Spec, q.Options)
		}),
		"rbd.resize": cephlink.Handle(func(q struct {
			Spec rbd.Spec
			Size int64
		}) (int64, error) {
			return withPool(s, q.Spec, func(_ *rados.Conn, io *rados.IOContext, spec rbd.Spec) (int64, error) {
				return resize(io, spec, q.Size)
			})
		}),
		"rbd.remove": cephlink.Handle(func(spec rbd.Spec) (struct{}, error) {
			return withPool(s, spec, remove)
		}),
		"rbd.makenamespace": cephlink.Handle(func(spec rbd.Spec) (struct{}, error) {
			return struct{}{}, told(spec, "make the namespace", inPool(s, spec, librbd.NamespaceCreate))
		}),
		"rbd.removenamespace": cephlink.Handle(func(spec rbd.Spec) (struct{}, error) {
			err := inPool(s, spec, librbd.NamespaceRemove)
			if errors.Is(err, librbd.ErrNotFound) {
				err = nil
			}
			return struct{}{}, told(spec, "remove the namespace", err)
		}),
		"rbd.takeover": cephlink.Handle(func(q rbd.TakeOverRequest) (struct{}, error) {
			return withPool(s, q.Spec, func(conn *rados.Conn, io *rados.IOContext, _ rbd.Spec) (struct{}, error) {
				return struct{}{}, takeOver(conn, io, q)
			})
		}),
	}
}

// withPool does something in the image's pool and namespace, both looked for
// first: librbd would call either an image that is not there.
func withPool[R any](s *link.Session, spec rbd.Spec, do func(*rados.Conn, *rados.IOContext, rbd.Spec) (R, error)) (R, error) {
	var none R
	conn, err := s.Conn()
	if err != nil {
		return none, err
	}
	io, err := openPool(conn, spec)
	if err != nil {
		return none, err
	}
	defer io.Destroy()
	return do(conn, io, spec)
}

// inPool does something with the namespace of an image, which belongs to the pool.
func inPool(s *link.Session, spec rbd.Spec, do func(*rados.IOContext, string) error) error {
	conn, err := s.Conn()
	if err != nil {
		return err
	}
	io, err := link.Pool(conn, spec.Pool, "")
	if err != nil {
		return err
	}
	defer io.Destroy()
	return do(io, spec.Namespace)
}

func openPool(conn *rados.Conn, spec rbd.Spec) (*rados.IOContext, error) {
	io, err := link.Pool(conn, spec.Pool, "")
	if err != nil || spec.Namespace == "" {
		return io, err
	}
	there, err := librbd.NamespaceExists(io, spec.Namespace)
	// Whoever has rights in the namespace alone may not list those of the pool;
	// the image itself will tell then.
	if err == nil && !there {
		io.Destroy()
		return nil, &cephlink.Fault{ID: cephlink.NoNamespace, Errno: int(syscall.ENOENT), Text: fmt.Sprintf("there is no namespace %q in pool %s", spec.Namespace, spec.Pool),
			Hint: fmt.Sprintf("rbd namespace create %s/%s, or say --make-namespace", spec.Pool, spec.Namespace)}
	}
	io.SetNamespace(spec.Namespace)
	return io, nil
}

// told gives an error of librbd its word.
func told(spec rbd.Spec, doing string, err error) error {
	if err == nil {
		return nil
	}
	f := &cephlink.Fault{Errno: cephlink.Errno(err), Text: fmt.Sprintf("cannot %s: %v", doing, err)}
	switch num := syscall.Errno(f.Errno); {
	case errors.Is(num, syscall.ENOENT):
		f.ID, f.Text = cephlink.NoImage, fmt.Sprintf("there is no image %q in %s", spec.Image, poolOf(spec))
	case errors.Is(num, syscall.EPERM), errors.Is(num, syscall.EACCES):
		f.ID = cephlink.NoRight
		f.Hint = fmt.Sprintf("the user needs at least: mon 'profile rbd' osd 'profile rbd pool=%s'", spec.Pool)
	case errors.Is(num, syscall.EBUSY), errors.Is(num, syscall.EROFS):
		f.ID = cephlink.Held
	case errors.Is(num, syscall.ENOSPC), errors.Is(num, syscall.EDQUOT):
		f.ID, f.Hint = cephlink.Full, "ceph df and ceph health detail tell what is full"
	case errors.Is(num, syscall.ETIMEDOUT):
		f.ID, f.Hint = cephlink.TooSlow, "ceph -s tells whether OSDs are down or placement groups are not active"
	}
	return f
}

func poolOf(spec rbd.Spec) string {
	if spec.Namespace != "" {
		return spec.Pool + "/" + spec.Namespace
	}
	return "pool " + spec.Pool
}

func look(conn *rados.Conn, io *rados.IOContext, spec rbd.Spec) (rbd.Image, error) {
	out := rbd.Image{Spec: spec, Watchers: []rbd.Watcher{}, Lockers: []rbd.Locker{}}
	// Opened for reading it leaves no watch, which others would take for a user.
	fsid, err := conn.GetFSID()
	if err != nil {
		return out, fmt.Errorf("cannot tell the cluster's id: %w", err)
	}
	out.FSID = fsid
	img, err := librbd.OpenImageReadOnly(io, spec.Image, librbd.NoSnapshot)
	if err != nil {
		return out, told(spec, "open the image", err)
	}
	defer func() { _ = img.Close() }()
	if err := describe(conn, img, &out); err != nil {
		return out, told(spec, "look at the image", err)
	}
	watchers, err := img.ListWatchers()
	if err != nil {
		return out, told(spec, "list who watches the image", err)
	}
	for _, w := range watchers {
		out.Watchers = append(out.Watchers, rbd.Watcher{Addr: w.Addr, Client: w.Id, Cookie: w.Cookie})
	}
	if out.OldFormat {
		return out, nil
	}
	out.Lockers, err = lockers(io, out.ID)
	return out, told(spec, "list who locks the image", err)
}

// lockName is the lock on an image's header object that librbd, the kernel and
// "rbd lock" all take.
const lockName = "rbd_lock"

func header(id string) string { return "rbd_header." + id }

// lockers lists who holds the image's lock. librbd's own list is empty where it
// may not be read, as go-ceph asks for it.
func lockers(io *rados.IOContext, id string) ([]rbd.Locker, error) {
	info, err := io.ListLockers(header(id), lockName)
	if err != nil {
		return nil, err
	}
	out := []rbd.Locker{}
	for i := range info.NumLockers {
		// librbd and the kernel tag theirs so, what is set by hand has another tag.
		out = append(out, rbd.Locker{Client: info.Clients[i], Addr: info.Addrs[i], Cookie: info.Cookies[i], Exclusive: info.Exclusive && info.Tag == "internal"})
	}
	return out, nil
}

func describe(conn *rados.Conn, img *librbd.Image, out *rbd.Image) error {
	st, err := img.Stat()
	if err != nil {
		return err
	}
	out.Size, out.ObjectSize = int64(st.Size), int64(st.Obj_size)
	if out.OldFormat, err = img.IsOldFormat(); err != nil {
		return err
	}
	if out.OldFormat {
		return nil
	}
	if out.ID, err = img.GetId(); err != nil {
		return err
	}
	features, err := img.GetFeatures()
	if err != nil {
		return err
	}
	fs := librbd.FeatureSet(features)
	out.Features = fs.Names()
	if features&librbd.FeatureDataPool != 0 {
		id, err := img.GetDataPoolID()
		if err != nil {
			return err
		}
		if out.DataPool, err = conn.GetPoolByID(id); err != nil {
			return err
		}
	}
	unit, err := img.GetStripeUnit()
	if err != nil {
		return err
	}
	count, err := img.GetStripeCount()
	if err != nil {
		return err
	}
	out.StripeUnit, out.StripeCount = int64(unit), int64(count)
	if at, err := img.GetCreateTimestamp(); err == nil {
		out.Created = time.Unix(at.Sec, at.Nsec).UTC()
	}
	snaps, err := img.GetSnapshotNames()
	for _, s := range snaps {
		out.Snapshots = append(out.Snapshots, s.Name)
	}
	return err
}

func create(s *link.Session, spec rbd.Spec, opts rbd.CreateOptions) (struct{}, error) {
	var done struct{}
	conn, err := s.Conn()
	if err != nil {
		return done, err
	}
	if opts.DataPool != "" {
		io, err := link.Pool(conn, opts.DataPool, "")
		if err != nil {
			return done, err
		}
		io.Destroy()
	}
	io, err := openPool(conn, spec)
	if err != nil {
		return done, err
	}
	defer io.Destroy()
	set, err := options(opts)
	if err != nil {
		return done, err
	}
	defer set.Destroy()
	if err := librbd.CreateImage(io, spec.Image, uint64(opts.Size), set); err != nil {
		if errors.Is(err, librbd.ErrNotExist) { // not the image: that is to be made
			return done, &cephlink.Fault{Errno: int(syscall.ENOENT), Text: fmt.Sprintf("cannot make the image: %v: is %s prepared for images?", err, poolOf(spec)), Hint: "rbd pool init " + spec.Pool}
		}
		return done, told(spec, "make the image", err)
	}
	return done, nil
}

func options(opts rbd.CreateOptions) (*librbd.ImageOptions, error) {
	set := librbd.NewRbdImageOptions()
	err := set.SetUint64(librbd.ImageOptionFormat, 2)
	if len(opts.Features) > 0 {
		bitsOf := uint64(librbd.FeatureSetFromNames(append(opts.Features, librbd.FeatureNameExclusiveLock)))
		err = errors.Join(err, set.SetUint64(librbd.ImageOptionFeatures, bitsOf))
	} else {
		err = errors.Join(err, set.SetUint64(librbd.ImageOptionFeaturesSet, librbd.FeatureExclusiveLock))
	}
	if opts.DataPool != "" {
		err = errors.Join(err, set.SetString(librbd.ImageOptionDataPool, opts.DataPool))
	}
	if err != nil {
		set.Destroy()
		return nil, fmt.Errorf("cannot make such an image: %w", err)
	}
	return set, nil
}

func resize(io *rados.IOContext, spec rbd.Spec, size int64) (int64, error) {
	img, err := librbd.OpenImage(io, spec.Image, librbd.NoSnapshot)
	if err != nil {
		return 0, told(spec, "open the image", err)
	}
	defer func() { _ = img.Close() }()
	now, err := img.GetSize()
	if err != nil {
		return 0, told(spec, "look at the image", err)
	}
	if size <= int64(now) {
		return int64(now), nil
	}
	if err := img.Resize(uint64(size)); err != nil {
		err = told(spec, "resize the image", err)
		// The helper resizes for others what it serves; the kernel does not, and
		// exclusively mapped it keeps the lock that others would need.
		var f *cephlink.Fault
		if errors.As(err, &f) && f.ID == cephlink.Held {
			f.Hint = "the kernel's client has the image exclusively: unmap it, make it larger, and map it again"
		}
		return 0, err
	}
	now, err = img.GetSize()
	return int64(now), told(spec, "look at the image", err)
}

func remove(conn *rados.Conn, io *rados.IOContext, spec rbd.Spec) (struct{}, error) {
	found, err := look(conn, io, spec)
	if err != nil {
		return struct{}{}, err
	}
	if len(found.Watchers)+len(found.Lockers) > 0 || len(found.Snapshots) > 0 {
		return struct{}{}, &cephlink.Fault{ID: cephlink.Held, Errno: int(syscall.EBUSY),
			Text: fmt.Sprintf("the image is in use: %d watchers, %d locks, %d snapshots %v", len(found.Watchers), len(found.Lockers), len(found.Snapshots), found.Foreign())}
	}
	// Also from a pool that is full: that makes room.
	if err := io.SetPoolFullTry(); err != nil {
		return struct{}{}, fmt.Errorf("cannot prepare the pool: %w", err)
	}
	return struct{}{}, told(spec, "remove the image", librbd.RemoveImage(io, spec.Image))
}
