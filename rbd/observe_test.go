package rbd

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// TestSysfs: what the kernel's client says of its devices. The text is of a
// kernel 6.1; its own test is in a kernel that has it.
func TestSysfs(t *testing.T) {
	sys := t.TempDir()
	for path, text := range map[string]string{
		"0/pool": "rbd\n", "0/name": "img\n", "0/current_snap": "-\n", "0/client_id": "client4123\n", "0/cluster_fsid": "f\n", "0/pool_ns": "\n",
		"0/config_info": "10.78.0.1:6789 name=store,key=client.store,exclusive rbd img -\n",
		"1/pool":        "rbd\n", "1/name": "img\n", "1/current_snap": "snap\n",
		"7/pool": "p\n", "7/pool_ns": "ns\n", "7/name": "x\n", "7/current_snap": "-\n", "7/client_id": "client9\n",
		"8/pool": "exclusive\n", "8/name": "exclusive\n", "8/current_snap": "-\n", "8/config_info": "10.78.0.1:6789 name=exclusive,key=client.exclusive exclusive exclusive -\n",
	} {
		file := filepath.Join(sys, "bus/rbd/devices", path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := (&Host{Sys: sys}).krbd()
	want := []Mapping{
		{Spec: Spec{Pool: "rbd", Image: "img"}, Mapper: Krbd, Device: "/dev/rbd0", Number: "0", Client: 4123, FSID: "f"},
		{Spec: Spec{Pool: "p", Namespace: "ns", Image: "x"}, Mapper: Krbd, Device: "/dev/rbd7", Number: "7", Client: 9, Shared: true},
		{Spec: Spec{Pool: "exclusive", Image: "exclusive"}, Mapper: Krbd, Device: "/dev/rbd8", Number: "8", Shared: true},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestNBDList(t *testing.T) {
	got, err := parseNBD([]byte(`[{"id":4242,"pool":"rbd","namespace":"","image":"img","snap":"-","device":"/dev/nbd0"},{"id":"7","pool":"rbd","namespace":"n","image":"i","snap":"s","device":"/dev/nbd1"}]`))
	want := []Mapping{{Spec: Spec{Pool: "rbd", Image: "img"}, Mapper: NBD, Device: "/dev/nbd0", PID: 4242}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestJudgeImage: who is in the way of a mapping.
func TestJudgeImage(t *testing.T) {
	mine := Watcher{Addr: "10.0.0.1:0/1", Client: 1, Local: true}
	far := Watcher{Addr: "10.0.0.2:0/1", Client: 2}
	dead := Locker{Client: "client.3", Addr: "v1:10.0.0.1:0/3", Local: true, Exclusive: true}
	byHand, foreign, alive := dead, dead, dead
	byHand.Exclusive, foreign.Local, alive.Alive = false, false, true
	ours := foreign
	ours.Mine = true
	for name, c := range map[string]struct {
		img         Image
		free, stale bool
		dead        bool // and may be taken over
	}{
		"nobody":                         {Image{}, true, true, false},
		"left over of this host":         {Image{Watchers: []Watcher{mine}}, false, true, false},
		"another host":                   {Image{Watchers: []Watcher{far}}, false, false, false},
		"both":                           {Image{Watchers: []Watcher{mine, far}}, false, false, false},
		"a dead lock of this host":       {Image{Lockers: []Locker{dead}}, true, true, false},
		"a lock of this host, alive":     {Image{Lockers: []Locker{alive}}, false, true, false},
		"a dead lock of another host":    {Image{Lockers: []Locker{foreign}}, false, false, true},
		"a lock that was set by hand":    {Image{Lockers: []Locker{byHand}}, false, false, false},
		"a dead lock, and another's use": {Image{Lockers: []Locker{dead}, Watchers: []Watcher{far}}, false, false, false},
		"dead locks, one by hand":        {Image{Lockers: []Locker{foreign, byHand}}, false, false, false},
		"the lock of a device here":      {Image{Lockers: []Locker{ours}}, false, false, false},
	} {
		if free, stale := judge(c.img); free != c.free || stale != c.stale || c.img.Dead() != c.dead || c.img.Free() != c.free {
			t.Errorf("%s: free %v, stale %v, dead %v", name, free, stale, c.img.Dead())
		}
	}
}

func TestMark(t *testing.T) {
	img := Image{
		Watchers: []Watcher{{Addr: "10.0.0.1:0/11", Client: 11}, {Addr: "[fd00::2]:0/22", Client: 22}},
		Lockers:  []Locker{{Client: "client.11", Addr: "v1:10.0.0.1:0/11"}, {Client: "client.33", Addr: "v1:10.0.0.3:0/33"}},
	}
	mark(&img, []Mapping{{Client: 11}}, func(a netip.Addr) bool { return a == netip.MustParseAddr("10.0.0.1") })
	if w := img.Watchers; !w[0].Mine || !w[0].Local || w[1].Mine || w[1].Local {
		t.Errorf("%+v", w)
	}
	if l := img.Lockers; !l[0].Mine || !l[0].Local || !l[0].Alive || l[1].Mine || l[1].Local || l[1].Alive {
		t.Errorf("%+v", l)
	}
	if f := img.Foreign(); len(f) != 2 {
		t.Errorf("%q", f)
	}
}
