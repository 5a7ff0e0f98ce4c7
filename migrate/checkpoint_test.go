package migrate

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/storagectl/storagectl/internal/podman/libpoddb"
)

// TestBundle: a runtime bundle names the new driver's folders where it names the
// old one's, and nothing else of it changes.
func TestBundle(t *testing.T) {
	a := bundleArgs{GraphRoot: "/g", RunRoot: "/r", From: "vfs", To: "overlay", ID: "c"}
	const was = `{"process":{"args":["/g/vfs/dir/abc"],"rlimits":[{"type":"x","hard":18446744073709551615}]},"root":{"path":"/g/vfs/dir/abc"},
"mounts":[{"destination":"/dev/shm","source":"/g/vfs-containers/c/userdata/shm"},{"destination":"/etc/hosts","source":"/r/vfs-containers/c/userdata/hosts","options":["bind"]},
{"destination":"/v","source":"/g/volumes/v/_data"},{"destination":"/proc","type":"proc"}]}`
	const want = `{"process":{"args":["/g/vfs/dir/abc"],"rlimits":[{"type":"x","hard":18446744073709551615}]},"root":{"path":"/g/overlay/abc/merged"},
"mounts":[{"destination":"/dev/shm","source":"/g/overlay-containers/c/userdata/shm"},{"destination":"/etc/hosts","source":"/r/overlay-containers/c/userdata/hosts","options":["bind"]},
{"destination":"/v","source":"/g/volumes/v/_data"},{"destination":"/proc","type":"proc"}]}`
	got, err := a.move([]byte(was))
	if err != nil {
		t.Fatal(err)
	}
	sorted := func(text string) string {
		var v map[string]json.RawMessage
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		for _, k := range []string{"root", "mounts"} {
			var part any
			if err := json.Unmarshal(v[k], &part); err != nil {
				t.Fatal(err)
			}
			v[k], _ = json.Marshal(part)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if sorted(string(got)) != sorted(want) {
		t.Errorf("got %s", got)
	}
	if again, err := a.move(got); err != nil || again != nil {
		t.Errorf("a second time: %s, %v", again, err)
	}
	back := bundleArgs{GraphRoot: "/g", RunRoot: "/r", From: "overlay", To: "vfs", ID: "c"}
	if got, err := back.move(got); err != nil || sorted(string(got)) != sorted(was) {
		t.Errorf("the way back: %s, %v", got, err)
	}
}

// TestThawed: a checkpoint that podman has used, or that a boot or a removal has ended,
// is known to be one that the volumes have moved on from.
func TestThawed(t *testing.T) {
	ran := []Ran{{ID: "used", Frozen: true}, {ID: "kept", Frozen: true}, {ID: "gone", Frozen: true}, {ID: "never"}}
	db := func(cs ...libpoddb.Container) libpoddb.Facts { return libpoddb.Facts{Containers: cs} }
	kept := libpoddb.Container{ID: "kept", Checkpointed: true}
	now := db(libpoddb.Container{ID: "used"}, kept, libpoddb.Container{ID: "never"})
	saved := db(libpoddb.Container{ID: "used", Checkpointed: true}, kept, libpoddb.Container{ID: "gone", Checkpointed: true})
	want := []string{"used", "gone"}
	got := thawed(nil, ran, []libpoddb.Facts{now})
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// Once the saved one is back, a try that was cut off still knows it.
	if got := thawed(got, ran, []libpoddb.Facts{saved}); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
