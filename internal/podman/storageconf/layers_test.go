package storageconf

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/podman/libpoddb"
)

// tree makes files below a new root folder.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func driver(name string) string { return "[storage]\ndriver = \"" + name + "\"\n" }

const home = "/home/u"

func TestWhoDecidesTheDriver(t *testing.T) {
	all := map[string]string{
		"/etc/containers/storage.conf":              driver("etc"),
		"/usr/share/containers/storage.conf":        driver("usr"),
		home + "/.config/containers/storage.conf":   driver("home"),
		"/xdg/containers/storage.conf":              driver("xdg"),
		"/named.conf":                               driver("named"),
		"/over.conf":                                driver("over"),
		"/etc/containers/storage.conf.d/50.conf":    driver("etc50"),
		"/usr/share/containers/storage.conf.d/60.x": driver("no"),
	}
	without := func(paths ...string) map[string]string {
		left := map[string]string{}
		for k, v := range all {
			left[k] = v
		}
		for _, p := range paths {
			delete(left, p)
		}
		return left
	}
	userFile, etc, usr, drop := home+"/.config/containers/storage.conf", "/etc/containers/storage.conf", "/usr/share/containers/storage.conf", "/etc/containers/storage.conf.d/50.conf"
	for _, c := range []struct {
		name         string
		owner        Owner
		files        map[string]string
		want, source string
	}{
		{"4.3 rootful", Owner{Podman: "4.3.1"}, all, "etc", etc},
		{"4.3 rootful without /etc", Owner{Podman: "4.3.1"}, without(etc), "usr", usr},
		{"3.0 rootful knows no /usr/share", Owner{Podman: "3.0.1"}, without(etc), "", "podman"},
		{"3.0 rootful knows no variable", Owner{Podman: "3.0.1", Env: map[string]string{"CONTAINERS_STORAGE_CONF": "/named.conf"}}, all, "etc", etc},
		{"4.3 rootful with XDG_CONFIG_HOME", Owner{Podman: "4.3.1", Env: map[string]string{"XDG_CONFIG_HOME": "/xdg"}}, all, "xdg", "/xdg/containers/storage.conf"},
		{"4.0 rootful ignores XDG_CONFIG_HOME", Owner{Podman: "4.0.0", Env: map[string]string{"XDG_CONFIG_HOME": "/xdg"}}, all, "etc", etc},
		{"named file", Owner{Podman: "5.4.2", Env: map[string]string{"CONTAINERS_STORAGE_CONF": "/named.conf"}}, all, "named", "/named.conf"},
		{"STORAGE_DRIVER", Owner{Podman: "5.4.2", Env: map[string]string{"CONTAINERS_STORAGE_CONF": "/named.conf", "STORAGE_DRIVER": "var"}}, all, "var", "STORAGE_DRIVER"},
		{"4.3 rootless", Owner{Podman: "4.3.1", Rootless: true}, all, "home", userFile},
		{"4.3 rootless, file without driver", Owner{Podman: "4.3.1", Rootless: true}, map[string]string{userFile: "", etc: driver("etc")}, "", "podman"},
		{"4.3 rootless without a file", Owner{Podman: "4.3.1", Rootless: true}, without(userFile), "etc", etc},
		{"3.0 rootless takes no driver from /etc", Owner{Podman: "3.0.1", Rootless: true}, without(userFile), "", "podman"},
		{"6 rootful reads root's own file and drop-ins", Owner{Podman: "6.0.0"}, all, "etc50", drop},
		{"6 override", Owner{Podman: "6.0.0", Env: map[string]string{"CONTAINERS_STORAGE_CONF_OVERRIDE": "/over.conf"}}, all, "over", "/over.conf"},
		{"6 named file hides drop-ins", Owner{Podman: "6.0.0", Env: map[string]string{"CONTAINERS_STORAGE_CONF": "/named.conf"}}, all, "named", "/named.conf"},
		{"6 no drop-in", Owner{Podman: "6.0.0"}, without(drop), "home", userFile},
		{"6 names decide over folders", Owner{Podman: "6.0.0", Rootless: true, UID: 1000}, map[string]string{
			userFile + ".d/10.conf":                                 driver("user10"),
			"/etc/containers/storage.rootless.conf.d/1000/20.conf":  driver("uid20"),
			"/usr/share/containers/storage.rootful.conf.d/90.conf":  driver("rootful"),
			"/usr/share/containers/storage.rootless.conf.d/20.conf": driver("usr20")},
			"uid20", "/etc/containers/storage.rootless.conf.d/1000/20.conf"},
		{"overlay2 is overlay", Owner{Podman: "4.3.1"}, map[string]string{etc: driver("overlay2")}, "overlay", etc},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.owner.Home, c.owner.Root = home, tree(t, c.files)
			layers, err := Layers(c.owner)
			if err != nil {
				t.Fatal(err)
			}
			s := find(t, Effective(c.owner, layers, libpoddb.Facts{}), "driver")
			if s.Value != c.want || s.Source != c.source {
				t.Errorf("%q from %s (%s), want %q from %s", s.Value, s.Source, s.Why, c.want, c.source)
			}
			db := libpoddb.Facts{Path: "/db", GraphDriver: "vfs"}
			if s := find(t, Effective(c.owner, layers, db), "driver"); s.Value != "vfs" || s.Source != "/db" {
				t.Errorf("with a database: %+v", s)
			}
		})
	}
}

func find(t *testing.T, settings []Setting, name string) Setting {
	t.Helper()
	for _, s := range settings {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no setting %s in %+v", name, settings)
	return Setting{}
}

func TestRoots(t *testing.T) {
	o := Owner{Podman: "4.3.1", Rootless: true, UID: 2000, Home: home, Env: map[string]string{"XDG_RUNTIME_DIR": "/run/user/2000"},
		Root: tree(t, map[string]string{"/etc/containers/storage.conf": "[storage]\ngraphroot = \"/not/for/users\"\nrootless_storage_path = \"/disk/$UID/$HOME\"\n"})}
	layers, err := Layers(o)
	if err != nil {
		t.Fatal(err)
	}
	settings := Effective(o, layers, libpoddb.Facts{})
	if s := find(t, settings, "graphroot"); s.Value != "/disk/2000/home/u" {
		t.Errorf("%+v", s)
	}
	if s := find(t, settings, "runroot"); s.Value != "/run/user/2000/containers" {
		t.Errorf("%+v", s)
	}
	o.Root = tree(t, nil)
	layers, _ = Layers(o)
	if s := find(t, Effective(o, layers, libpoddb.Facts{}), "graphroot"); s.Value != home+"/.local/share/containers/storage" || s.Source != "default" {
		t.Errorf("%+v", s)
	}
}

func TestTarget(t *testing.T) {
	userFile, etc, usr := home+"/.config/containers/storage.conf", "/etc/containers/storage.conf", "/usr/share/containers/storage.conf"
	for _, c := range []struct {
		name   string
		owner  Owner
		files  map[string]string
		path   string
		create bool
		want   string // the content; "-": nothing to write
		err    error
	}{
		{"rootless, own file", Owner{Podman: "4.3.1", Rootless: true}, map[string]string{userFile: driver("vfs"), etc: driver("vfs")}, userFile, false, driver("overlay"), nil},
		{"rootless, right already", Owner{Podman: "4.3.1", Rootless: true}, map[string]string{userFile: driver("overlay")}, userFile, false, "-", nil},
		{"rootless, no file", Owner{Podman: "4.3.1", Rootless: true}, nil, userFile, true, header + driver("overlay"), nil},
		{"rootless, keeps what /etc gave", Owner{Podman: "4.3.1", Rootless: true}, map[string]string{
			etc: "[storage]\ngraphroot = \"/g\"\nrootless_storage_path = \"/a\\\\b\"\n[storage.options]\nadditionalimagestores = [\"/i\"]\npull_options = {a = \"1\"}\nignore_chown_errors = \"true\"\n"},
			userFile, true, header + driver("overlay") + "rootless_storage_path = \"/a\\\\b\"\n\n[storage.options.pull_options]\n\"a\" = \"1\"\n\n[storage.options.overlay]\nignore_chown_errors = \"true\"\n", nil},
		{"rootful, /etc", Owner{Podman: "5.4.2"}, map[string]string{etc: driver("vfs")}, etc, false, driver("overlay"), nil},
		{"rootful, only /usr/share", Owner{Podman: "5.4.2"}, map[string]string{usr: "# d\n" + driver("vfs")}, etc, true, "# d\n" + driver("overlay"), nil},
		{"rootful, nothing", Owner{Podman: "4.3.1"}, nil, etc, true, header + driver("overlay") + "runroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/storage\"\n", nil},
		{"named file", Owner{Podman: "4.3.1", Rootless: true, Env: map[string]string{"CONTAINERS_STORAGE_CONF": "/n"}}, map[string]string{"/n": driver("vfs"), userFile: driver("vfs")}, "/n", false, driver("overlay"), nil},
		{"named file missing", Owner{Podman: "4.3.1", Env: map[string]string{"CONTAINERS_STORAGE_CONF": "/n"}}, map[string]string{etc: driver("vfs")}, "", false, "", ErrInvalid},
		{"broken file", Owner{Podman: "4.3.1"}, map[string]string{etc: "["}, "", false, "", ErrInvalid},
		{"6 rootful", Owner{Podman: "6.0.0"}, map[string]string{etc: driver("vfs")}, etc, false, driver("overlay"), nil},
		{"6 rootful, only /usr/share", Owner{Podman: "6.0.0"}, map[string]string{usr: driver("vfs")}, etc + ".d/zz-storagectl.conf", true, header + driver("overlay"), nil},
		{"6 rootless, drop-in of the admin", Owner{Podman: "6.0.0", Rootless: true}, map[string]string{userFile: driver("vfs"), etc + ".d/50.conf": driver("vfs")}, userFile + ".d/zz-storagectl.conf", true, header + driver("overlay"), nil},
		{"6 rootless, drop-in after ours", Owner{Podman: "6.0.0", Rootless: true}, map[string]string{etc + ".d/zzz.conf": driver("vfs")}, "", false, "", ErrManual},
		{"6 rootless, own drop-in", Owner{Podman: "6.0.0", Rootless: true}, map[string]string{userFile + ".d/50.conf": driver("vfs")}, userFile + ".d/50.conf", false, driver("overlay"), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.owner.Home, c.owner.Root = home, tree(t, c.files)
			layers, err := Layers(c.owner)
			if err != nil {
				t.Fatal(err)
			}
			target, err := For(c.owner, layers, Effective(c.owner, layers, libpoddb.Facts{}), "overlay")
			if !errors.Is(err, c.err) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			want := c.want
			if want == "-" {
				want = ""
			}
			if target.Path != c.path || target.Create != c.create || string(target.Content) != want || (len(target.Changes) == 0) != (want == "") {
				t.Errorf("%+v\n%s\nwant %s\n%s", target, target.Content, c.path, want)
			}
			if target.Content == nil {
				return
			}
			// Once written, the file makes overlay the driver podman uses.
			full := filepath.Join(c.owner.Root, target.Path)
			if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(full, target.Content, 0o644); err != nil {
				t.Fatal(err)
			}
			after, err := Layers(c.owner)
			if err != nil {
				t.Fatal(err)
			}
			if s := find(t, Effective(c.owner, after, libpoddb.Facts{}), "driver"); s.Value != "overlay" {
				t.Errorf("after: %+v", s)
			}
			for _, name := range []string{"graphroot", "runroot"} {
				was, is := find(t, Effective(c.owner, layers, libpoddb.Facts{}), name), find(t, Effective(c.owner, after, libpoddb.Facts{}), name)
				if was.Value != is.Value {
					t.Errorf("%s was %q, is %q", name, was.Value, is.Value)
				}
			}
			again, err := For(c.owner, after, Effective(c.owner, after, libpoddb.Facts{}), "overlay")
			if err != nil || again.Content != nil {
				t.Errorf("a second time: %+v %v", again, err)
			}
		})
	}
}

func TestTargetWarnsAndFollowsLinks(t *testing.T) {
	o := Owner{Podman: "4.3.1", Home: home, Env: map[string]string{"STORAGE_DRIVER": "vfs"},
		Root: tree(t, map[string]string{"/etc/containers/real.conf": driver("vfs") + "[storage.options.overlay]\nsize = \"10G\"\n"})}
	if err := os.Symlink("real.conf", filepath.Join(o.Root, adminFile)); err != nil {
		t.Fatal(err)
	}
	layers, err := Layers(o)
	if err != nil {
		t.Fatal(err)
	}
	target, err := For(o, layers, nil, "overlay")
	if err != nil || target.Path != "/etc/containers/real.conf" || len(target.Warnings) != 2 {
		t.Errorf("%+v %v", target, err)
	}
}

// TestRealPodman asks the podman of this machine what it would use, in a mount
// namespace whose /etc/containers, /usr/share and store are the test's own.
func TestRealPodman(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "podman", "version", "--format", "{{.Client.Version}}").Output()
	if err != nil {
		t.Fatalf("podman: %v", err)
	}
	version := strings.TrimSpace(string(out))
	for _, c := range []struct {
		name  string
		files map[string]string
		env   map[string]string
	}{
		// Podman before 4.4 looks at the hidden file once too and fails if it
		// names no roots.
		{"etc", map[string]string{adminFile: driver("vfs") + "graphroot = \"/g\"\nrunroot = \"/r\"\n", vendorFile: driver("overlay") + "graphroot = \"/g2\"\nrunroot = \"/r\"\n"}, nil},
		{"usr", map[string]string{vendorFile: driver("vfs") + "graphroot = \"/g\"\nrunroot = \"/r\"\n"}, nil},
		{"named", map[string]string{adminFile: driver("overlay"), "/etc/containers/n.conf": driver("vfs") + "graphroot = \"/g2\"\nrunroot = \"/r\"\n"}, map[string]string{"CONTAINERS_STORAGE_CONF": "/etc/containers/n.conf"}},
		{"xdg", map[string]string{adminFile: driver("overlay"), "/etc/containers/containers/storage.conf": driver("vfs") + "graphroot = \"/g3\"\nrunroot = \"/r\"\n"}, map[string]string{"XDG_CONFIG_HOME": "/etc/containers"}},
		{"other case", map[string]string{adminFile: "[STORAGE]\nDriver = \"vfs\"\nGraphRoot = \"/g4\"\nrunroot = \"/r\"\n"}, nil},
		{"our new file", map[string]string{adminFile: string(rootful([]Setting{{Name: "runroot", Value: "/run/containers/storage"}, {Name: "graphroot", Value: "/var/lib/containers/storage"}}, wanted{driver: "vfs"}))}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Owner{Podman: version, Home: "/root", Env: c.env, Root: tree(t, c.files)}
			layers, err := Layers(o)
			if err != nil {
				t.Fatal(err)
			}
			settings := Effective(o, layers, libpoddb.Facts{})
			want := find(t, settings, "driver").Value + " " + find(t, settings, "graphroot").Value + " " + find(t, settings, "runroot").Value
			// Roots outside the usual places are made in a fresh / overlay.
			script := `set -e
mount --make-rprivate /
for d in etc/containers usr/share/containers; do
  mkdir -p "$R/$d"
  for f in policy.json registries.conf containers.conf seccomp.json; do if [ -e "/$d/$f" ]; then cp "/$d/$f" "$R/$d/"; fi; done
  mount --bind "$R/$d" "/$d"
done
mkdir -p "$R/var" "$R/run"
mount --bind "$R/var" /var/lib/containers
mkdir -p /run/containers && mount --bind "$R/run" /run/containers
unset R
exec podman --events-backend none --cgroup-manager cgroupfs --tmpdir /run/containers/tmp info --format '{{.Store.GraphDriverName}} {{.Store.GraphRoot}} {{.Store.RunRoot}}'`
			for _, root := range []string{"/g", "/g2", "/g3", "/g4", "/r"} {
				script = strings.Replace(script, "unset R\n", "mkdir -p /var/lib/containers"+root+"\nunset R\n", 1)
				want = strings.ReplaceAll(want+" ", " "+root+" ", " /var/lib/containers"+root+" ")
				for path := range c.files {
					full := filepath.Join(o.Root, path)
					data, err := os.ReadFile(full)
					if err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(full, []byte(strings.ReplaceAll(string(data), `"`+root+`"`, `"/var/lib/containers`+root+`"`)), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			cmd := exec.CommandContext(ctx, "unshare", "-m", "bash", "-c", script)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/root", "R=" + o.Root}
			for k, v := range c.env {
				cmd.Env = append(cmd.Env, k+"="+v)
			}
			var stderr strings.Builder
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, stderr.String())
			}
			if got := strings.TrimSpace(string(out)); got != strings.TrimSpace(want) {
				t.Errorf("podman uses %q, we say %q\n%s", got, want, stderr.String())
			}
		})
	}
}
