package rbd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/cephlink"
)

// testContext outlives t.Context, which ends before the test's clean-up.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestAbsent: what is missing is told by its name.
func TestAbsent(t *testing.T) {
	h := admin(t)
	for _, c := range []struct{ spec, id string }{
		{"nopool/x", cephlink.NoPool}, {"rbd/nons/x", cephlink.NoNamespace}, {"rbd/noimage", cephlink.NoImage},
	} {
		spec, err := ParseSpec(c.spec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = h.Look(t.Context(), spec); !errors.Is(err, fs.ErrNotExist) || cephlink.IDOf(err) != c.id {
			t.Errorf("%s: %v (%s)", c.spec, err, cephlink.IDOf(err))
		}
	}
	if err := h.Create(t.Context(), Spec{Pool: "nopool", Image: "x"}, CreateOptions{Size: 1 << 20}); cephlink.IDOf(err) != cephlink.NoPool {
		t.Errorf("made in no pool: %v", err)
	}
	if err := h.Create(t.Context(), Spec{Pool: "rbd", Image: "x"}, CreateOptions{Size: 1 << 20, DataPool: "nodata"}); cephlink.IDOf(err) != cephlink.NoPool {
		t.Errorf("made with no data pool: %v", err)
	}
}

// TestNamespace: an image in a namespace, with data in another pool.
func TestNamespace(t *testing.T) {
	h := admin(t)
	spec := Spec{Pool: "rbd", Namespace: "team", Image: "disk"}
	opts := CreateOptions{Size: 64 << 20, DataPool: "cephfs_data", Features: []string{"layering", "journaling"}}
	if err := h.Create(t.Context(), spec, opts); cephlink.IDOf(err) != cephlink.NoNamespace {
		t.Errorf("made in no namespace: %v", err)
	}
	if err := h.MakeNamespace(t.Context(), spec); err != nil || !errors.Is(h.MakeNamespace(t.Context(), spec), fs.ErrExist) {
		t.Fatal(err)
	}
	if err := h.Create(t.Context(), spec, opts); !errors.Is(err, syscall.EOPNOTSUPP) || !strings.Contains(err.Error(), "snapshot") {
		t.Errorf("the pool of a CephFS holds an image: %v", err)
	}
	cluster.Ceph(t, "osd", "pool", "create", "data", "8")
	opts.DataPool = "data"
	if err := h.Create(t.Context(), spec, opts); err != nil {
		t.Fatal(err)
	}
	img, err := h.Look(t.Context(), spec)
	if err != nil || img.DataPool != "data" || !img.HasFeature("journaling") || !img.HasFeature("exclusive-lock") || img.HasFeature("object-map") {
		t.Errorf("%+v, %v", img, err)
	}
	if err := h.RemoveNamespace(t.Context(), spec); cephlink.IDOf(err) != cephlink.Held {
		t.Errorf("a namespace with an image was removed: %v", err)
	}
	m := mustMap(t, h, spec)
	sh(t, `dd if=/dev/urandom of="$1" bs=1M count=8 oflag=direct status=none`, m.Device)
	if err := h.Remove(t.Context(), spec); cephlink.IDOf(err) != cephlink.Held {
		t.Errorf("removed while mapped: %v", err)
	}
	if err := errors.Join(h.Unmap(t.Context(), m), h.Remove(t.Context(), spec), h.RemoveNamespace(t.Context(), spec), h.RemoveNamespace(t.Context(), spec)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Look(t.Context(), spec); cephlink.IDOf(err) != cephlink.NoNamespace {
		t.Errorf("the namespace is still there: %v", err)
	}
}

// TestLogin: what keeps from a cluster is told, each in seconds.
func TestLogin(t *testing.T) {
	wrong := filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong, []byte("[client.admin]\n\tkey = AQAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAA==\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("AQBAAAAAAAAAAEAAAA\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		as cephlink.Cluster
		id string
	}{
		"wrong key":    {cephlink.Cluster{Conf: cluster.Conf, Keyring: wrong}, cephlink.WrongKey},
		"unknown user": {cephlink.Cluster{Conf: cluster.Conf, Keyring: wrong, User: "nobody"}, cephlink.WrongKey},
		"no keyring":   {cephlink.Cluster{Conf: cluster.Conf, Keyring: "/nonexistent"}, cephlink.NoKey},
		"no conf":      {cephlink.Cluster{Conf: "/nonexistent", Keyring: wrong}, cephlink.NoConf},
		"no monitor":   {cephlink.Cluster{Mons: []string{"127.0.0.1:1"}, Keyring: cluster.Keyring}, cephlink.Unreachable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			link, err := cephlink.Start(t.Context(), cephlink.Options{Path: cluster.Helper, Cluster: c.as, ConnectTime: 15 * time.Second})
			if err == nil {
				_ = link.Close()
			}
			if cephlink.IDOf(err) != c.id {
				t.Errorf("%v (%q, not %q)", err, cephlink.IDOf(err), c.id)
			}
			if d := time.Since(start); d > time.Minute {
				t.Errorf("after %s", d)
			}
		})
	}
}

// TestMonsAndKeyFile: no ceph.conf, no keyring.
func TestMonsAndKeyFile(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(cluster.Ceph(t, "auth", "print-key", "client.admin")), 0o600); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, cephlink.Cluster{Mons: []string{cluster.Mon}, KeyFile: key})
	spec := newImage(t, h, 16<<20)
	if err := h.Unmap(t.Context(), mustMap(t, h, spec)); err != nil {
		t.Fatal(err)
	}
}

// TestRights: a user with the profile rbd can do all; one without may not, and
// is told which caps are missing.
func TestRights(t *testing.T) {
	app := newHost(t, cephlink.Cluster{Conf: cluster.Conf, User: "app", Keyring: cluster.User(t, "app", "mon", "profile rbd", "osd", "profile rbd pool=rbd")})
	spec := newImage(t, app, 16<<20)
	if err := app.MayTakeOver(t.Context()); err != nil {
		t.Errorf("the profile rbd may shut out clients: %v", err)
	}
	if err := app.Unmap(t.Context(), mustMap(t, app, spec)); err != nil {
		t.Error(err)
	}
	reader := newHost(t, cephlink.Cluster{Conf: cluster.Conf, User: "reader", Keyring: cluster.User(t, "reader", "mon", "allow r", "osd", "profile rbd-read-only pool=rbd")})
	if _, err := reader.Look(t.Context(), spec); err != nil {
		t.Errorf("a reader may look: %v", err)
	}
	if m, err := reader.Map(t.Context(), spec, MapOptions{Mapper: Fuse}); !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) {
		t.Errorf("a reader has mapped it: %+v, %v", m, err)
	}
	if err := reader.MayTakeOver(t.Context()); cephlink.IDOf(err) != cephlink.NoRight {
		t.Errorf("a reader may shut out clients: %v", err)
	}
	if err := reader.Create(t.Context(), Spec{Pool: "rbd", Image: "of-reader"}, CreateOptions{Size: 1 << 20}); cephlink.IDOf(err) != cephlink.NoRight {
		t.Errorf("a reader has made an image: %v", err)
	}
	none := newHost(t, cephlink.Cluster{Conf: cluster.Conf, User: "none", Keyring: cluster.User(t, "none", "mon", "allow r")})
	if _, err := none.Look(t.Context(), spec); cephlink.IDOf(err) != cephlink.NoRight || cephlink.HintOf(err) == "" {
		t.Errorf("a user without caps may look: %v", err)
	}
}
