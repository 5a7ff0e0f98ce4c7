package ceph

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/cephlink/cephtest"
	"github.com/storagectl/storagectl/internal/host"
)

var cluster *cephtest.Cluster

const apartEnv = "STORAGECTL_CEPH_APART"

// childEnv makes this test's program one that mounts or unmounts the source in
// the value at /srv/a, by the kernel's client.
const childEnv = "STORAGECTL_CEPH_CHILD"

func child(source, verb string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var s Source
	if err := json.Unmarshal([]byte(source), &s); err != nil {
		return err
	}
	if verb == "unmount" {
		return Unmount(ctx, &host.Runner{}, "/srv/a")
	}
	if by := DefaultMounter(ctx, &host.Runner{}); by != Kernel {
		return fmt.Errorf("the kernel has a client, and %s is the default", by)
	}
	return Mount(ctx, &host.Runner{}, s, "/srv/a", Kernel)
}

func TestMain(m *testing.M) {
	if source := os.Getenv(childEnv); source != "" {
		if err := child(source, os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// In mounts of their own, which no namespace that is made meanwhile elsewhere
	// on the machine takes a copy of.
	if os.Getenv(apartEnv) == "" {
		err := syscall.Exec("/usr/bin/unshare", append([]string{"unshare", "-m", "--propagation", "private"}, os.Args...), append(os.Environ(), apartEnv+"=1"))
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	c, err := cephtest.Start("..", false, 2<<30)
	if err != nil {
		fmt.Fprintf(os.Stderr, "cannot start a cluster: %v\n", err)
		os.Exit(1)
	}
	cluster = c
	code := m.Run()
	if err := c.Close(); err != nil {
		fmt.Fprintf(os.Stderr, "cannot end the cluster: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

func ids(ps []Problem) []string {
	var out []string
	for _, p := range ps {
		out = append(out, p.ID)
	}
	return out
}

// TestJudgeCluster: what a real cluster answers is understood, well and ill.
func TestJudgeCluster(t *testing.T) {
	link := cluster.Link(t, cluster.Admin())
	all := Query{Pool: "rbd", FS: "cephfs", Need: 1 << 20}
	r, err := Judge(t.Context(), link, all)
	for end := time.Now().Add(40 * time.Second); err == nil && len(r.Problems) > 0 && time.Now().Before(end); {
		time.Sleep(500 * time.Millisecond) // a warning may come and go
		r, err = Judge(t.Context(), link, all)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Problems) != 0 || r.FSID != cluster.FSID || r.Health != "HEALTH_OK" || !r.MayTake ||
		!strings.Contains(r.Release, ".") || len(r.Pools) != 2 || r.Pools[0].Free < 1<<30 || r.FS == nil || r.FS.Active != 1 {
		t.Errorf("%+v", r)
	}
	if r, err = Judge(t.Context(), link, Query{Pool: "gone", FS: "gone", Need: 1}); err != nil || !slices.Equal(ids(r.Fatal()), []string{"no-pool", "no-fs"}) {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err = Judge(t.Context(), link, Query{Pool: "rbd", Need: 1 << 50}); err != nil || !slices.Equal(ids(r.Fatal()), []string{"pool-too-small"}) {
		t.Errorf("%+v, %v", r, err)
	}
	judgedUntil(t, link, all, "fs-offline", []string{"fs", "set", "cephfs", "joinable", "false"}, []string{"mds", "fail", "a"})
	judgedUntil(t, link, all, "", []string{"fs", "set", "cephfs", "joinable", "true"})
	judgedUntil(t, link, all, "cluster-pausewr", []string{"osd", "set", "pause"})
	judgedUntil(t, link, all, "", []string{"osd", "unset", "pause"})
	judgedUntil(t, link, all, "health-osd-nearfull", []string{"osd", "set-nearfull-ratio", "0.00000001"})
	judgedUntil(t, link, all, "", []string{"osd", "set-nearfull-ratio", "0.85"})
	cluster.Tool(t, "rbd", "create", "--size", "8M", "rbd/fills")
	judgedUntil(t, link, all, "pool-full-quota", []string{"osd", "pool", "set-quota", "rbd", "max_objects", "1"})
	begin := time.Now()
	r, err = Judge(t.Context(), link, all)
	if took := time.Since(begin); err != nil || !r.Full() || slices.Contains(ids(r.Fatal()), "pool-stuck") || took > 15*time.Second {
		t.Errorf("a full cluster is judged after %s: %+v, %v", took, r, err)
	}
	judgedUntil(t, link, all, "", []string{"osd", "pool", "set-quota", "rbd", "max_objects", "0"})
	cluster.Tool(t, "rbd", "rm", "--no-progress", "rbd/fills")
}

// judgedUntil runs commands of ceph and waits until the judgement has a fatal
// problem, or (id "") none.
func judgedUntil(t *testing.T, link *cephlink.Client, q Query, id string, commands ...[]string) {
	t.Helper()
	for _, c := range commands {
		cluster.Ceph(t, c...)
	}
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(500 * time.Millisecond) {
		r, err := Judge(t.Context(), link, q)
		if err != nil {
			t.Fatal(err)
		}
		got := ids(r.Fatal())
		if id == "" && len(got) == 0 || id != "" && slices.Contains(got, id) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %q: %+v, not %q", commands, r.Problems, id)
		}
	}
}

// TestCaps: what a user may not do is told, and nothing is changed by asking.
func TestCaps(t *testing.T) {
	for name, c := range map[string]struct {
		caps  []string
		fatal []string
	}{
		"images":  {[]string{"mon", "profile rbd", "osd", "profile rbd pool=rbd"}, nil},
		"reading": {[]string{"mon", "allow r", "osd", "allow r"}, []string{"no-right", "no-blocklist"}},
		"nothing": {[]string{"mon", "allow r"}, []string{"no-right", "no-blocklist"}},
	} {
		key := cluster.User(t, name, c.caps...)
		link := cluster.Link(t, cephlink.Cluster{Conf: cluster.Conf, User: name, Keyring: key})
		before := cluster.Ceph(t, "osd", "blocklist", "ls") + cluster.Tool(t, "rados", "-p", "rbd", "ls")
		r, err := Judge(t.Context(), link, Query{Pool: "rbd", TakeOver: true})
		if err != nil || !slices.Equal(ids(r.Fatal()), c.fatal) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if after := cluster.Ceph(t, "osd", "blocklist", "ls") + cluster.Tool(t, "rados", "-p", "rbd", "ls"); after != before {
			t.Errorf("%s: asking changed %q into %q", name, before, after)
		}
	}
}

// TestFiles: a place is made for an owner, mounted by ceph-fuse, used by that
// owner inside of a user namespace, and removed.
func TestFiles(t *testing.T) {
	link, run := cluster.Link(t, cluster.Admin()), &host.Runner{}
	p, err := ParsePlace("cephfs:/stores/node1/hashi")
	if err != nil {
		t.Fatal(err)
	}
	owner := Owner{UID: 2000, GID: 2000, Mode: 0o710}
	if made, entries, err := MakePlace(t.Context(), link, p, owner); err != nil || !made || entries {
		t.Fatalf("%v %v %v", made, entries, err)
	}
	if made, entries, err := MakePlace(t.Context(), link, p, Owner{UID: 1, Mode: 0o777}); err != nil || made || entries {
		t.Errorf("again: %v %v %v", made, entries, err)
	}
	if _, _, err := MakePlace(t.Context(), link, Place{"gone", "/x"}, owner); cephlink.IDOf(err) != "no-fs" {
		t.Errorf("in no filesystem: %v", err)
	}
	dir, err := os.MkdirTemp("/tmp", "cephfs-") // t.TempDir is root's alone
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	src := Source{Place: p, Cluster: cluster.Admin(), FSID: cluster.FSID}
	start := time.Now()
	if err := Mount(t.Context(), run, src, dir, Fuse); err != nil {
		t.Fatal(err)
	}
	t.Logf("mounted after %s", time.Since(start))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := Unmount(ctx, run, dir); err != nil {
			t.Error(err)
		}
	})
	if err := Mount(t.Context(), run, src, dir, Fuse); err == nil {
		t.Error("mounted over a mount")
	}
	fi, err := os.Stat(dir)
	if err != nil || fi.Mode().Perm() != 0o710 || fi.Sys().(*syscall.Stat_t).Uid != 2000 {
		t.Errorf("%v %v", fi, err)
	}
	// What a rootless store does: root of a user namespace writes, gives files to
	// mapped ids, and reads them again.
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", `cd "$0"; mkdir a; echo x >a/f; chown 33:33 a/f; chmod 600 a/f; test "$(cat a/f)" = x; ln a/f a/g; mv a/g a/h; ln -s f a/l; test "$(stat -c %u a/f)" = 33`, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, Credential: &syscall.Credential{}, GidMappingsEnableSetgroups: true,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 2000, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 2000, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 65536}}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as root of a user namespace: %v: %s", err, out)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, dir+"/a", unix.AT_FDCWD, dir+"/b", unix.RENAME_NOREPLACE); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a rename that replaces nothing: %v", err)
	}
	rename := func(from, to string) error {
		return host.RenameNew(unix.AT_FDCWD, dir+"/"+from, unix.AT_FDCWD, dir+"/"+to)
	}
	if err := errors.Join(os.Mkdir(dir+"/b", 0o700), rename("a", "c"), rename("c", "a")); err != nil {
		t.Error(err)
	}
	if err := rename("a", "b"); !errors.Is(err, os.ErrExist) {
		t.Errorf("a folder was renamed to one that is there: %v", err)
	}
	if err := os.Remove(dir + "/b"); err != nil {
		t.Error(err)
	}
	if _, entries, err := MakePlace(t.Context(), link, p, owner); err != nil || !entries {
		t.Errorf("a place in use looks empty: %v, %v", entries, err)
	}
	if err := RemovePlace(t.Context(), link, p); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("a place in use was removed: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Unmount(t.Context(), run, dir), Unmount(t.Context(), run, dir)); err != nil {
		t.Fatal(err)
	}
	// As a unit of systemd's does, and without a ceph.conf or a keyring.
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(cluster.Ceph(t, "auth", "print-key", "client.admin")), 0o600); err != nil {
		t.Fatal(err)
	}
	src.Cluster = cephlink.Cluster{Mons: []string{cluster.Mon}, KeyFile: key}
	source, fstype, options, environment, err := src.FuseUnit()
	if err != nil {
		t.Fatal(err)
	}
	options = append(options, "noatime", "_netdev", "nofail", "x-storagectl.run=0001")
	cmd = exec.CommandContext(t.Context(), "mount", source, dir, "-t", fstype, "-o", strings.Join(options, ","))
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", environment}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Sys().(*syscall.Stat_t).Uid != 2000 {
		t.Errorf("mounted by its line: %v %v", fi, err)
	}
	if out, err := exec.CommandContext(t.Context(), "findmnt", "-no", "FSTYPE,OPTIONS", dir).Output(); err != nil || !strings.HasPrefix(string(out), Fuse.FSType()+" ") || strings.Contains(string(out), "nosuid") || strings.Contains(string(out), "nodev") || !strings.Contains(string(out), "noatime") {
		t.Errorf("mounted by its line as %s: %v", out, err)
	}
	if err := Unmount(t.Context(), run, dir); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(RemovePlace(t.Context(), link, p), RemovePlace(t.Context(), link, p)); err != nil {
		t.Error(err)
	}
}

// TestPart: who may use one folder of a filesystem alone can put a place into it;
// who may not even that is told so, and so is one without the right to write data.
func TestPart(t *testing.T) {
	top := Place{"cephfs", "/part"}
	if _, _, err := MakePlace(t.Context(), cluster.Link(t, cluster.Admin()), top, Owner{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	user := func(name string, caps ...string) *cephlink.Client {
		return cluster.Link(t, cephlink.Cluster{Conf: cluster.Conf, User: name, Keyring: cluster.User(t, name, caps...)})
	}
	data := []string{"osd", "allow rw tag cephfs data=cephfs"}
	part := user("part", append([]string{"mon", "allow r fsname=cephfs", "mds", "allow rw fsname=cephfs path=/part"}, data...)...)
	r, err := Judge(t.Context(), part, Query{FS: "cephfs", Need: 1 << 20})
	if err != nil || len(r.Fatal()) > 0 || len(r.Pools) != 1 || r.Pools[0].Name != "cephfs_data" || !r.Pools[0].CanWrite {
		t.Errorf("%+v, %v", r, err)
	}
	p := Place{"cephfs", "/part/storage-x"}
	if l, err := LookPlace(t.Context(), part, p); err != nil || l.There || l.Free < 1<<20 {
		t.Errorf("before: %+v, %v", l, err)
	}
	if made, _, err := MakePlace(t.Context(), part, p, Owner{UID: 2000, GID: 2000, Mode: 0o700}); err != nil || !made {
		t.Errorf("made %v, %v", made, err)
	}
	if l, err := LookPlace(t.Context(), part, p); err != nil || !l.There || l.Entries {
		t.Errorf("made: %+v, %v", l, err)
	}
	if l, err := LookPlace(t.Context(), part, Place{"cephfs", "/elsewhere/x"}); cephlink.IDOf(err) != cephlink.NoRight {
		t.Errorf("elsewhere: %+v, %v", l, err)
	}
	if err := RemovePlace(t.Context(), part, p); err != nil {
		t.Error(err)
	}
	none := user("none", "mon", "allow r")
	if _, err := LookPlace(t.Context(), none, p); cephlink.IDOf(err) != cephlink.NoRight {
		t.Errorf("without caps: %v", err)
	}
	blind := user("blind", "mon", "allow r", "mds", "allow rw")
	if r, err := Judge(t.Context(), blind, Query{FS: "cephfs"}); err != nil || !slices.Contains(ids(r.Fatal()), "no-right") {
		t.Errorf("without the right to data: %+v, %v", r, err)
	}
	if r, err := Judge(t.Context(), part, Query{FS: "cephfs", Need: 1 << 60}); err != nil || !slices.Contains(ids(r.Fatal()), "pool-too-small") {
		t.Errorf("too much: %+v, %v", r, err)
	}
}

// TestMountRefused: a key that the cluster does not take, and one without caps
// for the filesystem: an error in time, and nothing mounted.
func TestMountRefused(t *testing.T) {
	key := cluster.User(t, "nofs", "mon", "allow r")
	dir := t.TempDir()
	src := Source{Place: Place{"cephfs", "/"}, Cluster: cephlink.Cluster{Conf: cluster.Conf, User: "nofs", Keyring: key}}
	if err := Mount(t.Context(), &host.Runner{}, src, dir, Fuse); err == nil {
		t.Error("mounted without caps")
	}
	if is, err := mountedAt(dir); err != nil || is != "" {
		t.Errorf("%q is mounted: %v", is, err)
	}
}
