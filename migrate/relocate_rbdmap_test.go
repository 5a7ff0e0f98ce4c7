package migrate

import (
	"testing"

	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/rbd"
)

// TestMapEntry: a boot is told of the cluster what the operator said. A keyring that was
// not given is where ceph.conf says, and not where a line would have it.
func TestMapEntry(t *testing.T) {
	img := &TargetImage{Spec: rbd.Spec{Pool: "p", Image: "i"}, Cluster: cephlink.Cluster{User: "client.store"}}
	text, err := rbd.SetEntry(nil, img.mapEntry())
	if err != nil {
		t.Fatal(err)
	}
	all, err := rbd.Entries(text)
	if err != nil || len(all) != 1 || all[0].User != "store" || all[0].Keyring+all[0].Conf != "" {
		t.Errorf("%q: %v", text, err)
	}
	img.Cluster.Keyring, img.Cluster.Conf = "/k", "/c.conf"
	if e := img.mapEntry(); e.Keyring != "/k" || e.Conf != "/c.conf" {
		t.Errorf("%+v", e)
	}
	img.Cluster = cephlink.Cluster{Mons: []string{"10.0.0.1", "10.0.0.2"}, KeyFile: "/k"}
	if e := img.mapEntry(); e.KeyFile != "/k" || len(e.Mons) != 2 || e.Conf != "/dev/null" {
		t.Errorf("%+v", e)
	}
}
