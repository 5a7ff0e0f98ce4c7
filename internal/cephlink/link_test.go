package cephlink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// helper is a program of some lines of shell in the helper's place.
func helper(t *testing.T, script string) Options {
	t.Helper()
	path := filepath.Join(t.TempDir(), Helper)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return Options{Path: path, Cluster: Cluster{Conf: "/dev/null"}}
}

const greets = `read -r q; echo '{"id":1,"result":{"protocol":1,"version":"x","ceph":"y"}}'
read -r q; echo '{"id":2,"result":{}}'
`

func start(t *testing.T, script string) *Client {
	t.Helper()
	c, err := Start(t.Context(), helper(t, script))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestCall(t *testing.T) {
	c := start(t, greets+`read -r q; echo '{"id":3,"result":{"A":7}}'
read -r q; echo words >&2; echo '{"id":4,"fault":{"errno":2,"text":"no such thing"}}'
read -r q; echo '{"id":5,"fault":{"errno":13,"id":"no-right","text":"denied","hint":"ask"}}'
`)
	var got struct{ A int }
	if err := c.Call(t.Context(), "x", nil, &got); err != nil || got.A != 7 {
		t.Errorf("%+v, %v", got, err)
	}
	err := c.Call(t.Context(), "x", nil, nil)
	if !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, syscall.ENOENT) || err.Error() != "no such thing (words)" {
		t.Errorf("%v", err)
	}
	err = c.Call(t.Context(), "x", nil, nil)
	if !errors.Is(err, fs.ErrPermission) || IDOf(err) != NoRight || HintOf(err) != "ask" || err.Error() != "denied" {
		t.Errorf("%v", err)
	}
	err = c.Call(t.Context(), "x", nil, nil)
	if IDOf(err) != HelperDied {
		t.Errorf("after its end: %v", err)
	}
}

// TestBadHelpers: each ends the call, in time, with what is known of why.
func TestBadHelpers(t *testing.T) {
	for name, c := range map[string]struct {
		script, id, text string
	}{
		"a library is missing": {"echo librbd.so.1: cannot open >&2; exit 127\n", NoHelper, "librbd.so.1"},
		"another version":      {`read -r q; echo '{"id":1,"result":{"protocol":99}}'` + "\nread -r q\n", NoHelper, "version 99"},
		"noise":                {"read -r q; echo hello\n", NoHelper, "invalid character"},
		"another's answer":     {`read -r q; echo '{"id":9,"result":{}}'; read -r q` + "\n", NoHelper, "request 9"},
		"a wrong key":          {greets[:strings.Index(greets, "\n")+1] + `read -r q; echo '{"id":2,"fault":{"errno":13,"id":"wrong-key","text":"no"}}'; read -r q` + "\n", WrongKey, "no"},
	} {
		client, err := Start(t.Context(), helper(t, c.script))
		if err == nil {
			_ = client.Close()
		}
		if IDOf(err) != c.id || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v (%s)", name, err, IDOf(err))
		}
	}
	if _, err := Start(t.Context(), Options{Path: "/nonexistent/helper"}); IDOf(err) != NoHelper || !strings.Contains(HintOf(err), "apt-get install") {
		t.Errorf("no helper: %v", err)
	}
	died := start(t, greets+"read -r q; echo my last words >&2; kill -9 $$\n")
	err := died.Call(t.Context(), "look", nil, nil)
	if IDOf(err) != HelperDied || !strings.Contains(err.Error(), "my last words") || !strings.Contains(err.Error(), "killed") {
		t.Errorf("killed: %v", err)
	}
}

// TestDeadline: what hangs is killed, with what it started.
func TestDeadline(t *testing.T) {
	c := start(t, greets+"read -r q; echo waiting for osd.7 >&2; exec sleep 1000\n")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	begin := time.Now()
	err := c.Call(ctx, "look", nil, nil)
	if IDOf(err) != TooSlow || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "osd.7") {
		t.Errorf("%v", err)
	}
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("after %s", d)
	}
	if err := syscall.Kill(c.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("it still runs: %v", err)
	}
	if again := c.Call(t.Context(), "look", nil, nil); IDOf(again) != TooSlow {
		t.Errorf("asked again: %v", again)
	}
}

// TestNothingInherited: no secret and no setting of ours reaches the helper by
// its environment or its command line.
func TestNothingInherited(t *testing.T) {
	t.Setenv("CEPH_ARGS", "--id evil")
	c := start(t, greets+`read -r q; printf '{"id":3,"result":"%s %s"}\n' "$(env | cut -d= -f1 | sort | tr '\n' ' ')" "$*"`+"\n")
	var got string
	if err := c.Call(t.Context(), "env", nil, &got); err != nil || strings.Contains(got, "CEPH") || !strings.HasSuffix(got, " requests") {
		t.Errorf("%q, %v", got, err)
	}
}

func TestServe(t *testing.T) {
	in := strings.NewReader(`{"id":1,"op":"double","args":21}` + "\n" + `{"id":2,"op":"fail","args":{}}` + `{"id":3,"op":"gone"}{"id":4,"op":"double","args":"x"}`)
	var out bytes.Buffer
	err := Serve(in, &out, map[string]Handler{
		"double": Handle(func(n int) (int, error) { return 2 * n, nil }),
		"fail":   Handle(func(struct{}) (int, error) { return 0, &os.PathError{Op: "open", Path: "/x", Err: syscall.EACCES} }),
	})
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(&out)
	var got []reply
	for {
		var r reply
		if dec.Decode(&r) != nil {
			break
		}
		got = append(got, r)
	}
	if len(got) != 4 || string(got[0].Result) != "42" || got[1].Fault == nil || got[1].Fault.Errno != int(syscall.EACCES) || got[2].Fault == nil || got[3].Fault == nil {
		t.Errorf("%+v", got)
	}
}

// An address without a nonce is all of a host's clients to the blocklist.
func TestOneClient(t *testing.T) {
	for addr, want := range map[string]string{"10.0.0.1:0/4123": "10.0.0.1:0/4123", "v1:[fd00::1]:0/10": "[fd00::1]:0/10", "any:10.0.0.1:0/7": "10.0.0.1:0/7",
		"10.0.0.1:0/0": "", "10.0.0.1:0": "", "v1:10.0.0.1": "", "10.0.0.1:0/": "", "10.0.0.0/24/x": "", "-": "", "/3": "", "10.0.0.1:0/000": ""} {
		if got, err := OneClient(addr); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q %v", addr, got, err)
		}
	}
}

func TestCluster(t *testing.T) {
	c := Cluster{Name: "backup", User: "client.app", KeyFile: "/k"}
	if want := []string{"--conf", "/etc/ceph/backup.conf", "--id", "app", "--cluster", "backup", "--keyfile", "/k"}; !slices.Equal(c.Args(), want) {
		t.Errorf("%q", c.Args())
	}
	c = Cluster{Mons: []string{"10.0.0.1", "10.0.0.2"}}
	if want := []string{"--conf", "/dev/null", "--id", "admin", "-m", "10.0.0.1,10.0.0.2"}; !slices.Equal(c.Args(), want) {
		t.Errorf("%q", c.Args())
	}
	for _, bad := range []Cluster{{Conf: "relative"}, {User: "a\nb"}, {Keyring: "/k", KeyFile: "/f"}, {KeyFile: "k"},
		{Mons: []string{""}}, {Mons: []string{"a b"}}, {Mons: []string{"a'"}}, {Mons: []string{"a", "--key"}}} {
		if bad.Check() == nil {
			t.Errorf("%+v", bad)
		}
	}
	for _, mons := range [][]string{{"mon-1.example"}, {"10.0.0.1:6789", "[fd00::1]"}, {"[v2:10.0.0.1:3300/0", "v1:10.0.0.1:6789/0]"}} {
		if err := (Cluster{Mons: mons}).Check(); err != nil {
			t.Error(err)
		}
	}
}
