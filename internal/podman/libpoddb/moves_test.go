package libpoddb

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

const (
	idA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	idB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// A container as podman 3.0.1 and 5.x write it, with what must stay marked
// KEEP and with traps: odd spaces, unknown keys, numbers no float can hold.
const (
	trapConfig = `{ "id":"` + idA + `","name" : "c", "future":{"x":[1,2.50,12345678901234567890,1e400],"y":"/g/vfs-containers/KEEP"},
 "spec":{"process":{"env":["P=/g/vfs-containers/KEEP"],"args":["/g/vfs-containers/KEEP"]},"annotations":{"a":"/g/vfs-containers/KEEP"},
 "root":{"path":"/g/vfs-containers/` + idA + `/rootfs"},"mounts":[{"destination":"/g/vfs-containers/KEEP","source":"/g/vfs-containers/` + idB + `/userdata/x"},{"source":"tmpfs"}]},
 "labels":{"l":"/g/vfs-containers/KEEP"},"CreateCommand":["podman","--storage-driver","vfs"],
 "ShmDir":"/g/vfs-containers/` + idA + `/userdata/shm","staticDir":"/g/vfs-containers/` + idA + `/userdata","mounts":["/g/vfs-containers/` + idA + `/userdata/shm"],
 "logPath":"/g/vfs-containers-old/KEEP\u002flog","secretsPath":"\/g\/vfs-containers\/` + idA + `\/s","conmonPidFile":"/r/vfs-containers/` + idA + `/userdata/conmon.pid",
 "pid_file":"/elsewhere/vfs-containers/KEEP",
 "exitCommand":["/usr/bin/podman","--root","/g","--runroot","/r","--storage-driver","vfs","--storage-opt","vfs.imagestore=/i","--storage-opt","x.vfs=KEEP","container","cleanup","vfs"]}`
	trapState = `{"state":6,"mounted":true,"mountPoint":"/g/vfs/dir/abc","configPath":"/g/vfs-containers/` + idA + `/userdata/config.json","runDir":"/r/vfs-containers/` + idA + `/userdata",
"bindMounts":{"/etc/hosts":"/r/vfs-containers/` + idA + `/userdata/hosts","/etc/resolv.conf":"/r/vfs-containers/` + idB + `/userdata/resolv.conf","/secret":"/home/vfs-containers/KEEP"},
"newExecSessions":{"e1":{"config":{"command":["--storage-driver","vfs"],"exitCommand":["podman","--storage-driver","vfs"]}}},"checkpointLog":"/g/vfs-containers/` + idA + `/userdata/dump.log","checkpointed":true}`
)

// TestForeignOptions: the clean-up command loses what its new driver does not know, or
// must not be told, with the flags before.
func TestForeignOptions(t *testing.T) {
	const (
		config = `{"staticDir":"","exitCommand":["podman", "--storage-driver","overlay", "--storage-opt", "overlay.mount_program=/usr/bin/fuse-overlayfs","--storage-opt","overlay.mountopt=nodev","--storage-opt","overlay.imagestore=/i","container","cleanup","x"]}`
		state  = `{"newExecSessions":{"e":{"config":{"exitCommand":["podman","--storage-driver","overlay","--storage-opt","overlay.force_mask=700"]}}}}`
	)
	for _, c := range []struct{ to, config, state string }{
		{"overlay", `{"staticDir":"","exitCommand":["podman", "--storage-driver","overlay","--storage-opt","overlay.mountopt=nodev","--storage-opt","overlay.imagestore=/i","container","cleanup","x"]}`,
			`{"newExecSessions":{"e":{"config":{"exitCommand":["podman","--storage-driver","overlay"]}}}}`},
		{"vfs", `{"staticDir":"","exitCommand":["podman", "--storage-driver","vfs","--storage-opt","vfs.imagestore=/i","container","cleanup","x"]}`,
			`{"newExecSessions":{"e":{"config":{"exitCommand":["podman","--storage-driver","vfs"]}}}}`},
	} {
		m := newMover("overlay", c.to, Moves{})
		records := []record{{id: idA, config: []byte(config), state: []byte(state)}}
		if err := m.all(records); err != nil {
			t.Fatal(err)
		}
		if got := string(records[0].newConfig); got != c.config {
			t.Errorf("to %s:\n%s\nwant\n%s", c.to, got, c.config)
		}
		if got := string(records[0].newState); got != c.state {
			t.Errorf("to %s:\n%s\nwant\n%s", c.to, got, c.state)
		}
		again := newMover("overlay", c.to, Moves{})
		if err := again.all([]record{{id: idA, config: records[0].newConfig, state: records[0].newState}}); err != nil || len(again.changes) > 0 {
			t.Errorf("to %s: a second time: %v %v", c.to, again.changes, err)
		}
	}
}

func TestRecordsMove(t *testing.T) {
	m := newMover("vfs", "overlay", Moves{Roots: []string{"/g/"}})
	records := []record{{id: idA, config: []byte(trapConfig), state: []byte(trapState)}}
	if err := m.all(records); err != nil {
		t.Fatal(err)
	}
	config, state := string(records[0].newConfig), string(records[0].newState)
	want := trapConfig
	for _, id := range []string{idA, idB} {
		for _, root := range []string{"/g", "/r"} {
			want = strings.ReplaceAll(want, root+"/vfs-containers/"+id, root+"/overlay-containers/"+id)
		}
	}
	// An escaped string that changes is written plainly.
	want = strings.Replace(want, `"\/g\/vfs-containers\/`+idA+`\/s"`, `"/g/overlay-containers/`+idA+`/s"`, 1)
	want = strings.Replace(want, `"--storage-driver","vfs","--storage-opt","vfs.imagestore=/i"`, `"--storage-driver","overlay","--storage-opt","overlay.imagestore=/i"`, 1)
	if config != want {
		t.Errorf("config:\n%s\nwant\n%s", config, want)
	}
	if n, m := strings.Count(config, "KEEP"), strings.Count(trapConfig, "KEEP"); n != m {
		t.Errorf("%d of %d kept", n, m)
	}
	wantState := strings.ReplaceAll(strings.ReplaceAll(trapState, "/g/vfs-containers/"+idA, "/g/overlay-containers/"+idA), "/r/vfs-containers/", "/r/overlay-containers/")
	wantState = strings.Replace(wantState, `"mounted":true,"mountPoint":"/g/vfs/dir/abc"`, `"mounted":false,"mountPoint":""`, 1)
	wantState = strings.Replace(wantState, `"exitCommand":["podman","--storage-driver","vfs"]`, `"exitCommand":["podman","--storage-driver","overlay"]`, 1)
	if state != wantState {
		t.Errorf("state:\n%s\nwant\n%s", state, wantState)
	}
	for _, c := range m.changes {
		if c.Old == c.New || c.Container != idA {
			t.Errorf("%+v", c)
		}
	}
	// Moved once, nothing is left to move.
	again := newMover("vfs", "overlay", Moves{Roots: []string{"/g"}})
	records = []record{{id: idA, config: []byte(config), state: []byte(state)}}
	if err := again.all(records); err != nil || len(again.changes) != 0 || records[0].newConfig != nil || records[0].newState != nil {
		t.Errorf("%v %+v", err, again.changes)
	}
}

func TestMountElsewhereStays(t *testing.T) {
	m := newMover("vfs", "overlay", Moves{Roots: []string{"/g"}})
	state := `{"mounted":true,"mountPoint":"/g/vfsx/dir/abc"}`
	_, got, err := m.container(idA, []byte(`{}`), []byte(state))
	if err != nil || string(got) != state {
		t.Errorf("%s %v", got, err)
	}
}

func TestRewriteJSON(t *testing.T) {
	var paths []string
	doc := ` {"a":[1,{"b":null},[true,"x"]],"":{"c":"\u00e9"},"d":-0.0} `
	out, err := rewriteJSON([]byte(doc), func(path []string, value json.Token) ([]byte, error) {
		paths = append(paths, strings.Join(path, "."))
		if value == "x" {
			return []byte(`"y"`), nil
		}
		return nil, nil
	})
	if err != nil || string(out) != strings.Replace(doc, `"x"`, `"y"`, 1) {
		t.Errorf("%s %v", out, err)
	}
	if want := []string{"a.0", "a.1.b", "a.2.0", "a.2.1", ".c", "d"}; !reflect.DeepEqual(paths, want) {
		t.Errorf("%q", paths)
	}
	for _, bad := range []string{"", " ", "{", `{"a":1`, `{"a" 1}`, `[1,]`, `{"a":"\x"}`} {
		if _, err := rewriteJSON([]byte(bad), func([]string, json.Token) ([]byte, error) { return nil, nil }); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzRewriteJSON(f *testing.F) {
	f.Add([]byte(trapConfig))
	f.Add([]byte(trapState))
	f.Fuzz(func(t *testing.T, doc []byte) {
		out, err := rewriteJSON(doc, func(_ []string, value json.Token) ([]byte, error) {
			if s, ok := value.(string); ok && s == "vfs" {
				return []byte(`"overlay"`), nil
			}
			return nil, nil
		})
		if err != nil || !json.Valid(doc) {
			return
		}
		if !json.Valid(out) {
			t.Fatalf("%q → %q", doc, out)
		}
	})
}
