package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
	"github.com/storagectl/storagectl/internal/report"
	"github.com/storagectl/storagectl/migrate/convert"
	"github.com/storagectl/storagectl/rbd"
	"github.com/storagectl/storagectl/verify"
	"github.com/storagectl/storagectl/verify/dockerapi"
)

// tale is a run whose journal is written by the engine, with steps that only take time.
type tale struct {
	t   *testing.T
	dir engine.Dir
	id  string
	in  Inputs
	now time.Time
	j   *engine.Journal
	// do is what happens in a step: it may move the clock, fail, or be cut off.
	do map[string]func() error
}

// errCut is a process that ends without a word.
var errCut = errors.New("cut")

func newTale(t *testing.T, in Inputs) *tale {
	t.Helper()
	x := &tale{t: t, dir: engine.Dir{Path: t.TempDir()}, id: "0006-" + in.Job() + "-4f77", in: in, do: map[string]func() error{},
		now: time.Date(2026, 11, 21, 1, 58, 20, 0, time.UTC)}
	s := &Session{ID: x.id, Inputs: in}
	raw := encodeJSON(t, in)
	if err := os.MkdirAll(x.dir.RunPath(x.id), 0o700); err != nil {
		t.Fatal(err)
	}
	j, err := engine.Create(x.dir.RunPath(x.id), engine.Header{Run: x.id, Job: in.Job(), Store: in.StoreKey(), Version: "v0.7.0", Inputs: raw, Steps: engine.Names(s.steps())}, x.options())
	if err != nil {
		t.Fatal(err)
	}
	x.j = j
	t.Cleanup(func() { x.j.Close() })
	return x
}

func (x *tale) options() engine.Options {
	return engine.Options{Now: func() time.Time { return x.now }}
}

func (x *tale) pass(seconds float64) {
	x.now = x.now.Add(time.Duration(seconds * float64(time.Second)))
}

// run goes on with the run; a panic of a step cuts it off.
func (x *tale) run(f func(*engine.Run) error) (err error) {
	x.t.Helper()
	steps := (&Session{ID: x.id, Inputs: x.in}).steps()
	for i := range steps {
		name := steps[i].Name
		steps[i].Needs, steps[i].Holds = nil, nil
		steps[i].Do = func(context.Context) error {
			x.pass(1.5)
			if do := x.do[name]; do != nil {
				delete(x.do, name)
				return do()
			}
			return nil
		}
		if steps[i].Undo != nil {
			steps[i].Undo = func(context.Context) error { x.pass(0.5); return nil }
		}
	}
	r, err := engine.NewRun(x.j, steps, nil)
	if err != nil {
		x.t.Fatal(err)
	}
	defer func() {
		if p := recover(); p != nil {
			err = errCut
			if reopened, open := engine.Open(x.dir.RunPath(x.id), x.options()); open != nil {
				x.t.Fatal(open)
			} else {
				x.j.Close()
				x.j = reopened
			}
		}
	}()
	return f(r)
}

func (x *tale) forward(commit bool) error {
	x.t.Helper()
	return x.run(func(r *engine.Run) error { return r.Forward(x.t.Context(), commit) })
}

func (x *tale) learn(f Facts) {
	x.t.Helper()
	if err := x.j.SaveFacts(f); err != nil {
		x.t.Fatal(err)
	}
}

func (x *tale) report() report.Data {
	x.t.Helper()
	d, err := Report(x.dir, x.id, ReportOptions{Now: x.now.Add(10 * time.Minute), Host: "worker-07"})
	if err != nil {
		x.t.Fatal(err)
	}
	return d
}

// ofHashi are the inputs of a migration.
func ofHashi() Inputs {
	return Inputs{
		Request: Request{To: "overlay", User: "hashi", Images: Keep, Containers: Keep},
		Owner:   podman.Owner{Name: "hashi", UID: 2000, GID: 2000, Home: "/home/hashi"},
		Store:   Store{GraphRoot: "/home/hashi/s", RunRoot: "/run/user/2000/containers", Driver: "vfs", DBKind: libpoddb.BoltDB, Database: "/home/hashi/s/libpod/bolt_state.db", MountedOn: "/"},
		Systemd: true, Podman: "4.3.1",
	}
}

// TestReportBadNight: a run that failed, was resumed, cut off by a crash, resumed, and
// committed a day later is told as it was, in JSON and Markdown.
func TestReportBadNight(t *testing.T) {
	t.Parallel()
	in := ofHashi()
	in.Nomad = &NomadUse{Nodes: []drain.Node{{ID: "n1", Name: "worker-07", Datacenter: "dc1", Pool: "default", Eligible: true}}, Operator: "root@worker-07"}
	in.Request.Outage = Outage{Canary: "busybox", DockerAPI: true, Deadline: time.Hour, HookBefore: [][]string{{"/bin/warn", "s3cret"}}}
	x := newTale(t, in)
	x.do[stepStage] = func() error { x.pass(40); return errors.New("no space left on device") }
	if err := x.forward(false); err == nil {
		t.Fatal("no error")
	}
	x.pass(1)
	x.want(x.j.Ended(1), nil)
	x.pass(53)
	x.want(x.j.TakenUp(engine.Actor{Command: "resume", UID: 0, LoginUID: 1000, SudoUser: "anna"}), nil)
	x.do[stepStage] = func() error {
		x.learn(Facts{Stage: &StageFact{Layers: 3, Images: 2, Counts: convert.Counts{Linked: 130418, Copied: 12, Bytes: 3_400_000},
			Damage: []convert.Damage{{Kind: convert.MissingLayerFolder, Layer: strings.Repeat("c", 64), Detail: "its folder is gone"}}}})
		return nil
	}
	x.do[stepProve] = func() error { x.keep(); return nil }
	x.do[stepHookBefore] = func() error { return x.j.Note("", "hook warn said: hello\nworld") }
	x.do[stepSwap] = func() error { x.pass(0.2); panic("power cut") }
	if err := x.forward(false); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	x.pass(120)
	x.do[stepVerify] = func() error {
		x.learn(Facts{Smoke: &verify.SmokeReport{PodmanVersion: "4.3.1", Driver: "overlay", RootFS: "overlay", Overlay: verify.Overlay{Native: true}}})
		return nil
	}
	x.do[StepDockerAPI] = func() error {
		x.learn(Facts{DockerAPI: []dockerapi.Call{{Name: "version", What: "twice", Saw: "4.3.1", OK: true, Took: 12 * time.Millisecond}, {Name: "pull", Left: true}}})
		return nil
	}
	if err := x.forward(false); err != nil {
		t.Fatal(err)
	}
	x.pass(86400)
	if err := x.forward(true); err != nil {
		t.Fatal(err)
	}
	d := x.report()
	for name, write := range map[string]func(*bytes.Buffer) error{
		"report.json": func(b *bytes.Buffer) error { return report.JSON(b, d) },
		"report.md":   func(b *bytes.Buffer) error { return report.Markdown(b, d) },
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(b.String(), "s3cret") {
			t.Errorf("%s tells the words of a hook", name)
		}
		golden(t, name, b.Bytes())
	}
	if d.Outcome != report.Committed || len(d.Down) != 1 || d.Down[0].Open || d.DownSeconds < 120 || d.DownSeconds > 140 || len(d.Away) != 1 {
		t.Errorf("%s, down %v, away %v", d.Outcome, d.Down, d.Away)
	}
}

// golden compares with a file of testdata. STORAGECTL_GOLDEN=write writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("STORAGECTL_GOLDEN") == "write" {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is otherwise now:\n%s", path, got)
	}
}

// keep keeps manifest, sample and sizes of a small store, as a run does.
func (x *tale) keep() {
	x.t.Helper()
	s := &Session{ID: x.id, env: Env{Dir: x.dir}}
	id := func(c string) string { return strings.Repeat(c, 64) }
	m := verify.Manifest{
		Store: verify.StorePart{GraphRoot: x.in.Store.GraphRoot, Driver: "vfs",
			Layers: []verify.Layer{{ID: id("a"), DiffSize: 4_300_000}, {ID: id("b"), Parent: id("a"), DiffSize: 900_000_000}, {ID: id("c"), Parent: id("a"), Writable: true}},
			Images: []verify.Image{{ID: id("1"), Names: []string{"docker.io/library/busybox:1"}, Chain: []string{id("a")}},
				{ID: id("2"), Names: []string{"localhost/<b>mine</b>:1", "localhost/mine:2"}, Chain: []string{id("b"), id("a")}}},
			Containers: []verify.Container{{ID: id("d"), Names: []string{"web"}, Image: id("2"), Layer: id("c")}}},
		Podman: verify.PodmanPart{Version: "4.3.1", Driver: "vfs", Objects: []verify.Object{
			{Kind: "container", ID: id("d"), Fields: map[string]any{"Names": []any{"web"}, "ImageID": id("2"), "Labels": map[string]any{"PODMAN_SYSTEMD_UNIT": "web.service"}}},
			{Kind: "container", ID: id("e"), Fields: map[string]any{"Names": []any{"job"}, "ImageID": id("1")}},
			{Kind: "container", ID: id("f"), Fields: map[string]any{"Names": []any{"old"}, "ImageID": id("1")}},
			{Kind: "volume", ID: "v1", Name: "v1"}, {Kind: "network", ID: "podman", Name: "podman"},
		}},
	}
	var b bytes.Buffer
	if err := m.Encode(&b); err != nil {
		x.t.Fatal(err)
	}
	file := func(name string, content []byte) *FileRef {
		ref, err := s.keepFile(name, content)
		if err != nil {
			x.t.Fatal(err)
		}
		return &ref
	}
	sizes := storeSizes{
		Images: []sizedImage{{id("1"), m.Store.Images[0].Names, m.Store.Images[0].Chain}, {id("2"), m.Store.Images[1].Names, m.Store.Images[1].Chain}},
		Before: map[string]int64{id("a"): 4_300_000, id("b"): 905_000_000, id("c"): 906_000_000, id("9"): 8_000},
		After:  map[string]int64{id("a"): 4_300_000, id("b"): 901_000_000, id("9"): 8_000},
	}
	sample := verify.Sample{Driver: "vfs", Entries: []verify.SampleEntry{{Image: id("1"), Path: "bin/sh", Hashed: 1_000_000}, {Image: id("2"), Path: "x", Hashed: 500}}}
	x.learn(Facts{Before: file("manifest-before.jsonl", b.Bytes()), Sample: file("sample-before.json", encodeJSON(x.t, sample)), Sizes: file("sizes.json", encodeJSON(x.t, sizes)),
		Checked: []string{id("1"), id("2")}, Ran: []Ran{{ID: id("e"), Name: "job"}}})
}

// TestReportStates: a run has a report wherever it stands, and that says so.
func TestReportStates(t *testing.T) {
	t.Parallel()
	fail := func() error { return errors.New("it broke") }
	grow := ofHashi()
	grow.Request.Relocate = &Relocation{RBD: "pool/img"}
	grow.Target = &Target{Kind: KindRBD, Where: "pool/img", Image: &TargetImage{Spec: rbd.Spec{Pool: "pool", Image: "img"}, Had: 100, Size: 200}}
	move := ofHashi()
	move.Request.Relocate, move.Request.To = &Relocation{Path: "/srv"}, "vfs"
	move.Target = &Target{Kind: KindPath, Where: "/srv", FSType: "xfs"}
	discard := ofHashi()
	discard.Request.Images, discard.Request.Containers = Discard, Discard
	for name, c := range map[string]struct {
		in      Inputs
		tell    func(*tale)
		outcome report.Outcome
		head    string // is part of the headline
		next    string // the commands
		open    bool   // podman is down at the end
	}{
		"not begun": {ofHashi(), func(*tale) {}, report.CutOff, "Cut off: the store of hashi from vfs to overlay", "resume rollback", false},
		"finished":  {ofHashi(), func(x *tale) { x.want(x.forward(false), nil) }, report.Finished, "The store of hashi is on overlay", "commit rollback", false},
		"failed": {ofHashi(), func(x *tale) { x.do[stepVerify] = fail; x.forward(false) },
			report.Failed, "Failed at “verify against the manifest and run a container”", "resume rollback", true},
		"cut off": {ofHashi(), func(x *tale) { x.do[stepSwap] = func() error { panic("cut") }; x.forward(false) },
			report.CutOff, "Cut off at “move the new store in", "resume rollback", true},
		"stopped": {ofHashi(), func(x *tale) {
			ctx, cancel := context.WithCancel(context.Background())
			x.do[stepSwap] = func() error { cancel(); return nil }
			x.want(x.run(func(r *engine.Run) error { return r.Forward(ctx, false) }), engine.ErrInterrupted)
		}, report.Stopped, "Stopped: the store", "resume rollback", true},
		"rolled back": {ofHashi(), func(x *tale) {
			x.want(x.forward(false), nil)
			x.pass(7200)
			x.learn(Facts{KeptNew: []string{"image localhost/new:1"}})
			x.want(x.run(func(r *engine.Run) error { return r.Rollback(context.Background()) }), nil)
		}, report.RolledBack, "Rolled back: the store of hashi is on vfs, as it was", "", false},
		"moved": {move, func(x *tale) {
			x.do[stepCopy] = func() error {
				x.learn(Facts{Copied: &CopyFact{Files: 12, Bytes: 5000, Seconds: 3}})
				return nil
			}
			x.want(x.forward(true), nil)
		}, report.Committed, "The store of hashi is on /srv", "", false},
		"grown": {grow, func(x *tale) {
			x.do[StepGrowFS] = func() error {
				x.learn(Facts{Grown: &GrowFact{Image: 200, Before: 90, After: 190}})
				return nil
			}
			x.want(x.forward(true), nil)
		}, report.Committed, "The image pool/img has 200 B", "", false},
		"discarded":     {discard, func(x *tale) { x.want(x.forward(true), nil) }, report.Committed, "The store of hashi is empty, and on overlay", "", false},
		"no way back":   {discard, func(x *tale) { x.do[stepReset] = fail; x.forward(true) }, report.Failed, "Failed at “podman system reset”", "resume", true},
		"damaged files": {ofHashi(), func(x *tale) { x.do[stepProve] = x.spoil; x.want(x.forward(false), nil) }, report.Finished, "is on overlay", "commit rollback", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newTale(t, c.in)
			c.tell(x)
			d := x.report()
			if d.Outcome != c.outcome || !strings.Contains(d.Headline, c.head) {
				t.Errorf("%s, %q; want %s, %q", d.Outcome, d.Headline, c.outcome, c.head)
			}
			var next []string
			for _, n := range d.Next {
				next = append(next, strings.Fields(n.Line)[1])
			}
			if got := strings.Join(next, " "); got != c.next {
				t.Errorf("next %q, want %q", got, c.next)
			}
			if n := len(d.Down); (n > 0 && d.Down[n-1].Open) != c.open {
				t.Errorf("down %v", d.Down)
			}
			if c.open && !d.Ended.Equal(d.Made) {
				t.Errorf("it ended %v, and podman is still down", d.Ended)
			}
			for _, s := range d.Steps {
				for _, a := range s.Acts {
					if a.To.Before(a.From) || a.From.Before(d.Began) || a.To.After(d.Ended) {
						t.Errorf("%s from %v to %v", s.Name, a.From, a.To)
					}
				}
			}
			for _, write := range []func(*bytes.Buffer) error{func(b *bytes.Buffer) error { return report.HTML(b, d) }, func(b *bytes.Buffer) error { return report.Markdown(b, d) }} {
				var b bytes.Buffer
				if err := write(&b); err != nil {
					t.Error(err)
				}
			}
			if name == "damaged files" && (len(d.Missing) != 3 || d.Store != nil) {
				t.Errorf("missing %q, store %v", d.Missing, d.Store)
			}
			if name == "rolled back" && (len(d.Down) != 1 || len(d.Events) != 1 || d.Events[0].Kind != report.Kept) {
				t.Errorf("down %v, events %v", d.Down, d.Events)
			}
		})
	}
}

func (x *tale) want(got, want error) {
	x.t.Helper()
	if !errors.Is(got, want) {
		x.t.Fatalf("%v, want %v", got, want)
	}
}

// spoil keeps the files of a run, and damages them.
func (x *tale) spoil() error {
	x.keep()
	for _, name := range []string{"manifest-before.jsonl", "sample-before.json", "sizes.json"} {
		if err := os.WriteFile(filepath.Join(x.dir.RunPath(x.id), name), []byte("x"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// TestReportOldRun: a run of an earlier release knows less: the sizes are those of the
// manifest, and a fact that was another thing then hides no other.
func TestReportOldRun(t *testing.T) {
	t.Parallel()
	x := newTale(t, ofHashi())
	x.do[stepProve] = func() error {
		x.keep()
		if err := x.j.SaveFacts(map[string]any{"smoke": "seen", "ofAnotherRelease": 7}); err != nil {
			return err
		}
		return nil
	}
	x.want(x.forward(false), nil)
	st, err := engine.Read(x.dir.RunPath(x.id))
	if err != nil {
		t.Fatal(err)
	}
	g := &gathering{id: x.id, st: st, titles: map[string]PlannedStep{}}
	delete(st.Facts, "sizes")
	g.learn(x.dir)
	if got := g.store(); got == nil || got.Before != 904_300_000 || got.After != 0 || len(got.Images) != 2 || got.Images[0].Before != 904_300_000 {
		t.Errorf("%+v", got)
	}
	if len(g.missing) != 1 || !strings.Contains(g.missing[0], "noted as smoke") {
		t.Errorf("%q", g.missing)
	}
}

// TestReportUnknownJob: of a job that this package does not know, the steps are told.
func TestReportUnknownJob(t *testing.T) {
	t.Parallel()
	dir, now := engine.Dir{Path: t.TempDir()}, time.Date(2026, 11, 21, 2, 0, 0, 0, time.UTC)
	id, err := dir.New("runbook")
	if err != nil {
		t.Fatal(err)
	}
	j, err := engine.Create(dir.RunPath(id), engine.Header{Run: id, Job: "runbook", Store: "runbook", Steps: []string{"one", "two"},
		Inputs: []byte(`{"request":{"parent":"0001-runbook-aaaa/move"}}`)}, engine.Options{Now: func() time.Time { now = now.Add(time.Second); return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	step := func(name string, err error) engine.Step {
		return engine.Step{Name: name, Title: name, Do: func(context.Context) error { return err }}
	}
	r, err := engine.NewRun(j, []engine.Step{step("one", nil), step("two", errors.New("no"))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Forward(t.Context(), false); err == nil {
		t.Fatal("no error")
	}
	d, err := Report(dir, id, ReportOptions{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(d.Outcome, d.Headline, d.Parent, len(d.Steps), d.Steps[1].Acts[0].End, len(d.Events))
	if want := fmt.Sprint(report.Failed, "A run of runbook: running", "0001-runbook-aaaa/move", 2, report.EndFailed, 1); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func encodeJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
