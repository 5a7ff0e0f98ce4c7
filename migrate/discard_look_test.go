package migrate

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/podman/libpoddb"
)

// TestResetLook: what podman system reset would delete and is not podman's is
// seen, and what is podman's does not stand in the way.
func TestResetLook(t *testing.T) {
	for _, c := range []struct {
		name  string
		files []string
		args  func(dir string, a *resetArgs)
		want  []string // the id's texts hold these, in this order
	}{
		{name: "podman's own", files: []string{
			"run/vfs-layers/x", "run/overlay-locks/x", "run/networks/ipam.db", "run/auth.json", "tmp/alive.lck", "tmp/exits/x",
			"tmp/rootless-netns/x", "tmp/slirp4netns-0.log", "tmp/0.net", "store/volumes/v/_data/x", "store/volumes/backingFsBlockDev",
		}},
		{name: "a runroot with work in it", files: []string{"run/thesis.txt", "run/vfs-layers/x"}, want: []string{`"thesis.txt"`}},
		{name: "what a run put aside", files: []string{"run/.storagectl-0001-migrate-0000/x"}, want: []string{".storagectl-0001"}},
		{name: "a runroot that is the home", args: func(d string, a *resetArgs) { a.Home = a.RunRoot }, want: []string{"holds the owner's home"}},
		{name: "a runroot that holds the home", args: func(d string, a *resetArgs) { a.Home = a.RunRoot + "/vfs-home/me" },
			files: []string{"run/vfs-home/me/x"}, want: []string{"holds the owner's home"}},
		{name: "a home by a link", args: func(d string, a *resetArgs) { a.Home = d + "/home" }, files: []string{"LINK home run"}, want: []string{"holds the owner's home"}},
		{name: "a temporary folder with work in it", files: []string{"tmp/thesis.txt"}, want: []string{"temporary folder"}},
		{name: "a volume that podman does not know", files: []string{"store/volumes/left/_data/x"}, want: []string{`"left"`}},
		{name: "nothing there", args: func(d string, a *resetArgs) {
			a.RunRoot, a.TmpDir, a.VolumePath = d+"/no/run", d+"/no/tmp", d+"/no/volumes"
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			a := resetArgs{GraphRoot: dir + "/store", Driver: "vfs", RunRoot: dir + "/run", TmpDir: dir + "/tmp",
				VolumePath: dir + "/store/volumes", Volumes: []string{"v"}, Home: dir + "/elsewhere"}
			for _, d := range []string{a.RunRoot, a.TmpDir, a.VolumePath} {
				if err := os.MkdirAll(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, f := range c.files {
				if l, ok := strings.CutPrefix(f, "LINK "); ok {
					name, to, _ := strings.Cut(l, " ")
					if err := os.Symlink(filepath.Join(dir, to), filepath.Join(dir, name)); err != nil {
						t.Fatal(err)
					}
					continue
				}
				write(t, filepath.Join(dir, f), "x")
			}
			if c.args != nil {
				c.args(dir, &a)
			}
			l, err := lookAtReset(a)
			if err != nil {
				t.Fatal(err)
			}
			rs := l.refusals()
			if len(rs) != len(c.want) {
				t.Fatalf("%d refusals, want %d: %v", len(rs), len(c.want), rs)
			}
			for i, w := range c.want {
				if !strings.Contains(rs[i].Text, w) || rs[i].ID != "reset" || rs[i].Hint == "" {
					t.Errorf("%+v does not speak of %s", rs[i], w)
				}
			}
		})
	}
}

// TestResetNames: the plan of a reset names all that goes, and what stays.
func TestResetNames(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "store/vfs-containers/containers.json"), `[{"id":"known"},{"id":"b","names":["base-working-container"]}]`)
	write(t, filepath.Join(dir, "run/auth.json"), "{}")
	l, err := lookAtReset(resetArgs{GraphRoot: dir + "/store", Driver: "vfs", RunRoot: dir + "/run", Containers: []string{"known"}, Home: "/home/me"})
	if err != nil {
		t.Fatal(err)
	}
	if l.Stuck != "" || !slices.Equal(l.Buildah, []string{"base-working-container"}) {
		t.Fatalf("%+v", l)
	}
	a := Assessment{Reset: &l, Database: libpoddb.Facts{TmpDir: "/run/libpod", Volumes: []string{"v"}}}
	a.Inputs.Store = Store{GraphRoot: dir + "/store", RunRoot: dir + "/run"}
	text := a.deletes()
	for _, w := range []string{"1 volume", dir + "/store", dir + "/run,", "/run/libpod", "base-working-container", dir + "/run/auth.json are kept"} {
		if !strings.Contains(text, w) {
			t.Errorf("%q does not name %q", text, w)
		}
	}
}

// TestLoginsOverReset: the registry logins outlive a reset that deletes the
// runroot, whichever step a crash comes after, and none of two files is replaced.
func TestLoginsOverReset(t *testing.T) {
	for crash := range 4 {
		dir := t.TempDir()
		a := loginsArgs{RunRoot: filepath.Join(dir, "containers"), Aside: loginsAside(filepath.Join(dir, "containers"), "1")}
		write(t, filepath.Join(a.RunRoot, logins), "token")
		reset := func() error { return os.RemoveAll(a.RunRoot) }
		steps := []func() error{func() error { return loginsOut(a) }, reset, func() error { return loginsBack(a) }}
		for _, step := range slices.Concat(steps[:crash], steps, steps[2:]) {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		if got := tree(t, dir); !slices.Equal(got, []string{"containers/auth.json=token"}) {
			t.Errorf("crash after %d: %v", crash, got)
		}
		if there, err := exists(a.Aside); there || err != nil {
			t.Errorf("crash after %d: %s is left", crash, a.Aside)
		}
	}
	dir := t.TempDir()
	a := loginsArgs{RunRoot: filepath.Join(dir, "containers"), Aside: filepath.Join(dir, "aside")}
	write(t, filepath.Join(a.RunRoot, logins), "new")
	write(t, filepath.Join(a.Aside, logins), "old")
	if err1, err2 := loginsOut(a), loginsBack(a); err1 == nil || err2 == nil {
		t.Errorf("one of two files was replaced: %v", errors.Join(err1, err2))
	}
	if got := tree(t, dir); !slices.Equal(got, []string{"aside/auth.json=old", "containers/auth.json=new"}) {
		t.Errorf("left %v", got)
	}
	none := loginsArgs{RunRoot: filepath.Join(dir, "none"), Aside: filepath.Join(dir, "none-aside")}
	if err := errors.Join(loginsOut(none), loginsBack(none)); err != nil {
		t.Errorf("without logins: %v", err)
	}
}

// TestResetLeavesNoFolderOfARun: whoever knows the run, a reset is refused while
// its folder is in the store.
func TestResetLeavesNoFolderOfARun(t *testing.T) {
	for _, c := range []struct {
		images string
		known  bool
		refuse bool
	}{{Keep, true, false}, {Keep, false, true}, {Discard, true, true}, {Discard, false, true}} {
		a := Assessment{Look: storeLook{Leftover: []string{".storagectl-0001-migrate-0000"}}}
		a.Inputs.Request = Request{To: "overlay", Images: c.images}
		a.Info.Store.GraphDriverName = "vfs"
		a.leftovers(map[string]bool{".storagectl-0001-migrate-0000": c.known})
		if refused := len(a.Refusals) == 1 && a.Refusals[0].ID == "leftover"; refused != c.refuse {
			t.Errorf("%+v: %v", c, a.Refusals)
		}
	}
}

// TestResetTakesItsTime: a reset of a big store takes longer than podman's other
// commands may, and to kill it leaves podman down with half a store.
func TestResetTakesItsTime(t *testing.T) {
	s := &Session{}
	if limit := s.patient().Limit; limit < 12*time.Hour {
		t.Errorf("a reset is killed after %s", limit)
	}
	if s.cli.Limit != 0 {
		t.Error("every command may take that long")
	}
}
