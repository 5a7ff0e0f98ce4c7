package engine

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCutAtEveryByte shows that a journal cut anywhere reads as its whole
// records, and that the run goes on from there.
func TestCutAtEveryByte(t *testing.T) {
	dir, h := t.TempDir(), &toy{dir: t.TempDir()}
	if _, _, err := run(t, dir, h, 0, forward); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	first := strings.IndexByte(string(whole), '\n') + 1
	for cut := range len(whole) {
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, journalName), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := Read(d)
		if cut < first {
			var de *DamagedError
			if !errors.As(err, &de) {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if want := strings.Count(string(whole[:cut]), "\n"); len(st.Records) != want {
			t.Fatalf("cut at %d: %d records, want %d", cut, len(st.Records), want)
		}
		if cut%37 == 0 {
			if _, _, err := run(t, d, h, 0, forward); err != nil {
				t.Fatalf("cut at %d: %v", cut, err)
			}
		}
	}
}

func TestDamage(t *testing.T) {
	dir, h := t.TempDir(), &toy{dir: t.TempDir()}
	if _, _, err := run(t, dir, h, 0, forward); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, journalName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(whole), "\n")
	for name, tc := range map[string]struct {
		text string
		line int
	}{
		"flipped bit":  {strings.Join(lines[:2], "") + strings.Replace(lines[2], "done", "dono", 1) + strings.Join(lines[3:], ""), 3},
		"lost line":    {strings.Join(lines[:3], "") + strings.Join(lines[4:], ""), 4},
		"empty line":   {strings.Join(lines[:3], "") + "\n" + strings.Join(lines[3:], ""), 4},
		"no first":     {strings.Join(lines[1:], ""), 1},
		"doubled line": {strings.Join(lines[:4], "") + strings.Join(lines[3:], ""), 5},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(dir, Options{})
			var de *DamagedError
			if !errors.As(err, &de) || de.Line != tc.line {
				t.Fatalf("got %v, want damage at line %d", err, tc.line)
			}
			if b, _ := os.ReadFile(path); string(b) != tc.text {
				t.Fatal("a damaged journal was changed")
			}
		})
	}
}

func TestFacts(t *testing.T) {
	type facts struct {
		Units  []string `json:"units,omitempty"`
		Device string   `json:"device,omitempty"`
	}
	dir := t.TempDir()
	j, err := Create(dir, Header{Run: "1", Steps: []string{"a"}, Inputs: json.RawMessage(`{}`)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.SaveFacts(facts{Units: []string{"podman.socket"}}); err != nil {
		t.Fatal(err)
	}
	if err := j.SaveFacts(facts{Units: []string{"podman.socket"}, Device: "/dev/rbd0"}); err != nil {
		t.Fatal(err)
	}
	if err := j.SaveFacts(facts{Units: []string{}}); err != nil {
		t.Fatal(err)
	}
	// A rollback finds more that runs, or more that was made since.
	if err := j.SaveFacts(facts{Units: []string{"podman.socket", "web.service"}}); err != nil {
		t.Fatalf("a list cannot grow: %v", err)
	}
	for _, units := range [][]string{{"web.service"}, {"web.service", "podman.socket", "x"}, {"podman.socket"}} {
		if err := j.SaveFacts(facts{Units: units}); err == nil {
			t.Fatalf("a list was overwritten with %v", units)
		}
	}
	if err := j.SaveFacts(facts{Device: "/dev/rbd1"}); err == nil {
		t.Fatal("a fact was overwritten")
	}
	j.Close()
	j, err = Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got facts
	if err := j.LoadFacts(&got); err != nil || got.Device != "/dev/rbd0" || len(got.Units) != 2 {
		t.Fatalf("%+v %v", got, err)
	}
}
