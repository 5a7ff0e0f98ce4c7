//go:build cgo

package native

import (
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/storagectl/storagectl/internal/cephlink"
	link "github.com/storagectl/storagectl/internal/cephlink/native"
	"github.com/storagectl/storagectl/rbd"
)

// watchTime is how long OSDs may take to drop a blocklisted client's watch: a
// watch that is not renewed times out after 30 s.
const watchTime = 40 * time.Second

func takeOver(conn *rados.Conn, io *rados.IOContext, q rbd.TakeOverRequest) error {
	if err := link.MayBlock(conn); err != nil {
		return err
	}
	now, err := look(conn, io, q.Spec)
	if err != nil {
		return err
	}
	var addrs []string
	for _, l := range now.Lockers {
		if !slices.ContainsFunc(q.Holders, func(k rbd.Locker) bool { return k.Client == l.Client && k.Addr == l.Addr && k.Cookie == l.Cookie }) {
			return changed(q.Spec, fmt.Sprintf("%s at %s has locked it", l.Client, l.Addr))
		}
		addrs = append(addrs, l.Addr)
	}
	for _, w := range now.Watchers {
		if !slices.ContainsFunc(q.Live, func(k rbd.Watcher) bool { return k.Client == w.Client && k.Addr == w.Addr }) {
			return changed(q.Spec, fmt.Sprintf("client.%d at %s watches it", w.Client, w.Addr))
		}
		addrs = append(addrs, w.Addr)
	}
	for _, a := range addrs { // all, before the first is shut out
		if _, err := cephlink.OneClient(a); err != nil {
			return err
		}
	}
	slices.Sort(addrs)
	// First the blocklist, then the lock: between the two nobody may write.
	for _, a := range slices.Compact(addrs) {
		if err := link.Block(conn, a, q.Seconds); err != nil {
			return err
		}
	}
	if err := conn.WaitForLatestOSDMap(); err != nil {
		return fmt.Errorf("cannot see the blocklist in force: %w", err)
	}
	if err := breakLocks(io, now); err != nil {
		return err
	}
	return seeFree(conn, io, q.Spec)
}

func changed(spec rbd.Spec, what string) error {
	return &cephlink.Fault{ID: cephlink.Held, Errno: int(syscall.EBUSY), Text: fmt.Sprintf("image %s is no longer as it was when it was looked at: %s", spec, what), Hint: "look again"}
}

func breakLocks(io *rados.IOContext, img rbd.Image) error {
	for _, l := range img.Lockers {
		if _, err := io.BreakLock(header(img.ID), lockName, l.Client, l.Cookie); err != nil {
			return told(img.Spec, "break the lock of "+l.Client, err)
		}
	}
	return nil
}

// seeFree looks until nobody has the image.
func seeFree(conn *rados.Conn, io *rados.IOContext, spec rbd.Spec) error {
	for end := time.Now().Add(watchTime); ; time.Sleep(500 * time.Millisecond) {
		now, err := look(conn, io, spec)
		if err != nil {
			return err
		}
		if len(now.Watchers)+len(now.Lockers) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return changed(spec, fmt.Sprint(now.Foreign()))
		}
	}
}
