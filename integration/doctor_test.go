package integration

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

const exitUnverified = 4

// A diagnosis is a message that doctor ends a check with.
type diagnosis struct {
	Kind    string          `json:"message_type"`
	Check   string          `json:"check"`
	Outcome string          `json:"outcome"`
	Saw     string          `json:"saw"`
	Mend    []string        `json:"mend"`
	Change  json.RawMessage `json:"change"`
	Checks  int             `json:"checks"`
}

// doctor runs storagectl doctor, as root, and gives its checks by name.
func (w *world) doctor(user string, args ...string) (result, map[string]diagnosis) {
	w.t.Helper()
	argv := append([]string{"storagectl", "doctor", "--json"}, args...)
	if user != "root" {
		argv = append(argv, "--user", user)
	}
	return w.diagnoses(w.exec("root", argv...))
}

// diagnoses reads what a doctor said, by name of the check.
func (w *world) diagnoses(r result) (result, map[string]diagnosis) {
	w.t.Helper()
	all := map[string]diagnosis{}
	for line := range strings.Lines(r.stdout) {
		var d diagnosis
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			w.t.Fatalf("%v: %s", err, r)
		}
		if d.Kind == "check" {
			all[d.Check] = d
		}
	}
	return r, all
}

// TestDoctor: doctor sees each thing that is broken on a real node, in time and
// by the right check, --fix mends what it may, and --undo takes that back.
func TestDoctor(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, lab.Owner, images.Small, lab.Options{Release: "bookworm", FS: "ext4", Size: "400M"})
	w.script("root", "echo nameserver 127.0.0.1 >/etc/resolv.conf") // the lab's nodes have none
	before := w.untouched()
	began := time.Now()
	r, well := w.doctor(lab.Owner)
	t.Logf("%d checks in %.1f s", len(well), time.Since(began).Seconds())
	w.same("the machine after a look", before, w.untouched())
	if r.code != exitFailed { // vfs, at least
		t.Errorf("want exit %d: %s", exitFailed, r)
	}
	for id, d := range well {
		if d.Outcome == "problem" || d.Outcome == "unknown" && id != "cgroups" {
			t.Errorf("on a node that is well, %s is %s: %s", id, d.Outcome, d.Saw)
		}
	}
	if d := well["driver"]; d.Outcome != "warning" || !strings.Contains(strings.Join(d.Mend, " "), "storagectl migrate --to overlay --user hashi") {
		t.Errorf("driver: %+v", d)
	}
	// The command is root's, from a folder that the owner may not enter.
	prune, is := strings.CutSuffix(strings.Join(well["reclaimable"].Mend, ""), "podman image prune")
	if !is {
		t.Errorf("reclaimable: %+v", well["reclaimable"])
	}
	w.script("root", "chmod 700 /root; cd /root; export HOME=/root; "+prune+"podman image ls")
	for _, c := range illnesses() {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			w := &world{t: t, ctx: w.ctx, node: w.node, user: w.user}
			if c.user == "" {
				c.user = lab.Owner
			}
			if c.outcome == "" {
				c.outcome = "problem"
			}
			w.script("root", c.breaks)
			defer w.script("root", c.heal)
			look := func() (result, diagnosis) {
				began := time.Now()
				r, all := w.doctor(c.user, "--check", c.check)
				if c.within != "" {
					r, all = w.diagnoses(w.exec("root", "sh", "-euc", c.within, "sh", "storagectl", "doctor", "--json", "--user", c.user, "--check", c.check))
				}
				if took := time.Since(began); took > time.Minute {
					t.Errorf("it took %s", took)
				}
				return r, all[c.check]
			}
			ill := func(r result, d diagnosis) {
				t.Helper()
				if d.Outcome != c.outcome || !strings.Contains(d.Saw, c.saw) {
					t.Errorf("want %s that speaks of %q: %s", c.outcome, c.saw, r)
				}
				if want := map[string]int{"problem": exitUnverified, "warning": exitFailed, "unknown": exitFailed}[c.outcome]; r.code != want {
					t.Errorf("want exit %d: %s", want, r)
				}
				if d.Outcome != "unknown" && len(d.Mend) == 0 {
					t.Errorf("it does not say what mends it: %s", r)
				}
				if can := len(d.Change) > 0; can != c.fixes {
					t.Errorf("--fix can change something: %v, want %v: %s", can, c.fixes, r)
				}
			}
			r, d := look()
			ill(r, d)
			if !c.fixes {
				return
			}
			if r, all := w.doctor(c.user, "--check", c.check, "--fix", "--yes"); r.code != exitDone || all[c.check].Outcome != "ok" {
				t.Fatalf("--fix: %s", r)
			}
			w.must("doctor", "--undo", "latest")
			ill(look())
		})
	}
	// Who enables linger sees the user's systemd up, and not in some seconds.
	w.script("root", lingersNot)
	w.must("doctor", "--user", lab.Owner, "--fix", "--yes", "--check", "linger", "--check", "runtime-dir", "--check", "user-bus")
	if r, _ := w.doctor(lab.Owner); r.code != exitFailed {
		t.Errorf("after all is healed: %s", r)
	}
	if r := w.ctl("resume"); r.code != exitNoRun { // runs of doctor are not runs on stores
		t.Errorf("resume: %s", r)
	}
}

// TestDoctorCNI: a network whose version the plugins of Debian 11 do not know.
func TestDoctorCNI(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	node, err := lab.Boot(ctx, lab.Options{Release: "bullseye"}) // its podman makes no secrets, so that it has no store of the lab's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Errorf("cannot remove the node: %v", err)
		}
	})
	w := &world{t: t, ctx: ctx, node: node, user: "root"}
	w.podman("ps")
	w.script("root", `mkdir -p /etc/cni/net.d; ls /etc/cni/net.d | grep -q . || podman network create`)
	files := w.tree("/etc/cni")
	if r, all := w.doctor("root", "--check", "cni-version"); r.code != exitDone || all["cni-version"].Outcome != "ok" {
		t.Fatal(r)
	}
	w.script("root", `sed -i 's/"cniVersion": *"0.4.0"/"cniVersion": "1.0.0"/' /etc/cni/net.d/*.conflist`)
	broken := w.tree("/etc/cni")
	if r, all := w.doctor("root", "--check", "cni-version"); r.code != exitUnverified || !strings.Contains(all["cni-version"].Saw, "1.0.0") {
		t.Fatal(r)
	}
	if r, _ := w.doctor("root", "--check", "cni-version", "--fix", "--yes"); r.code != exitDone {
		t.Fatal(r)
	}
	times := func(inv inventory) inventory { // the files were written anew
		for k, v := range inv {
			inv[k] = strings.Join(slices.DeleteFunc(strings.Fields(v), func(f string) bool { return strings.HasPrefix(f, "mtime") }), " ")
		}
		return inv
	}
	w.same("the networks", times(files), times(w.tree("/etc/cni")))
	w.must("doctor", "--undo", "latest")
	w.same("the networks after --undo", times(broken), times(w.tree("/etc/cni")))
}
