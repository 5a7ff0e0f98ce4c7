package engine

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDir(t *testing.T) {
	d := Dir{Path: filepath.Join(t.TempDir(), "a", "b")}
	if _, err := d.Find(""); !errors.Is(err, ErrNoRun) {
		t.Fatalf("got %v", err)
	}
	var ids []string
	for range 11 {
		id, err := d.New("migrate")
		if err != nil {
			t.Fatal(err)
		}
		j, err := Create(d.RunPath(id), Header{Run: id}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		j.Close()
		ids = append(ids, id)
	}
	if got, _ := d.List(); !slices.Equal(got, ids) {
		t.Fatalf("list %v, want %v", got, ids)
	}
	for name, want := range map[string]string{"": ids[10], "1": ids[0], "11": ids[10], ids[4]: ids[4]} {
		if got, err := d.Find(name); got != want {
			t.Errorf("find %q: %q %v, want %q", name, got, err, want)
		}
	}
	if _, err := d.Find("99"); !errors.Is(err, ErrNoRun) {
		t.Fatalf("got %v", err)
	}
	l, err := d.Lock("s")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lock("s"); !errors.Is(err, ErrLocked) {
		t.Fatalf("second lock: %v", err)
	}
	if held, _ := d.Locked("s"); !held {
		t.Fatal("the lock is not seen")
	}
	l.Close()
	if held, _ := d.Locked("s"); held {
		t.Fatal("the lock stays")
	}
}

// TestLockLooked: a lock that somebody only looks at can be taken, and tells who has it.
func TestLockLooked(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	l, err := d.Lock("s")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	look, err := os.Open(filepath.Join(d.Path, "locks", "s"))
	if err == nil {
		err = unix.Flock(int(look.Fd()), unix.LOCK_SH) // as Holder does
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(500 * time.Millisecond) // as on a busy machine
		look.Close()
	}()
	if l, err = d.LockFor("s", "somebody"); err != nil {
		t.Fatal(err)
	}
	if err := Sign(l, "0001"); err != nil {
		t.Fatal(err)
	}
	if who, held, err := d.Holder("s"); who != "0001" || !held || err != nil {
		t.Errorf("%q, %v, %v", who, held, err)
	}
	if _, err := d.Lock("s"); !errors.Is(err, ErrLocked) || !strings.HasSuffix(err.Error(), ": 0001") {
		t.Errorf("got %v", err)
	}
	l.Close()
	if who, held, err := d.Holder("s"); who != "" || held || err != nil {
		t.Errorf("%q, %v, %v", who, held, err)
	}
}

// TestManyRuns: the ten-thousandth run is younger than the one before it.
func TestManyRuns(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	var want []string
	for _, id := range []string{"0001-migrate-aaaa", "9999-migrate-0000", "10000-migrate-0000", "10001-runbook-0000"} {
		if err := mkdirs(d.RunPath(id)); err != nil {
			t.Fatal(err)
		}
		j, err := Create(d.RunPath(id), Header{Run: id, Job: "j"}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		j.Close()
		if h, err := ReadHeader(d.RunPath(id)); h.Run != id || err != nil {
			t.Errorf("%+v, %v", h, err)
		}
		want = append(want, id)
	}
	if got, err := d.List(); !slices.Equal(got, want) || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := d.Find(""); got != want[3] || err != nil {
		t.Errorf("the latest is %q, %v", got, err)
	}
	if id, err := d.New("x"); !strings.HasPrefix(id, "10002-") || err != nil {
		t.Errorf("the next is %q, %v", id, err)
	}
}
