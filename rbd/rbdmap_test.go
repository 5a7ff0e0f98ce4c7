package rbd

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const sampleMap = "# RbdDevice\t\tParameters\n#poolname/imagename\tid=client,keyring=/etc/ceph/ceph.client.keyring\nrbd/other\tid=x,keyring=/etc/ceph/k\n  pool/odd   id=y   \n\tlast"

func entry(image string) MapEntry {
	return MapEntry{Spec: Spec{Pool: "p", Image: image}, User: "u", Keyring: "/etc/ceph/ceph.client.u.keyring", Options: []string{"exclusive"}}
}

func TestRBDMap(t *testing.T) {
	const line = "p/i\tid=u,keyring=/etc/ceph/ceph.client.u.keyring,options='exclusive'\n"
	for name, c := range map[string]struct{ in, want string }{
		"empty":            {"", mapMark + "\n" + line},
		"no last newline":  {sampleMap, sampleMap + "\n" + mapMark + "\n" + line},
		"there":            {"a/b x\n" + mapMark + "\n" + line + "c/d\n", "a/b x\n" + mapMark + "\n" + line + "c/d\n"},
		"other parameters": {mapMark + "\np/i id=old\nc/d\n", mapMark + "\n" + line + "c/d\n"},
		"cut":              {mapMark + "\np/i id=old", mapMark + "\n" + line},
		"crlf":             {"a/b x\r\n", "a/b x\r\n" + mapMark + "\r\n" + strings.TrimSuffix(line, "\n") + "\r\n"},
	} {
		got, err := SetEntry([]byte(c.in), entry("i"))
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
	for _, in := range []string{"p/i\n", "a\n\tp/i@snap  id=x\n", mapMark + "\n#\np/i\n", mapMark + "\np/i\np/i x\n"} {
		if got, err := SetEntry([]byte(in), entry("i")); !errors.Is(err, ErrForeign) {
			t.Errorf("%q became %q, %v", in, got, err)
		}
	}
	if _, ours := HasEntry([]byte("image\n"), Spec{Pool: "rbd", Image: "image"}); ours {
		t.Error("a line without a pool is of the pool rbd, and not ours")
	}
	if there, _ := HasEntry([]byte("image\n"), Spec{Pool: "rbd", Image: "image"}); !there {
		t.Error("a line without a pool is of the pool rbd")
	}
	for _, e := range []MapEntry{
		{Spec: Spec{Pool: "p", Image: "i"}, User: "a b"}, {Spec: Spec{Pool: "p", Image: "i"}, Keyring: "/k=1"},
		{Spec: Spec{Pool: "p", Image: "i"}, Options: []string{"a'b"}}, {Spec: Spec{Pool: "p", Image: "i\nx"}},
	} {
		if got, err := SetEntry(nil, e); err == nil {
			t.Errorf("%+v became %q", e, got)
		}
	}
}

// FuzzRBDMap: whatever the file holds, setting and removing our line leaves all
// other lines as they are, and is the same done twice.
func FuzzRBDMap(f *testing.F) {
	for _, s := range []string{"", "\n", sampleMap, sampleMap + "\r\n", mapMark + "\n", mapMark + "\np/i x\np/i y", mapMark + "\r\np/i\r\n", "p/i"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		orig := bytes.Clone(text)
		e := entry("i")
		set, err := SetEntry(text, e)
		if !bytes.Equal(text, orig) {
			t.Fatal("the text given was changed")
		}
		if err != nil {
			if there, _ := HasEntry(text, e.Spec); !there {
				t.Fatalf("refused without a line: %v", err)
			}
			return
		}
		if again, err := SetEntry(set, e); err != nil || !bytes.Equal(again, set) {
			t.Fatalf("set twice: %q, %v", again, err)
		}
		if there, ours := HasEntry(set, e.Spec); !there || !ours {
			t.Fatalf("set, and not there: %q", set)
		}
		gone, err := RemoveEntry(set, e.Spec)
		if err != nil {
			t.Fatal(err)
		}
		if there, _ := HasEntry(gone, e.Spec); there {
			t.Fatalf("removed, and there: %q", gone)
		}
		if had, _ := HasEntry(orig, e.Spec); !had {
			// A last line without an end gets one.
			want := orig
			if len(want) > 0 && want[len(want)-1] != '\n' {
				want = append(bytes.Clone(want), lineEnd(orig)...)
			}
			if !bytes.Equal(gone, want) {
				t.Fatalf("%q became %q", orig, gone)
			}
		}
	})
}

func TestSpec(t *testing.T) {
	for _, s := range []string{"p/i", "p/n/i", "p.x/i-1_2"} {
		if got, err := ParseSpec(s); err != nil || got.String() != s {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "i", "/i", "p/", "p/n/i/x", "p/i@snap", "p/i b", "-p/i", "../i", "p/#i", "p/i\n"} {
		if got, err := ParseSpec(s); err == nil {
			t.Errorf("%q was taken as %+v", s, got)
		}
	}
}

func TestNames(t *testing.T) {
	seen := map[string]string{}
	for _, s := range []string{"a/b", "a/b/c", "a-b/c", "a_b/c", "a+b/c", "a:b/c", "a/b:c", "ä/b", "a.b/c", "a/b-c"} {
		spec, err := ParseSpec(s)
		if err != nil {
			t.Fatal(err)
		}
		n := spec.name()
		if was, ok := seen[n]; ok {
			t.Errorf("%s and %s are both %s", was, s, n)
		}
		if seen[n] = s; strings.ContainsAny(n, `/\\ @%`) {
			t.Errorf("%s is %s", s, n)
		}
	}
	if n := UnitName(Spec{Pool: "rbd", Image: "node-1"}); n != "storagectl-rbd-rbd:node-1.service" {
		t.Error(n)
	}
}

// TestEntries: lines by any hand are read as rbdmap's script reads them.
func TestEntries(t *testing.T) {
	all, err := Entries([]byte(`# comment
pool/a	id=u,keyring=/etc/ceph/u.keyring
b id=admin,options='exclusive,lock_timeout=9',conf=/etc/ceph/x.conf

pool/ns/c
pool/d@snap id=u
`))
	want := []MapEntry{
		{Spec: Spec{Pool: "pool", Image: "a"}, User: "u", Keyring: "/etc/ceph/u.keyring"},
		{Spec: Spec{Pool: "rbd", Image: "b"}, User: "admin", Options: []string{"exclusive", "lock_timeout=9"}, Conf: "/etc/ceph/x.conf"},
		{Spec: Spec{Pool: "pool", Namespace: "ns", Image: "c"}},
	}
	if err != nil || !reflect.DeepEqual(all, want) {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err := Entries([]byte("pool/a\na/b/c/d/e\n")); err == nil || len(all) != 1 {
		t.Errorf("a line that names no image: %+v, %v", all, err)
	}
	line, err := want[1].line()
	if back, err2 := Entries([]byte(line + "\n")); errors.Join(err, err2) != nil || !reflect.DeepEqual(back, want[1:2]) {
		t.Errorf("%q is read as %+v", line, back)
	}
}

// TestScript: the script of ceph-common makes of our lines what we mean by them, also
// where a line says nothing of a keyring. The kernel's client has a test of its own.
func TestScript(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, tool := range []string{"rbd", "logger", "mount"} {
		if err := os.WriteFile(path(tool), []byte("#!/bin/sh\n[ ${0##*/} != rbd ] || printf '%s\\n' \"$*\" >>"+path("asked")+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	spec := Spec{Pool: "p", Image: "none"}
	for want, e := range map[string]MapEntry{
		"device map p/none --id u --options exclusive":                                              {User: "u", Options: []string{"exclusive"}},
		"device map p/none --id u --keyfile /k --conf /dev/null --mon_host 10.0.0.1,[fd00::1]:6789": {User: "u", KeyFile: "/k", Conf: "/dev/null", Mons: []string{"10.0.0.1", "[fd00::1]:6789"}},
		"device map p/none --mon_host [v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]":                      {Mons: []string{"[v2:10.0.0.1:3300/0", "v1:10.0.0.1:6789/0]"}},
		"device map p/none --id u --keyring /k --conf /c.conf --options exclusive,ro":               {User: "u", Keyring: "/k", Conf: "/c.conf", Options: []string{"exclusive", "ro"}},
	} {
		e.Spec = spec
		line, err := SetEntry(nil, e)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(path("map"), line, 0o600), os.RemoveAll(path("asked"))); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "/usr/bin/rbdmap", "map")
		cmd.Env = []string{"PATH=" + dir + ":/usr/bin:/bin", "RBDMAPFILE=" + path("map")}
		out, err := cmd.CombinedOutput()
		asked, rerr := os.ReadFile(path("asked"))
		if errors.Join(err, rerr) != nil || strings.TrimSpace(string(asked)) != want {
			t.Errorf("%q has the script ask for %q (%v, %s), and not %q", line, asked, errors.Join(err, rerr), out, want)
		}
		if back, err := Entries(line); err != nil || len(back) != 1 || !reflect.DeepEqual(back[0], e) {
			t.Errorf("%q is read as %+v, %v", line, back, err)
		}
	}
}
