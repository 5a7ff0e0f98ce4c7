package main

import (
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/rbd"
	"github.com/storagectl/storagectl/verify/doctor"
)

// TestImageFinding: who has an image, and what that comes to.
func TestImageFinding(t *testing.T) {
	here := rbd.Mapping{Device: "/dev/rbd0"}
	other := rbd.Watcher{Addr: "10.0.0.2:0/7", Client: 7}
	dead := rbd.Locker{Client: "client.8", Addr: "10.0.0.3:0/8", Exclusive: true}
	for name, c := range map[string]struct {
		mapped   []rbd.Mapping
		watchers []rbd.Watcher
		lockers  []rbd.Locker
		missing  error
		want     doctor.Outcome
		mend     string
	}{
		"here alone":      {[]rbd.Mapping{here}, []rbd.Watcher{{Client: 5, Mine: true}}, []rbd.Locker{{Client: "client.5", Exclusive: true, Mine: true, Alive: true}}, nil, doctor.OK, ""},
		"nowhere":         {nil, nil, nil, nil, doctor.OK, ""},
		"on two hosts":    {[]rbd.Mapping{here}, []rbd.Watcher{{Client: 5, Mine: true}, other}, nil, nil, doctor.Problem, "on all hosts but one"},
		"twice here":      {[]rbd.Mapping{here, here}, nil, nil, nil, doctor.Problem, "unmap"},
		"elsewhere":       {nil, []rbd.Watcher{other}, nil, nil, doctor.Warning, "unmap it there"},
		"of a dead host":  {nil, nil, []rbd.Locker{dead}, nil, doctor.Warning, "--take-over"},
		"not there":       {nil, nil, nil, fs.ErrNotExist, doctor.Problem, "/etc/ceph/rbdmap"},
		"gone and mapped": {[]rbd.Mapping{here}, nil, nil, fs.ErrNotExist, doctor.Problem, ""},
	} {
		i := &cephImage{spec: rbd.Spec{Pool: "p", Image: "i"}, mapped: c.mapped}
		f := imageFinding(i, rbd.Image{Spec: i.spec, Watchers: c.watchers, Lockers: c.lockers}, c.missing)
		if f.Outcome != c.want || !strings.Contains(strings.Join(f.Mend, " "), c.mend) {
			t.Errorf("%s: want %s and %q, got %+v", name, c.want, c.mend, f)
		}
	}
}

// TestClusterFinding: the outcome is that of the gravest the cluster reports; what
// somebody muted is none.
func TestClusterFinding(t *testing.T) {
	warn := ceph.Problem{ID: "health-osdmap-flags", Text: "noout"}
	for name, c := range map[string]struct {
		checks   []ceph.Check
		problems []ceph.Problem
		want     doctor.Outcome
	}{
		"well":     {nil, nil, doctor.OK},
		"warning":  {[]ceph.Check{{Code: "OSDMAP_FLAGS", Severity: "HEALTH_WARN"}}, []ceph.Problem{warn}, doctor.Warning},
		"muted":    {[]ceph.Check{{Code: "OSDMAP_FLAGS", Severity: "HEALTH_WARN", Muted: true}}, []ceph.Problem{warn}, doctor.OK},
		"error":    {[]ceph.Check{{Code: "OSDMAP_FLAGS", Severity: "HEALTH_ERR"}}, []ceph.Problem{warn}, doctor.Problem},
		"full":     {nil, []ceph.Problem{{ID: "cluster-full", Text: "full", Fatal: true}, warn}, doctor.Problem},
		"no right": {nil, []ceph.Problem{{ID: "health-unknown", Text: "may not ask"}}, doctor.Unknown},
	} {
		f := clusterFinding(cephlink.Cluster{}, ceph.Report{FSID: "x", Checks: c.checks, Problems: c.problems}, nil)
		if f.Outcome != c.want || f.Outcome.Worse(doctor.OK) && len(f.Mend) == 0 {
			t.Errorf("%s: want %s, got %+v", name, c.want, f)
		}
	}
	f := clusterFinding(cephlink.Cluster{}, ceph.Report{}, &cephlink.LinkError{ID: cephlink.NoHelper, Text: "none", Hint: "install it"})
	if f.Outcome != doctor.Unknown || !slices.Equal(f.Mend, []string{"install it"}) {
		t.Errorf("without the helper: %+v", f)
	}
}
