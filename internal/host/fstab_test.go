package host

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const someFstab = "# /etc/fstab: static file system information.\n" +
	"\n" +
	"UUID=1234-ab /               ext4    errors=remount-ro 0       1\n" +
	"\t/dev/sdb1\t/mnt/with\\040blank\txfs\tnoauto,x-systemd.automount\n" +
	"/swapfile none swap sw 0 0 # not a comment to all\n" +
	"tmpfs /tmp tmpfs context=\"system_u:object_r:tmp_t:s0:c1,c2\",size=1g 0 0\r\n" +
	"   # an indented comment\n"

func store(path string) FstabEntry {
	return FstabEntry{Source: "/dev/rbd/pool/img", Path: path, Type: "xfs", Options: FstabOptions(FstabHow{Network: true, After: []string{"rbdmap.service"}})}
}

const storeLine = "# storagectl r1\n/dev/rbd/pool/img /srv/store xfs noauto,noatime,_netdev,x-systemd.automount,x-systemd.after=rbdmap.service,x-storagectl.run=r1 0 0\n"

func edit(t *testing.T, text, run string, want ...FstabEntry) string {
	t.Helper()
	out, err := EditFstab([]byte(text), run, want)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestParseFstab(t *testing.T) {
	got, err := ParseFstab([]byte(someFstab + storeLine))
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		got[i].Text = ""
	}
	want := []FstabLine{
		{Line: 3, FstabEntry: FstabEntry{Source: "UUID=1234-ab", Path: "/", Type: "ext4", Options: []string{"errors=remount-ro"}, Pass: 1}},
		{Line: 4, FstabEntry: FstabEntry{Source: "/dev/sdb1", Path: "/mnt/with blank", Type: "xfs", Options: []string{"noauto", "x-systemd.automount"}}},
		{Line: 5, FstabEntry: FstabEntry{Source: "/swapfile", Path: "none", Type: "swap", Options: []string{"sw"}}},
		{Line: 6, FstabEntry: FstabEntry{Source: "tmpfs", Path: "/tmp", Type: "tmpfs", Options: []string{`context="system_u:object_r:tmp_t:s0:c1,c2"`, "size=1g"}}},
		{Line: 9, Run: "r1", FstabEntry: store("/srv/store")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	for text, line := range map[string]int{
		"\n/dev/sda1 /mnt\n": 2, "x": 1, "/dev/sda1 / ext4 defaults 0 0\n\x00\n": 2, "\x7fELF\x01\x00": 1,
	} {
		var e *FstabError
		if _, err := ParseFstab([]byte(text)); !errors.As(err, &e) || e.Line != line {
			t.Errorf("%q: %v", text, err)
		}
		if _, err := EditFstab([]byte(text), "r1", nil); !errors.As(err, &e) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestEditFstab(t *testing.T) {
	added := edit(t, someFstab, "r1", store("/srv/store"))
	if added != someFstab+storeLine {
		t.Errorf("%q", added)
	}
	if again := edit(t, added, "r1", store("/srv/store")); again != added {
		t.Errorf("%q", again)
	}
	if gone := edit(t, added, "r1"); gone != someFstab {
		t.Errorf("%q", gone)
	}
	// Two runs, each with its own.
	both := edit(t, added, "r2", store("/srv/other"))
	if gone := edit(t, both, "r1"); gone != someFstab+strings.NewReplacer("r1", "r2", "/srv/store", "/srv/other").Replace(storeLine) {
		t.Errorf("%q", gone)
	}
	// Somebody sorted the file and lost the comment; somebody wrote below it.
	sorted := strings.ReplaceAll(storeLine, "# storagectl r1\n", "") + someFstab + "/dev/new /new ext4 defaults 0 0\n"
	if gone := edit(t, sorted, "r1"); gone != someFstab+"/dev/new /new ext4 defaults 0 0\n" {
		t.Errorf("%q", gone)
	}
	// Replaced by another source and another path.
	moved := store("/srv/ store")
	moved.Source = "UUID=77"
	changed := edit(t, added, "r1", moved)
	if want := someFstab + strings.NewReplacer("/srv/store", `/srv/\040store`, "/dev/rbd/pool/img", "UUID=77").Replace(storeLine); changed != want {
		t.Errorf("%q", changed)
	}
	for text, want := range map[string]string{
		"":                                   storeLine,
		"# no end":                           "# no end\n" + storeLine,
		"a /a b c 0 0":                       "a /a b c 0 0\n" + storeLine,
		"a /a b c 0 0\r\n":                   "a /a b c 0 0\r\n" + strings.ReplaceAll(storeLine, "\n", "\r\n"),
		"# storagectl r1\n# of somebody's\n": "# storagectl r1\n# of somebody's\n" + storeLine,
	} {
		out := edit(t, text, "r1", store("/srv/store"))
		if out != want {
			t.Errorf("%q becomes %q", text, out)
		}
		if back := edit(t, out, "r1"); strings.TrimRight(back, "\r\n") != strings.TrimRight(text, "\r\n") {
			t.Errorf("%q goes back to %q", text, back)
		}
		if back, err := RevertFstab([]byte(out), []byte(text), []byte(out), "r1"); err != nil || string(back) != text {
			t.Errorf("%q goes back to %q (%v)", text, back, err)
		}
		touched := out + "x /x y z 0 0\n"
		if back, err := RevertFstab([]byte(touched), []byte(text), []byte(out), "r1"); err != nil || string(back) != edit(t, touched, "r1") {
			t.Errorf("%q goes back to %q (%v)", touched, back, err)
		}
	}
}

func TestEditFstabRefuses(t *testing.T) {
	var taken *FstabTakenError
	for _, line := range []string{"/dev/sdc1 /srv/store ext4 defaults 0 2", "/dev/sdc1\t/srv/store/  ext4", strings.ReplaceAll(storeLine, "r1", "r0"), `/dev/sdc1 /srv/\163tore ext4`} {
		_, err := EditFstab([]byte(someFstab+line+"\n"), "r1", []FstabEntry{store("/srv/store")})
		if !errors.As(err, &taken) || taken.Line < 8 || !strings.Contains(err.Error(), "/srv/") {
			t.Errorf("%q: %v", line, err)
		}
	}
	bad := map[string]func(*FstabEntry){
		"no source":       func(e *FstabEntry) { e.Source = "" },
		"comment":         func(e *FstabEntry) { e.Type = "" },
		"relative":        func(e *FstabEntry) { e.Path = "srv" },
		"comma in option": func(e *FstabEntry) { e.Options = []string{"a,b"} },
		"another's mark":  func(e *FstabEntry) { e.Options = []string{"x-storagectl.run=other"} },
		"open quote":      func(e *FstabEntry) { e.Options = []string{`context="a`} },
	}
	for name, spoil := range bad {
		e := store("/srv/store")
		spoil(&e)
		if out, err := EditFstab(nil, "r1", []FstabEntry{e}); err == nil {
			t.Errorf("%s: %q", name, out)
		}
	}
	for _, run := range []string{"", "a b", "a,b", "a\nb", "ü"} {
		if _, err := EditFstab(nil, run, nil); err == nil {
			t.Errorf("run %q", run)
		}
	}
}

func TestFstabOptions(t *testing.T) {
	for want, how := range map[string]FstabHow{
		"noauto,noatime,x-systemd.automount":                                                                   {},
		"nofail,noatime,_netdev,x-systemd.requires=a.service,nouuid":                                           {Boot: true, Network: true, Requires: []string{"a.service"}, More: []string{"nouuid"}},
		"noauto,noatime,x-systemd.automount,nofail,x-systemd.device-timeout=900s,x-systemd.mount-timeout=900s": {Wait: 15 * time.Minute},
	} {
		if got := strings.Join(FstabOptions(how), ","); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// Whatever the file holds: other lines stay as they are and where they are, ours
// come and go, and what libmount would read is what was meant.
func FuzzEditFstab(f *testing.F) {
	f.Add([]byte(someFstab), "/srv/store", "/dev/x")
	f.Add([]byte(someFstab+storeLine), "/srv/a b\\\t\n#", "UUID=1")
	f.Add([]byte("a /b c\r\n# storagectl r1\n"), "/", "\xff\"")
	f.Add([]byte("a /b c x-storagectl.run=r1"), "/b/", "a,b")
	f.Fuzz(func(t *testing.T, text []byte, path, source string) {
		e := FstabEntry{Source: source, Path: "/" + path, Type: "xfs", Options: []string{"noauto"}}
		out, err := EditFstab(text, "r1", []FstabEntry{e})
		if err != nil {
			return
		}
		lines, err := ParseFstab(out)
		if err != nil {
			t.Fatalf("%q cannot be read: %v", out, err)
		}
		ours := slices.DeleteFunc(slices.Clone(lines), func(l FstabLine) bool { return l.Run != "r1" })
		if len(ours) != 1 || !reflect.DeepEqual(ours[0].FstabEntry, e) {
			t.Fatalf("%q says %+v, not %+v", out, ours, e)
		}
		gone, err := EditFstab(out, "r1", nil)
		if err != nil {
			t.Fatal(err)
		}
		// Others', with the comments that are above no line of ours.
		others := func(b []byte) (keep []string) {
			all := fstabLines(b)
			for i, l := range all {
				mine := func(l string) bool { e, ok, _ := parseFstabLine(l); return ok && e.Run == "r1" }
				comment := strings.TrimRight(l, "\r\n") == "# storagectl r1"
				if !mine(l) && (!comment || i+1 == len(all) || !mine(all[i+1])) {
					keep = append(keep, l)
				}
			}
			if n := len(keep); n > 0 {
				keep[n-1] = strings.TrimRight(keep[n-1], "\r\n")
			}
			return keep
		}
		if a, b := others(text), others(gone); !slices.Equal(a, b) {
			t.Fatalf("%q became %q", a, b)
		}
		again, err := EditFstab(out, "r1", []FstabEntry{e})
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("%q became %q (%v)", out, again, err)
		}
	})
}

func TestWriteFstab(t *testing.T) {
	dir := t.TempDir()
	real, path := filepath.Join(dir, "real"), filepath.Join(dir, "fstab")
	src := filepath.Join(dir, "source")
	before := []byte("# mine\nUUID=none-such /nowhere xfs defaults 0 0\n" + src + " /mnt none bind 0 0\n")
	must(t, os.Mkdir(src, 0o755), os.WriteFile(real, before, 0o600), os.Chmod(real, 0o640), os.Chown(real, 7, 8),
		unix.Setxattr(real, "user.note", []byte("kept"), 0), os.Symlink("real", path))
	var r Runner
	want := FstabEntry{Source: src, Path: dir + "/at", Type: "none", Options: []string{"bind", "noauto"}}
	after, err := EditFstab(before, "r1", []FstabEntry{want})
	must(t, err)
	same := func(want []byte) {
		t.Helper()
		got, err := os.ReadFile(path)
		var st unix.Stat_t
		must(t, err, unix.Stat(real, &st))
		if !bytes.Equal(got, want) || st.Uid != 7 || st.Gid != 8 || st.Mode&0o7777 != 0o640 {
			t.Errorf("%q, %d:%d, mode %o", got, st.Uid, st.Gid, st.Mode)
		}
		note := make([]byte, 9)
		if n, err := unix.Getxattr(real, "user.note", note); err != nil || string(note[:n]) != "kept" {
			t.Errorf("%q %v", note, err)
		}
		if to, err := os.Readlink(path); err != nil || to != "real" {
			t.Errorf("%q %v", to, err)
		}
		if es, _ := os.ReadDir(dir); len(es) != 3 {
			t.Errorf("left behind: %v", es)
		}
	}
	// The folder to mount at is not there: told, and no reason to refuse.
	warnings, err := r.WriteFstab(t.Context(), path, before, after)
	if err != nil || len(warnings) == 0 || !strings.Contains(warnings[0], dir+"/at") {
		t.Errorf("%q %v", warnings, err)
	}
	same(after)
	if _, err := r.WriteFstab(t.Context(), path, before, after); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
	// A new fault, and one that libmount cannot read and ours would not have written.
	for _, bad := range []string{"UUID=none-such-2 /nowhere2 xfs defaults 0 0\n", "foo\n"} {
		var refused *FstabRefusedError
		if _, err := r.WriteFstab(t.Context(), path, after, append(slices.Clone(after), bad...)); !errors.As(err, &refused) {
			t.Errorf("%q: %v", bad, err)
		}
		same(after)
	}
	if _, err := r.WriteFstab(t.Context(), path, after, before); err != nil {
		t.Error(err)
	}
	same(before)
	// None yet.
	none := filepath.Join(t.TempDir(), "fstab")
	if _, err := r.WriteFstab(t.Context(), none, nil, []byte("# x\n")); err != nil {
		t.Error(err)
	}
	if fi, err := os.Lstat(none); err != nil || fi.Mode() != fs.FileMode(0o644) {
		t.Errorf("%v %v", fi, err)
	}
}

// What the mark means to libmount: nothing.
func TestMountReadsOurLine(t *testing.T) {
	dir := t.TempDir()
	at := mkdir(t, dir, "a b")
	text := edit(t, "", "r1", FstabEntry{Source: "store", Path: at, Type: "tmpfs", Options: []string{"noauto", "noatime", "size=1m"}})
	path := filepath.Join(dir, "fstab")
	must(t, os.WriteFile(path, []byte(text), 0o644))
	command(t, "mount", "--fstab", path, at)
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	table, err := Mounts()
	must(t, err)
	if m, ok := table.At(at); !ok || m.Source != "store" || !m.Has("noatime") || !m.Has("size=1024k") {
		t.Errorf("%+v", m)
	}
}
