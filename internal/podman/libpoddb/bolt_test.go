package libpoddb

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// dumpBolt gives every key of every bucket, by path.
func dumpBolt(t *testing.T, path string) map[string]string {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	all := map[string]string{}
	var walk func(prefix string, b *bolt.Bucket) error
	walk = func(prefix string, b *bolt.Bucket) error {
		return b.ForEach(func(k, v []byte) error {
			if v == nil {
				return walk(prefix+"/"+string(k), b.Bucket(k))
			}
			all[prefix+"/"+string(k)] = string(v)
			return nil
		})
	}
	err = db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error { return walk(string(name), b) })
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestBoltOfRealPodman(t *testing.T) {
	ctx := context.Background()
	s := newRealStore(t)
	before := dumpBolt(t, s.db())

	found, err := Find(ctx, s.root, filepath.Join(s.root, "libpod"))
	if err != nil || len(found) != 1 {
		t.Fatalf("Find: %v, %d databases", err, len(found))
	}
	f := found[0]
	if f.Kind != BoltDB || f.GraphDriver != "vfs" || f.GraphRoot != s.root || f.RunRoot != s.run || f.StaticDir != s.root+"/libpod" ||
		f.TmpDir != s.tmp || f.VolumeDir != s.root+"/volumes" || f.OS != "linux" {
		t.Errorf("settings: %+v", f)
	}
	if len(f.Containers) != 2 || !reflect.DeepEqual(f.Pods, []string{"pod1"}) || !reflect.DeepEqual(f.Volumes, []string{"vol1"}) {
		t.Errorf("objects: %+v", f)
	}
	for _, c := range f.Containers {
		if c.State != "configured" || c.Image == "" || (c.Name == "c2") != (c.PodName == "pod1") {
			t.Errorf("container: %+v", c)
		}
	}
	chosen, err := Choose(found, "4.3.1", "")
	if err != nil || chosen.Path != s.db() {
		t.Errorf("Choose: %v %v", chosen.Path, err)
	}

	saved := filepath.Join(s.root, ".storagectl-x", "db")
	if err := Save(ctx, s.db(), saved); err != nil {
		t.Fatal(err)
	}
	original := read(t, s.db())
	if !bytes.Equal(original, read(t, filepath.Join(saved, "bolt_state.db"))) {
		t.Error("the saved copy differs")
	}

	changes, err := Preview(ctx, s.db(), "vfs", "overlay", Moves{})
	if err != nil || len(changes) == 0 || !bytes.Equal(original, read(t, s.db())) {
		t.Fatalf("Preview: %v, %d changes", err, len(changes))
	}
	if err := SetDriver(ctx, s.db(), "vfs", "overlay", Moves{}); err != nil {
		t.Fatal(err)
	}
	after := dumpBolt(t, s.db())
	checkMoved(t, s, before, after)

	// Done twice is done once, to the byte.
	once := read(t, s.db())
	if err := SetDriver(ctx, s.db(), "vfs", "overlay", Moves{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(once, read(t, s.db())) {
		t.Error("a second SetDriver wrote to the file")
	}
	// A save after the change keeps the first copy.
	if err := Save(ctx, s.db(), saved); err != nil {
		t.Fatal(err)
	}
	if err := Restore(ctx, saved, s.db()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(original, read(t, s.db())) {
		t.Error("Restore did not bring the old file back")
	}
	if !bytes.Equal(once, read(t, filepath.Join(saved, "bolt_state.db.replaced-1"))) {
		t.Error("Restore did not keep the replaced file")
	}
	if err := Restore(ctx, saved, s.db()); err != nil {
		t.Errorf("second Restore: %v", err)
	}
	if names, _ := filepath.Glob(saved + "/*.replaced-2"); len(names) != 0 {
		t.Error("a second Restore did something")
	}
	// Real podman reads the restored file.
	if out := s.podman("ps", "-a", "--format", "{{.Names}}"); !strings.Contains(out, "c1") {
		t.Errorf("podman ps after Restore: %q", out)
	}
	// And the way back by SetDriver is exact too.
	if err := SetDriver(ctx, s.db(), "vfs", "overlay", Moves{}); err != nil {
		t.Fatal(err)
	}
	if err := SetDriver(ctx, s.db(), "overlay", "vfs", Moves{}); err != nil {
		t.Fatal(err)
	}
	if back := dumpBolt(t, s.db()); !reflect.DeepEqual(before, back) {
		t.Error("vfs → overlay → vfs is not the identity")
	}
}

// checkMoved sees that exactly the driver and podman's own paths changed.
func checkMoved(t *testing.T, s *realStore, before, after map[string]string) {
	t.Helper()
	if len(before) != len(after) {
		t.Errorf("%d keys before, %d after", len(before), len(after))
	}
	for key, old := range before {
		now := after[key]
		switch {
		case key == "runtime-config/graph-driver-name":
			if now != "overlay" {
				t.Errorf("%s = %q", key, now)
			}
		case strings.HasPrefix(key, "ctr/") && (strings.HasSuffix(key, "/config") || strings.HasSuffix(key, "/state")):
			id := strings.Split(key, "/")[1]
			want := old
			for _, root := range []string{s.root, s.run} {
				want = strings.ReplaceAll(want, root+"/vfs-containers/"+id, root+"/overlay-containers/"+id)
			}
			if now != want {
				i := 0
				for i < min(len(now), len(want)) && now[i] == want[i] {
					i++
				}
				t.Errorf("%s at %d: …%.300s\nwant …%.300s", key, i, now[max(0, i-200):], want[max(0, i-200):])
			}
			if strings.HasSuffix(key, "/config") && now == old {
				t.Errorf("%s did not change", key)
			}
		default:
			if now != old {
				t.Errorf("%s changed: %q → %q", key, old, now)
			}
		}
	}
}

func TestBoltRefusals(t *testing.T) {
	ctx := context.Background()
	s := newRealStore(t)
	original := read(t, s.db())
	fresh := func(t *testing.T) string {
		path := filepath.Join(t.TempDir(), "bolt_state.db")
		if err := os.WriteFile(path, original, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	change := func(t *testing.T, path string, f func(tx *bolt.Tx) error) {
		db, err := bolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Update(f); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(t *testing.T, path string, want error) {
		t.Helper()
		before := read(t, path)
		err := SetDriver(ctx, path, "vfs", "overlay", Moves{})
		if !errors.Is(err, want) {
			t.Errorf("SetDriver: %v, want %v", err, want)
		}
		if !bytes.Equal(before, read(t, path)) {
			t.Error("the refused file was changed")
		}
	}
	t.Run("unknown bucket", func(t *testing.T) {
		path := fresh(t)
		change(t, path, func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("quadlets")); return err })
		refused(t, path, ErrSchema)
	})
	t.Run("missing bucket", func(t *testing.T) {
		path := fresh(t)
		change(t, path, func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte("allPods")) })
		refused(t, path, ErrSchema)
	})
	t.Run("another driver", func(t *testing.T) {
		path := fresh(t)
		change(t, path, func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("runtime-config")).Put([]byte("graph-driver-name"), []byte("btrfs"))
		})
		refused(t, path, ErrDriver)
	})
	t.Run("broken record", func(t *testing.T) {
		path := fresh(t)
		change(t, path, func(tx *bolt.Tx) error {
			ctrs := tx.Bucket([]byte("ctr"))
			id, _ := ctrs.Cursor().First()
			return ctrs.Bucket(id).Put([]byte("config"), []byte(`{"id":"`))
		})
		refused(t, path, ErrDamaged)
	})
	t.Run("cut short", func(t *testing.T) {
		path := fresh(t)
		if err := os.Truncate(path, 8192); err != nil {
			t.Fatal(err)
		}
		refused(t, path, ErrDamaged)
	})
	t.Run("every page overwritten in turn never panics", func(t *testing.T) {
		for at := 0; at+4096 <= len(original); at += 4096 {
			path := fresh(t)
			broken := bytes.Clone(original)
			for i := at; i < at+4096; i++ {
				broken[i] = 0xA5
			}
			if err := os.WriteFile(path, broken, 0o600); err != nil {
				t.Fatal(err)
			}
			_, _ = Read(ctx, path) // free pages may be damaged without harm
		}
	})
	t.Run("locked by a running podman", func(t *testing.T) {
		path := fresh(t)
		db, err := bolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		if _, err := Read(short, path); !errors.Is(err, ErrBusy) {
			t.Errorf("Read: %v", err)
		}
	})
	t.Run("empty file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "bolt_state.db")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Read(ctx, path)
		if err != nil || f.Objects() != 0 || f.GraphDriver != "" {
			t.Errorf("Read: %+v %v", f, err)
		}
		if err := SetDriver(ctx, path, "vfs", "overlay", Moves{}); err != nil || len(read(t, path)) != 0 {
			t.Errorf("SetDriver: %v", err)
		}
	})
}

func TestFindCreatesNothing(t *testing.T) {
	dir := t.TempDir()
	found, err := Find(context.Background(), dir, filepath.Join(dir, "libpod"))
	if err != nil || len(found) != 0 {
		t.Errorf("%v %v", found, err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
	chosen, err := Choose(found, "5.4.2", "")
	if err != nil || chosen.Kind != None {
		t.Errorf("%+v %v", chosen, err)
	}
	if data, _ := json.Marshal(chosen); !strings.Contains(string(data), `"containers":[]`) {
		t.Errorf("%s", data)
	}
}
