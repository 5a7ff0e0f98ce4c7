package engine

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"
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
