package tell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func audit(t *testing.T) Audit {
	t.Helper()
	return Audit{Path: filepath.Join(t.TempDir(), "audit.jsonl")}
}

func (a Audit) must(t *testing.T, entries ...Entry) string {
	t.Helper()
	hash, err := a.Append(t.Context(), entries...)
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

// TestAudit: a record is told once, however often it is told, and the chain holds.
func TestAudit(t *testing.T) {
	t.Parallel()
	a := audit(t)
	if _, err := a.Read(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of no audit: %v", err)
	}
	first := Entry{Run: "0001-migrate-aaaa", At: 1, Event: "begin", By: &Actor{Command: "migrate", LoginUID: -1}}
	a.must(t, first)
	head := a.must(t, first, Entry{Run: "0001-migrate-aaaa", At: 9, Event: "finished", Error: "<&>\x01\u2028"})
	if again := a.must(t, first); again != head {
		t.Errorf("nothing new, and the head is another")
	}
	head = a.must(t, Entry{Event: "prune", Job: "prune", Detail: []byte(`{"freed":1}`)}, Entry{Event: "prune", Job: "prune"})
	c, err := a.Read()
	if err != nil || len(c.Entries) != 4 || c.Hashes[3] != head || c.Entries[1].Error != "<&>\x01\u2028" || c.Entries[2].Time.IsZero() {
		t.Errorf("%+v, %v", c, err)
	}
	if fi, err := os.Stat(a.Path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
}

// TestAuditCut: whatever is left of the last write, what was told before is whole, and
// telling it again makes it as it would have been.
func TestAuditCut(t *testing.T) {
	t.Parallel()
	a := audit(t)
	a.Now = func() time.Time { return time.Unix(1700000000, 0) }
	one, two := Entry{Run: "r", At: 1, Event: "begin"}, Entry{Run: "r", At: 2, Event: "end"}
	a.must(t, one)
	short, err := os.ReadFile(a.Path)
	if err != nil {
		t.Fatal(err)
	}
	a.must(t, two)
	whole, err := os.ReadFile(a.Path)
	if err != nil {
		t.Fatal(err)
	}
	for n := len(short); n < len(whole); n += 1 + (n*n)%7 {
		for _, torn := range [][]byte{whole[:n], append(bytes.Clone(whole[:n]), make([]byte, len(whole)-n)...),
			append(append(bytes.Clone(short), make([]byte, n-len(short))...), '\n')} {
			if err := os.WriteFile(a.Path, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			if c, err := a.Read(); err != nil || len(c.Entries) != 1 {
				t.Fatalf("cut at %d: %d records, %v", n, len(c.Entries), err)
			}
			a.must(t, one, two)
			if b, err := os.ReadFile(a.Path); err != nil || !bytes.Equal(b, whole) {
				t.Fatalf("cut at %d, and told again: %s", n, b)
			}
		}
	}
}

// TestAuditBroken: no byte can be changed, no line left out, put in or moved, without
// being found, and the line is named.
func TestAuditBroken(t *testing.T) {
	t.Parallel()
	a := audit(t)
	for n := range 4 {
		a.must(t, Entry{Run: "r", At: n + 1, Event: "finished"})
	}
	whole, err := os.ReadFile(a.Path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(string(whole), "\n"), "\n")
	lines[3] += "\n"
	broken := func(text string) int {
		t.Helper()
		if err := os.WriteFile(a.Path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := a.Read()
		var b *BrokenError
		if !errors.As(err, &b) {
			t.Fatalf("not found: %v\n%s", err, text)
		}
		return b.Line
	}
	for i := 0; i < len(whole)-len(lines[3])-1; i += 1 + i%7 { // a last line that is no record is torn
		changed := bytes.Clone(whole)
		changed[i] ^= 1
		want := 1 + strings.Count(string(whole[:i]), "\n")
		if got := broken(string(changed)); got != want && changed[i] != '\n' && whole[i] != '\n' {
			t.Fatalf("byte %d, line %d: found in line %d", i, want, got)
		}
	}
	for want, text := range map[int]string{
		1: lines[1] + lines[2], 2: lines[0] + lines[2] + lines[3], 3: lines[0] + lines[1] + lines[1] + lines[2],
		4: lines[0] + lines[1] + lines[2] + strings.Replace(lines[3], "finished", "begin", 1),
	} {
		if got := broken(text); got != want {
			t.Errorf("found in line %d, want %d", got, want)
		}
	}
	// And it goes on: what is wrong does not keep the rest from being told.
	a.must(t, Entry{Run: "r", At: 5, Event: "end"})
}

// TestAuditTogether: processes that tell at the same time make one chain.
func TestAuditTogether(t *testing.T) {
	t.Parallel()
	a := audit(t)
	var wg sync.WaitGroup
	for k := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := range 5 {
				if _, err := a.Append(t.Context(), Entry{Run: fmt.Sprint(k), At: n + 1, Event: "end"}); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	if c, err := a.Read(); err != nil || len(c.Entries) != 40 {
		t.Errorf("%d, %v", len(c.Entries), err)
	}
}

// TestAuditHeld: who holds the audit holds up nobody for long.
func TestAuditHeld(t *testing.T) {
	t.Parallel()
	a := audit(t)
	f, err := a.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Append(ctx, Entry{Event: "prune"}); err == nil || !strings.Contains(err.Error(), "another process holds it") {
		t.Error(err)
	}
}

// TestAuditOfAnother: root tells no audit in a folder that another can write to, and the
// configuration names none in or below one, nor behind a link.
func TestAuditOfAnother(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	file := func(name string, uid int, mode os.FileMode) string {
		t.Helper()
		dir := filepath.Join(base, name)
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, uid, -1), os.Chmod(dir, mode)); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, "audit.jsonl")
	}
	path := filepath.Join(base, "storagectl.toml")
	load := func(audit string) error {
		t.Helper()
		if err := os.WriteFile(path, fmt.Appendf(nil, "[audit]\nfile = %q\n", audit), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadConfig(path)
		return err
	}
	good := file("good", os.Getuid(), 0o755)
	for _, f := range []string{good, filepath.Join(base, "not-there-yet", "audit.jsonl")} {
		if err := load(f); err != nil {
			t.Error(err)
		}
	}
	Audit{Path: good}.must(t, Entry{Event: "prune"})
	if os.Getuid() != 0 { // a user is told of what is a user's own
		return
	}
	theirs := file("theirs", 4711, 0o755)
	bad := []string{theirs, file("open", 0, 0o777), file("sticky", 0, 0o777|os.ModeSticky), filepath.Join(base, "theirs", "below", "audit.jsonl"),
		filepath.Join(base, "theirs", "not-there-yet", "audit.jsonl")}
	if err := os.Mkdir(filepath.Dir(bad[3]), 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink("good", link); err != nil {
		t.Fatal(err)
	}
	for i, f := range append(bad, filepath.Join(link, "audit.jsonl")) {
		var refused *ConfigError
		if err := load(f); !errors.As(err, &refused) || !strings.Contains(err.Error(), "audit.file: ") || refused.Hint == "" {
			t.Errorf("%s: %v", f, err)
		}
		if i > 2 {
			continue
		}
		if _, err := (Audit{Path: f}).Append(t.Context(), Entry{Event: "prune"}); err == nil {
			t.Errorf("%s: told", f)
		}
		if _, err := os.Lstat(f); err == nil {
			t.Errorf("%s is there", f)
		}
	}
	// The state directory may lie behind a link.
	Audit{Path: filepath.Join(link, "audit.jsonl")}.must(t, Entry{Event: "prune"})
}

// TestAuditNoFile: what is no file is no audit, and a link leads nowhere.
func TestAuditNoFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, link, "/dev/full", filepath.Join(dir, "none", "audit")} {
		if _, err := (Audit{Path: path}).Append(t.Context(), Entry{Event: "prune"}); err == nil {
			t.Errorf("%s: told", path)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "elsewhere")); err == nil {
		t.Error("a link was followed")
	}
}
