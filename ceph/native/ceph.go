//go:build cgo

// Package native asks a cluster with librados and libcephfs what package ceph
// wants to know. Only storagectl-ceph links it.
package native

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/cephlink"
	link "github.com/storagectl/storagectl/internal/cephlink/native"
)

// Handlers are the requests about a cluster and its filesystems.
func Handlers(s *link.Session) map[string]cephlink.Handler {
	return map[string]cephlink.Handler{
		"ceph.facts": cephlink.Handle(func(q ceph.Query) (ceph.Facts, error) {
			conn, err := s.Conn()
			if err != nil {
				return ceph.Facts{}, err
			}
			return facts(conn, q)
		}),
		"ceph.mayblock": cephlink.Handle(func(struct{}) (struct{}, error) {
			conn, err := s.Conn()
			if err != nil {
				return struct{}{}, err
			}
			return struct{}{}, link.MayBlock(conn)
		}),
		"ceph.place": cephlink.Handle(func(q struct {
			Place ceph.Place
			Owner ceph.Owner
		}) (placed, error) {
			return makePlace(s, q.Place, q.Owner)
		}),
		"ceph.lookplace":     cephlink.Handle(func(p ceph.Place) (ceph.PlaceLook, error) { return lookPlace(s, p) }),
		"ceph.unplace":       cephlink.Handle(func(p ceph.Place) (struct{}, error) { return struct{}{}, removePlace(s, p) }),
		"ceph.findsubvolume": cephlink.Handle(func(v ceph.Subvolume) (string, error) { return findSubvolume(s, v) }),
		"ceph.maysubvolume":  cephlink.Handle(func(v ceph.NewSubvolume) (struct{}, error) { return struct{}{}, mayMakeSubvolume(s, v) }),
		"ceph.subvolume":     cephlink.Handle(func(v ceph.NewSubvolume) (string, error) { return makeSubvolume(s, v) }),
		"ceph.unsubvolume":   cephlink.Handle(func(v ceph.NewSubvolume) (struct{}, error) { return struct{}{}, removeSubvolume(s, v) }),
	}
}

func facts(conn *rados.Conn, q ceph.Query) (ceph.Facts, error) {
	f := ceph.Facts{Answers: map[string]ceph.Answer{}, Writable: map[string]int{}}
	var err error
	if f.FSID, err = conn.GetFSID(); err != nil {
		return f, fmt.Errorf("cannot tell the cluster's id: %w", err)
	}
	commands := []map[string]string{
		{"prefix": "health", "detail": "detail"}, {"prefix": "versions"}, {"prefix": "osd dump"}, {"prefix": "df"},
	}
	if q.FS != "" {
		commands = append(commands, map[string]string{"prefix": "fs dump"})
	}
	for _, c := range commands {
		c["format"] = "json"
		cmd, err := json.Marshal(c)
		if err != nil {
			return f, err
		}
		out, _, err := conn.MonCommand(cmd)
		a := ceph.Answer{Errno: cephlink.Errno(err)}
		if err != nil && a.Errno == 0 {
			return f, fmt.Errorf("cannot ask for %s: %w", c["prefix"], err)
		}
		if err == nil {
			a.Out = out
		}
		f.Answers[c["prefix"]] = a
	}
	for _, pool := range []string{q.Pool, q.DataPool, f.FilesPool(q.FS)} {
		if pool != "" {
			f.Writable[pool] = cephlink.Errno(writable(conn, pool, q.Namespace))
		}
	}
	f.MayBlock = cephlink.Errno(link.MayBlock(conn))
	return f, nil
}

// writable removes an object that is not there: an OSD looks first whether the
// user may write, then whether there is such an object.
func writable(conn *rados.Conn, pool, namespace string) error {
	io, err := link.Pool(conn, pool, namespace)
	if err != nil {
		return err
	}
	defer io.Destroy()
	// In a pool that is full it would wait for room, though it needs none.
	if err := io.SetPoolFullTry(); err != nil {
		return err
	}
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails
	err = io.Delete("storagectl-probe-" + hex.EncodeToString(b))
	if errors.Is(err, rados.ErrNotFound) {
		return nil
	}
	return err
}

// told gives an error of libcephfs its word.
func told(doing string, err error) error {
	if err == nil {
		return nil
	}
	f := &cephlink.Fault{Errno: cephlink.Errno(err), Text: fmt.Sprintf("cannot %s: %v", doing, err)}
	switch num := syscall.Errno(f.Errno); {
	case errors.Is(num, syscall.EPERM), errors.Is(num, syscall.EACCES):
		f.ID, f.Hint = cephlink.NoRight, "ceph fs authorize FS client.… / rw"
	case errors.Is(num, syscall.ETIMEDOUT):
		f.ID, f.Hint = cephlink.TooSlow, "ceph fs status"
	case errors.Is(num, syscall.ENOSPC), errors.Is(num, syscall.EDQUOT):
		f.ID, f.Hint = cephlink.Full, "ceph df"
	}
	return f
}

// parents are the folders above a path, from the top.
func parents(path string) []string {
	var out []string
	for i := 1; i < len(path); i++ {
		if path[i] == '/' {
			out = append(out, path[:i])
		}
	}
	return out
}
