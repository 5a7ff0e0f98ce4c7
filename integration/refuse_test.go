package integration

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// A refusal is a host or a request that a run must not begin on.
type refusal struct {
	name  string
	user  string // owner of the store; lab.Owner if empty
	setup string // run as root in the node before
	args  []string
	code  int
	says  string // in the error, in lower case
	opts  lab.Options
	quiet bool // podman does not work here: look at the files alone
	begun bool // only seen once the run works: it takes itself back, its journal stays
}

func refusals() []refusal {
	const refused = exitRefused
	const conf = lab.Home + "/.config/containers/storage.conf"
	migrate := []string{"migrate", "--to", "overlay", "--yes", "--user", lab.Owner}
	return []refusal{
		{name: "unknown driver", args: []string{"migrate", "--to", "btrfs", "--yes", "--user", lab.Owner}, code: exitUsage, says: "btrfs"},
		{name: "no driver", args: []string{"migrate", "--yes"}, code: exitUsage},
		{name: "unknown flag", args: []string{"migrate", "--to", "overlay", "--bogus"}, code: exitUsage, says: "bogus"},
		{name: "unknown command", args: []string{"migrat"}, code: exitUsage, says: "migrat"},
		{name: "bad value for containers", args: []string{"migrate", "--to", "overlay", "--containers", "maybe", "--yes"}, code: exitUsage, says: "maybe"},
		{name: "no such run", args: []string{"resume", "20200101-000000-migrate"}, code: exitNoRun},
		{name: "no run at all", args: []string{"rollback"}, code: exitNoRun},
		{name: "unknown user", args: []string{"migrate", "--to", "overlay", "--yes", "--user", "nobody-here"}, code: refused, says: "nobody-here"},
		{name: "user without subuids", args: []string{"migrate", "--to", "overlay", "--yes", "--user", "other"}, code: refused, says: "subuid"},
		{
			name: "another user's store", setup: "true", code: refused, says: "root",
			args: []string{"AS", "other", "migrate", "--to", "overlay", "--yes", "--user", lab.Owner},
		},
		{
			name: "graphroot is a home", code: refused, says: "home", args: migrate,
			setup: `printf '[storage]\ndriver = "vfs"\ngraphroot = "` + lab.Home + `"\n' >` + conf,
		},
		{
			name: "storage.conf is no TOML", code: refused, says: "storage.conf: line 3", args: migrate, quiet: true,
			setup: `printf '[storage]\ndriver = "vfs"\ngraphroot = "/opt\n' >` + conf,
		},
		{
			name: "no linger and no login", code: refused, says: "cannot run for hashi", args: migrate, quiet: true,
			setup: `loginctl disable-linger hashi; while [ -e /run/user/2000 ]; do sleep 0.1; done`,
		},
		{
			name: "graphroot is the root folder", user: "root", code: refused, says: "graphroot",
			args:  []string{"migrate", "--to", "overlay", "--yes"},
			setup: `printf '[storage]\ndriver = "vfs"\nrunroot = "/run/containers/storage"\ngraphroot = "/"\n' >/etc/containers/storage.conf; podman info >/dev/null`,
		},
		{
			name: "graphroot is a symlink", code: refused, says: "symbolic link", args: migrate,
			setup: `cd ` + lab.Home + `/.local/share/containers; mv storage elsewhere; ln -s elsewhere storage`,
		},
		{
			name: "state directory in the store", code: refused, says: "state directory",
			args: append(migrate, "--state-dir", lab.GraphRoot+"/state"),
		},
		{
			name: "no room", code: refused, says: "free", args: migrate,
			opts:  lab.Options{FS: "ext4", Size: "200M"},
			setup: `cd /opt; fallocate -l $(( $(stat -f -c '%a*%S' .) - 200000 )) filler`,
		},
		{
			name: "no inodes", code: refused, says: "inode", begun: true, args: migrate,
			opts:  lab.Options{FS: "ext4", Size: "200M"},
			setup: `mkdir /opt/filler; cd /opt/filler; seq $(( $(stat -f -c %d .) - 20 )) | xargs touch`,
		},
		{name: "podman missing", code: refused, says: "podman", args: migrate, setup: `mv /usr/bin/podman /usr/bin/podman.away`, quiet: true},
		{
			// No Debian release that boots here has a podman before 3.0: a script
			// stands in for one.
			name: "podman too old", code: refused, says: "too old", args: migrate, quiet: true,
			setup: `rm /usr/bin/podman
printf '#!/bin/sh\ncase "$*" in *format*) echo 2.2.1 ;; *) echo podman version 2.2.1 ;; esac\n' >/usr/bin/podman; chmod 755 /usr/bin/podman`,
		},
		{
			name: "a layer's folder is gone", code: refused, says: "damaged", args: migrate,
			setup: `cd ` + lab.GraphRoot + `/vfs/dir; rm -r "$(dirname "$(dirname "$(find . -path '*/data/keep' | head -1)")")"`,
		},
		{
			name: "a layer's file is gone", code: refused, says: "damaged", args: migrate, begun: true,
			setup: `cd ` + lab.GraphRoot + `/vfs/dir; rm $(find . -path '*/data/keep')`,
		},
		{
			name: "an image's manifest is gone", code: refused, says: "damaged", args: migrate,
			setup: `cd ` + lab.GraphRoot + `/vfs-images; rm "$(ls -d */ | head -1)"/*`, quiet: true,
		},
		{
			name: "overlay folders beside vfs", code: refused, says: "overlay", args: migrate,
			setup: `cd ` + lab.GraphRoot + `; mkdir -p overlay/l overlay-layers; chown -R hashi: overlay overlay-layers`,
		},
		{
			name: "the socket cannot be stopped", code: refused, says: "podman.socket", args: migrate, begun: true,
			setup: `mkdir -p /etc/systemd/user/podman.socket.d
printf '[Unit]\nRefuseManualStop=yes\n' >/etc/systemd/user/podman.socket.d/stay.conf
runuser -u hashi -- env XDG_RUNTIME_DIR=/run/user/2000 systemctl --user daemon-reload`,
		},
		{
			name: "podman is at work", code: refused, says: "podman load (pid ", args: migrate, begun: true,
			setup: podmanAtWork,
		},
	}
}

// podmanAtWork leaves a podman of the owner reading from a pipe that nobody fills.
const podmanAtWork = `cd /; mkfifo -m 666 /tmp/slow; setsid sleep 300 >/tmp/slow 2>/dev/null &
setsid runuser -u hashi -- env HOME=` + lab.Home + ` XDG_RUNTIME_DIR=/run/user/2000 podman load </tmp/slow >/dev/null 2>&1 &
until pgrep -u hashi -f '^podman load' >/dev/null; do sleep 0.1; done`

// TestInterruptedWait: Ctrl-C ends the wait for podman's last processes at once,
// not at its deadline, and the run can be taken up.
func TestInterruptedWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	before := w.manifest()
	w.script("root", podmanAtWork)
	wait := w.start(w.migrate()...)
	w.script("root", `until storagectl status | grep -q "begun *stop podman"; do sleep 0.2; done; sleep 2`)
	began := time.Now()
	w.signal("INT")
	r := wait()
	if took := time.Since(began); r.code != exitInterupt || took > 20*time.Second || !strings.Contains(r.stderr, "storagectl resume") {
		t.Errorf("after %s: %s", took, r)
	}
	w.script("root", "pkill -u hashi -f '^podman load'; pkill -x -f 'sleep 300'")
	w.must("resume")
	w.migrated(before)
}

// TestRefusals: each says why, what would lift it, and has changed nothing.
func TestRefusals(t *testing.T) {
	for _, c := range refusals() {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			if c.user == "" {
				c.user = lab.Owner
			}
			c.opts.Release = "bookworm"
			w := newWorldWith(t, c.user, images.Small, c.opts)
			if c.setup != "" {
				w.script("root", c.setup)
			}
			if !c.quiet {
				w.podman("info")
			}
			before := w.untouched()
			var r result
			if c.args[0] == "AS" {
				r = w.exec(c.args[1], append([]string{"storagectl"}, c.args[2:]...)...)
			} else {
				r = w.ctl(c.args...)
			}
			if r.code != c.code {
				t.Errorf("want exit %d: %s", c.code, r)
			}
			if !strings.Contains(r.stderr, "error: ") || !strings.Contains(strings.ToLower(r.stderr), c.says) {
				t.Errorf("no error that speaks of %q: %s", c.says, r)
			}
			if c.code == exitRefused && !strings.Contains(r.stderr, "hint: ") {
				t.Errorf("no hint: %s", r)
			}
			after := w.untouched()
			if c.begun {
				forget(before, stateDir)
				forget(after, stateDir)
			}
			w.same("the machine after a refusal", before, after)
		})
	}
}

// forget drops what lies below a folder from an inventory.
func forget(inv inventory, dir string) {
	maps.DeleteFunc(inv, func(path, _ string) bool { return strings.HasPrefix(path, dir) })
}

// TestKeepDamaged carries a damaged store over as it is.
func TestKeepDamaged(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.script("root", `cd `+lab.GraphRoot+`/vfs/dir; rm $(find . -path '*/data/keep')`)
	before := w.manifest()
	w.must(w.migrate("--keep-damaged")...)
	if d := w.driver(); d != "overlay" {
		t.Errorf("podman is on %s", d)
	}
	if s := strings.TrimSpace(w.script(lab.Owner, "systemctl --user is-active podman.socket || true")); s != "active" {
		t.Errorf("podman.socket is %s", s)
	}
	after := w.manifest()
	// podman save breaks off at the missing file, sooner or later.
	for _, inv := range []inventory{before, after} {
		maps.DeleteFunc(inv, func(key, _ string) bool { return strings.HasPrefix(key, "save ") })
	}
	w.same("the store", before, after)
}
