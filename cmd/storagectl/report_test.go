package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/report"
	"github.com/storagectl/storagectl/migrate"
)

// TestReport: a report goes to stdout or to a file, in the format that was asked for,
// and nothing in it steers a terminal or turns text around.
func TestReport(t *testing.T) {
	state := t.TempDir()
	const evil = "/srv/\u202egnp.<b>\x1b]0;x\x07\nstore"
	dir := engine.Dir{Path: state}
	inputs, err := json.Marshal(migrate.Inputs{Request: migrate.Request{To: "overlay", Images: migrate.Keep}, Owner: podman.Owner{Name: "hashi"}, Store: migrate.Store{GraphRoot: evil, Driver: "vfs"}})
	if err != nil {
		t.Fatal(err)
	}
	run, err := dir.New(migrate.JobMigrate)
	if err != nil {
		t.Fatal(err)
	}
	h := engine.Header{Run: run, Job: migrate.JobMigrate, Store: "0-x", Inputs: inputs, Steps: []string{"stage", "from-the-future"}}
	j, err := engine.Create(dir.RunPath(run), h, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir.RunPath(run), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	call := func(args ...string) (string, error) {
		var out, errs bytes.Buffer
		a := &app{stdin: os.Stdin, stdout: &out, stderr: &errs}
		cmd := newRoot(a)
		cmd.SetArgs(append([]string{"report", "--state-dir", state}, args...))
		err := cmd.ExecuteContext(t.Context())
		if s := strings.Map(func(r rune) rune {
			if r == '\n' || r == '\t' || !steers(r) {
				return -1
			}
			return r
		}, out.String()); s != "" {
			t.Errorf("%v writes %q", args, s)
		}
		return out.String(), err
	}
	want := func(what, got string, err error, parts ...string) {
		t.Helper()
		for _, p := range parts {
			if err != nil || !strings.Contains(got, p) {
				t.Errorf("%s: %v, no %q in\n%s", what, err, p, got)
			}
		}
	}
	out, err := call()
	want("html", out, err, "<!doctype html>", `/srv/\u202egnp.&lt;b&gt;\x1b]0;x\x07`, "from-the-future")
	out, err = call("--format", "md", run[:4])
	want("md", out, err, "# Cut off: the store of hashi from vfs to overlay\n", `\u202egnp.&lt;b&gt;`)
	var d report.Data
	out, err = call("--format", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &d)
	}
	if err != nil || d.Place != evil || d.Run != run || strings.Count(out, "\n") < 20 {
		t.Errorf("json: %v, %+v", err, d)
	}
	d = report.Data{}
	out, err = call("--json")
	want("message", out, err, `{"message_type":"report","time":`)
	if err := json.Unmarshal([]byte(out), &d); err != nil || d.Place != evil || strings.Count(out, "\n") != 1 {
		t.Errorf("message: %v, %+v", err, d)
	}
	for name, begin := range map[string]string{"r.html": "<!doctype html>", "r.md": "# Cut off", "r.json": "{\n", "r": "<!doctype html>"} {
		path := filepath.Join(t.TempDir(), name)
		out, err := call("--output", path)
		want(name, out, err, path+": the report of run "+run)
		b, err := os.ReadFile(path)
		want(name, string(b), err, begin)
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	out, err = call("--json", "--output", filepath.Join(t.TempDir(), "r.md"))
	want("written", out, err, `"message_type":"written"`, `"format":"md"`)
	for code, args := range map[int][]string{exitUsage: {"--format", "pdf"}, exitNoRun: {"77"}, exitFailed: {"--output", "/proc/none/r.html"}} {
		if out, err := call(args...); exitCode(err) != code || out != "" {
			t.Errorf("%v: exit %d (%v), want %d; %s", args, exitCode(err), err, code, out)
		}
	}
	if _, err := call("--json", "--format", "html"); exitCode(err) != exitUsage {
		t.Errorf("lines and a page: %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir.RunPath(run), "journal")); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the journal was changed: %v", err)
	}
}
