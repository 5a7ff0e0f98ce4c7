package integration

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/storagectl/storagectl/integration/lab"
)

// grows makes the image larger that the store is on, from 1 GB, while podman works.
// A run that is killed in between is finished by resume.
func (w *world) grows(before inventory) {
	w.t.Helper()
	for size, want := range map[string]string{"1G": "has 1.0 GB already", "500M": "nothing is ever made smaller", "": "--size"} {
		args := w.toImage()
		if size != "" {
			args = w.toImage("--size", size)
		}
		if r := w.ctl(args...); r.code != exitRefused || !strings.Contains(r.stderr, want) {
			w.t.Errorf("--size %q: want a refusal with %q: %s", size, want, r)
		}
	}
	w.podman("run", "-d", "--name", "day", "--network", "none", "localhost/lab/base:1", "/bin/busybox", "sleep", "1000")
	started := w.podman("inspect", "--format", "{{.State.Pid}} {{.State.StartedAt}}", "day")
	bytes := func() int64 {
		w.t.Helper()
		n, err := strconv.ParseInt(strings.TrimSpace(w.script("root", "df --output=size -B1 "+w.graphroot()+" | tail -1")), 10, 64)
		if err != nil {
			w.t.Fatal(err)
		}
		return n
	}
	mb := 1101 // not in whole sectors
	grown := func(how string) {
		w.t.Helper()
		if n := bytes(); n < int64(mb)*1000*1000*8/10 || n > int64(mb)*1000*1000 || n < int64(mb-100)*1000*1000 {
			w.t.Errorf("%s: of an image of %d MB the filesystem has %d bytes", how, mb, n)
		}
		if r := w.ctl(w.toImage("--size", fmt.Sprint(mb)+"M")...); r.code != exitRefused || !strings.Contains(r.stderr, "already") {
			w.t.Errorf("%s: want a refusal: %s", how, r)
		}
	}
	args := func() []string { return w.toImage("--size", fmt.Sprint(mb)+"M") }
	if r := w.must(append(args(), "--dry-run")...); strings.Contains(r.stdout, "stop podman") || !strings.Contains(r.stdout, "1.1 GB; nothing is copied") {
		w.t.Errorf("the plan: %s", r)
	}
	if w.user == "root" {
		grow := func(below string) result {
			w.t.Helper()
			return w.must("runbook", "run", "grow-rbd", "--yes", "--param", "image="+w.image(), "--param", "ceph_user=store",
				"--param", fmt.Sprintf("size=%dM", mb), "--param", "below="+below)
		}
		was := bytes()
		if r := grow("1M"); !strings.Contains(r.stdout, "left out") || bytes() != was {
			w.t.Errorf("with room enough: %s", r)
		}
		if r := grow("100G"); !strings.Contains(r.stdout, "grow                     done") {
			w.t.Errorf("the result: %s", r)
		}
	} else if r := w.must(args()...); !strings.Contains(r.stdout, "has 1.1 GB now") || !strings.Contains(r.stdout, "not stopped") {
		w.t.Errorf("the result: %s", r)
	}
	grown("undisturbed")
	points := []string{"after-resize", "after-grown-device", "after-grown"}
	if os.Getenv("STORAGECTL_SWEEP") == "full" {
		points = nil
		for i := range 60 {
			points = append(points, fmt.Sprint(i+1))
		}
	}
	for _, p := range points {
		mb += 100
		r := w.exec("root", append([]string{"env", "STORAGECTL_SWEEP_KILL_AT=" + p, "storagectl-sweep"}, args()...)...)
		if r.code == exitDone && len(points) > 3 { // there are no more
			grown("point " + p)
			break
		}
		if r.code != -1 {
			w.t.Fatalf("not killed at %s: %s", p, r)
		}
		if r := w.ctl("resume"); r.code != exitDone {
			w.t.Fatalf("resumed after a kill at %s: %s", p, r)
		}
		if p == "after-resize" || p == "after-grown-device" || p == "after-grown" {
			grown(p)
		} else if r := w.ctl(args()...); r.code != exitDone && r.code != exitRefused { // killed before its first record
			w.t.Fatalf("again, after a kill at %s: %s", p, r)
		}
	}
	if now := w.podman("inspect", "--format", "{{.State.Pid}} {{.State.StartedAt}}", "day"); now != started {
		w.t.Errorf("the container did not run on: %s, %s before", now, started)
	}
	w.podman("rm", "-f", "-t", "0", "day")
	w.script("root", "sync -f "+w.graphroot()) // podman's own write, which a power cut may take otherwise
	if w.user == lab.Owner {
		w.same("the store", before, w.manifest())
	}
}
