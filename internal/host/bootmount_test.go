package host

import (
	"reflect"
	"testing"
)

// What a unit says is what a line of fstab would; what only systemd can fill in is
// no guess of ours.
func TestBootMountOfUnit(t *testing.T) {
	units, err := MountUnitFiles(FstabEntry{Source: "/dev/rbd/pool/50%", Path: "/srv/store", Type: "xfs"},
		FstabHow{Network: true, Requires: []string{"serve.service"}}, "r1")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]BootMount{
		string(units[0].Text): {Source: "/dev/rbd/pool/50%", Type: "xfs", Options: []string{"noatime", "_netdev"}, Requires: []string{"serve.service"}, Run: "r1"},
		"[Unit]\nDescription=100%\n[Mount]\nWhat=/opt/own\\\n\nOptions=ro\nOptions=bind\nWhere=/srv/store\n": {Source: "/opt/own", Options: []string{"bind"}},
	} {
		if got, err := bootMountOfUnit([]byte(text)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"[Mount]\nWhat=%h/disk\nWhere=/srv/store\n", "[Mount]\nWhere=/srv/store\n", "[Mount"} {
		if got, err := bootMountOfUnit([]byte(text)); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}
