package integration

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// verify runs storagectl verify for the world's store, and gives its proofs by name.
func (w *world) verify(args ...string) (result, map[string]diagnosis) {
	w.t.Helper()
	r := w.ctl(append([]string{"verify", "--json", "--user", w.user}, args...)...)
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

// TestVerify: a store that is whole is proven on either driver; a bit that changed
// in a file, a volume that cannot be written to and an image that is gone are found.
func TestVerify(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	proven := func(args ...string) {
		t.Helper()
		before := w.manifest()
		r, all := w.verify(args...)
		if r.code != exitDone {
			t.Fatalf("verify %s: %s", args, r)
		}
		if len(args) > 0 && all["data"].Outcome != "ok" {
			t.Fatalf("nothing was read: %s", r)
		}
		w.same("the store after verify", before, w.manifest())
	}
	wrong := func(check, saw string, args ...string) {
		t.Helper()
		r, all := w.verify(args...)
		if d := all[check]; r.code != exitUnverified || d.Outcome != "problem" || !strings.Contains(d.Saw, saw) {
			t.Errorf("want %s to be a problem that speaks of %q: %s", check, saw, r)
		}
	}
	if r := w.exec("root", "storagectl", "verify", "--user", "other"); r.code != exitFailed || !strings.Contains(r.stdout, "there is no store yet") {
		t.Errorf("a store that is not there is proven: %s", r)
	}
	proven()
	proven("--read-data")
	proven("--sample", "50%")

	flip := func(dir string) { // one byte of a file, of the same length, with its old time
		w.script("root", `cd `+lab.GraphRoot+`/`+dir+`; for f in $(find . -path '*/data/keep'); do touch -r $f /tmp/then; printf X | dd of=$f conv=notrunc 2>/dev/null; touch -r /tmp/then $f; done`)
	}
	w.script("root", `cd `+lab.GraphRoot+`; tar -cf /root/vfs.tar --xattrs vfs`)
	flip("vfs/dir")
	wrong("data", "data/keep has other content", "--read-data")
	wrong("data", "data/keep has other content", "--sample", "100%")
	w.script("root", `cd `+lab.GraphRoot+`; rm -r vfs; tar -xf /root/vfs.tar --xattrs`)
	proven("--read-data")

	w.script("root", `cd `+lab.GraphRoot+`/vfs-images; f=$(ls -d */manifest | head -1); cp -a $f /root/kept; echo >>$f; echo $f >/root/which`)
	wrong("storage-check", "incorrect size")
	w.script("root", `cp -a /root/kept `+lab.GraphRoot+`/vfs-images/$(cat /root/which)`)

	w.must("verify", "--user", w.user, "--manifest", "/root/before.manifest")
	w.must(w.migrate()...)
	proven("--read-data")
	if r, all := w.doctor(w.user, "--check", "mount-program-flag"); r.code != exitDone || all["mount-program-flag"].Outcome != "ok" { // podman wrote one that says false
		t.Errorf("after a migration: %s", r)
	}
	run := strings.Fields(w.must("history").stdout)[0]
	w.must("verify", "--against", run)
	// A file says whose store it is of; without that root's own is not taken for it.
	w.must("verify", "--against", "/root/before.manifest")
	w.script("root", `sed 's/"owner":"[a-z]*",//' /root/before.manifest >/root/nobodys.manifest`)
	if r := w.ctl("verify", "--against", "/root/nobodys.manifest"); r.code != exitUsage || !strings.Contains(r.stderr, "--user") {
		t.Errorf("want the user to be asked for: %s", r)
	}
	w.must("verify", "--user", w.user, "--manifest", "/root/after.manifest")
	w.must("verify", "--against", "/root/before.manifest", "--with", "/root/after.manifest")

	image := strings.Fields(w.podman("images", "--format", "{{.ID}}"))[0]
	w.podman("rmi", "--force", image)
	wrong("manifest", "is missing", "--against", run)
	w.must("verify", "--user", w.user, "--manifest", "/root/after.manifest")
	if r := w.ctl("verify", "--against", "/root/before.manifest", "--with", "/root/after.manifest"); r.code != exitUnverified || !strings.Contains(r.stdout, "is missing") {
		t.Errorf("want the image to be missing: %s", r)
	}
	flip("overlay")
	wrong("data", "data/keep has other content", "--read-data")
	w.script("root", "cd "+lab.GraphRoot+"/volumes; v=$(ls | head -1)/_data; mount --bind $v $v; mount -o remount,bind,ro $v")
	wrong("volumes", "read-only")
}
