package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/rbd"
	"github.com/storagectl/storagectl/verify/doctor"
)

// cephLimit is how long a cluster may take to answer, connecting included.
const cephLimit = 8 * time.Second

// cephChecks are about the clusters that this host uses, as ceph.conf, rbdmap and
// storagectl's own services say. Where there is none they ask nobody.
func cephChecks() []doctor.Check {
	return []doctor.Check{
		{
			ID: "rbdmap", Group: doctor.GroupMounts, Title: "What fstab and rbdmap want is mapped",
			Why:   "What stands in /etc/ceph/rbdmap is mapped at boot. An image that is not mapped now, or that fstab mounts and nothing maps, or a service that is not enabled, shows only at the next boot, as a mount that hangs.",
			Mends: "systemctl enable rbdmap; systemctl reload rbdmap maps what is missing (restart would unmap all).",
			Look:  lookRBDMap,
		},
		{
			ID: "ceph-health", Group: doctor.GroupMounts, Title: "The Ceph cluster is well",
			Why:   "While placement groups are not active, or an OSD is full, writes of the store on it wait without end.",
			Mends: "ceph health detail names the daemons and pools; storagectl-ceph, which asks, must be installed.",
			Limit: 2 * cephLimit,
			Look:  lookCephHealth,
		},
		{
			ID: "rbd-watchers", Group: doctor.GroupMounts, Title: "Images are in use here alone",
			Why:   "An image that two hosts have mapped destroys its filesystem. One that a dead host left locked, or another has, cannot be mapped here at the next boot.",
			Mends: "Unmap it on all hosts but one; what a dead host left, storagectl relocate --take-over or rbd lock rm frees.",
			Limit: 2 * cephLimit,
			Look:  lookWatchers,
		},
	}
}

// cephImage is an image that this host has, or is to have at a boot.
type cephImage struct {
	spec    rbd.Spec
	cluster cephlink.Cluster
	mapped  []rbd.Mapping
	byMap   bool // rbdmap names it
	served  bool // a service of storagectl's serves it
}

// cephImages lists them by what lies on this host alone.
func cephImages(ctx context.Context, run *host.Runner) ([]*cephImage, error) {
	var all []*cephImage
	get := func(spec rbd.Spec) *cephImage {
		for _, i := range all {
			if i.spec == spec {
				return i
			}
		}
		all = append(all, &cephImage{spec: spec})
		return all[len(all)-1]
	}
	text, err := os.ReadFile(rbd.RBDMap)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	entries, bad := rbd.Entries(text)
	for _, e := range entries {
		i := get(e.Spec)
		i.byMap, i.cluster = true, cephlink.Cluster{User: e.User, Keyring: e.Keyring, KeyFile: e.KeyFile, Conf: e.Conf, Mons: e.Mons}
	}
	served, err := rbd.Served()
	bad = errors.Join(bad, err)
	for _, s := range served {
		i := get(s.Spec)
		i.served, i.cluster = true, s.Cluster
	}
	devices, err := (&rbd.Host{Run: run}).Devices(ctx)
	for _, m := range devices {
		i := get(m.Spec)
		i.mapped = append(i.mapped, m)
	}
	return all, errors.Join(bad, err)
}

// imageDevices tells doctor which devices are images, and how to grow them.
func imageDevices(run *host.Runner) func(context.Context) ([]doctor.Image, error) {
	return func(ctx context.Context) ([]doctor.Image, error) {
		all, err := cephImages(ctx, run)
		var images []doctor.Image
		for _, i := range all {
			var flags []string
			c := i.cluster
			for _, f := range [][]string{{"--ceph-conf", c.Conf}, {"--ceph-mon", strings.Join(c.Mons, ",")}, {"--ceph-user", c.User}, {"--ceph-keyring", c.Keyring}, {"--ceph-keyfile", c.KeyFile}} {
				if f[1] != "" {
					flags = append(flags, f...)
				}
			}
			for _, m := range i.mapped {
				images = append(images, doctor.Image{Device: m.Device, Name: i.spec.String(), Flags: flags})
			}
		}
		return images, err
	}
}

func lookRBDMap(ctx context.Context, h *doctor.Host) doctor.Finding {
	all, err := cephImages(ctx, h.Runner)
	if err != nil {
		return doctor.Finding{Outcome: doctor.Unknown, Saw: err.Error()}
	}
	wanted, err := fstabImages()
	if err != nil {
		return doctor.Finding{Outcome: doctor.Unknown, Saw: err.Error()}
	}
	f := doctor.Finding{Outcome: doctor.OK}
	add := func(mend, format string, args ...any) {
		f.Outcome, f.Saw = doctor.Warning, strings.TrimPrefix(f.Saw+"; "+fmt.Sprintf(format, args...), "; ")
		if mend != "" && !slices.Contains(f.Mend, mend) {
			f.Mend = append(f.Mend, mend)
		}
	}
	n, byMap := 0, false
	for _, i := range all {
		if !i.byMap && !i.served {
			continue
		}
		n, byMap = n+1, byMap || i.byMap
		keys := i.cluster.Keyring + i.cluster.KeyFile // one of them at most
		switch _, err := os.Stat(keys); {
		case len(i.mapped) == 0 && i.byMap:
			add("systemctl reload rbdmap", "%s is not mapped", i.spec)
		case len(i.mapped) == 0 || i.mapped[0].Dead:
			add("systemctl restart "+rbd.UnitName(i.spec), "%s is not served", i.spec)
		case keys != "" && err != nil:
			add("put the key there", "the key of %s, %s, is not there", i.spec, keys)
		}
	}
	for _, w := range wanted {
		if !slices.ContainsFunc(all, func(i *cephImage) bool { return i.spec == w.spec && (i.byMap || i.served) }) {
			add("add a line for it to "+rbd.RBDMap, "line %d of /etc/fstab mounts %s, and nothing maps it at a boot", w.line, w.spec)
		}
	}
	if byMap && host.HasSystemd() {
		if state, err := unitFile(ctx, "rbdmap.service"); err != nil {
			return doctor.Finding{Outcome: doctor.Unknown, Saw: err.Error()}
		} else if state != "enabled" {
			add("systemctl enable rbdmap.service", "rbdmap.service is %s", state)
		}
	}
	switch {
	case f.Outcome != doctor.OK:
	case n == 0:
		return doctor.Finding{Outcome: doctor.Absent, Saw: "no image of Ceph is to be mapped here"}
	default:
		f.Saw = fmt.Sprintf("%d images, all mapped", n)
	}
	return f
}

func unitFile(ctx context.Context, unit string) (string, error) {
	b, err := host.SystemBus(ctx)
	if err != nil {
		return "", err
	}
	defer b.Close()
	s, err := b.UnitState(ctx, unit)
	if s.File == "" {
		s.File = "not there"
	}
	return s.File, err
}

// wantedImage is an image that a line of fstab mounts.
type wantedImage struct {
	spec rbd.Spec
	line int
}

func fstabImages() ([]wantedImage, error) {
	b, err := os.ReadFile("/etc/fstab")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	lines, err := host.ParseFstab(b)
	if err != nil {
		return nil, err
	}
	var all []wantedImage
	for _, l := range lines {
		name, is := strings.CutPrefix(l.Source, "/dev/rbd/")
		if spec, err := rbd.ParseSpec(name); is && err == nil {
			all = append(all, wantedImage{spec, l.Line})
		}
	}
	return all, nil
}

// cephClusters are the clusters of this host: those of its images, and those whose
// configuration lies in /etc/ceph, each as a user whose key is here.
func cephClusters(images []*cephImage) ([]cephlink.Cluster, error) {
	var all []cephlink.Cluster
	for _, i := range images {
		if !slices.ContainsFunc(all, func(c cephlink.Cluster) bool {
			return c.ConfPath() == i.cluster.ConfPath() && slices.Equal(c.Mons, i.cluster.Mons)
		}) {
			all = append(all, i.cluster)
		}
	}
	confs, err := filepath.Glob("/etc/ceph/*.conf")
	if err != nil {
		return all, err
	}
	for _, conf := range confs {
		if slices.ContainsFunc(all, func(c cephlink.Cluster) bool { return c.ConfPath() == conf }) {
			continue
		}
		name := strings.TrimSuffix(filepath.Base(conf), ".conf")
		begin := filepath.Join("/etc/ceph", name+".client.")
		keys, err := filepath.Glob(begin + "*.keyring")
		if err != nil || len(keys) == 0 {
			continue // a configuration alone: no client of this cluster
		}
		c := cephlink.Cluster{Conf: conf, Keyring: keys[0]}
		if admin := begin + "admin.keyring"; slices.Contains(keys, admin) {
			c.Keyring = admin
		}
		c.User = strings.TrimSuffix(strings.TrimPrefix(c.Keyring, begin), ".keyring")
		all = append(all, c)
	}
	return all, nil
}

// cephUnknown is the finding where a cluster could not be asked.
func cephUnknown(err error) doctor.Finding {
	f := doctor.Finding{Outcome: doctor.Unknown, Saw: err.Error()}
	if hint := cephlink.HintOf(err); hint != "" {
		f.Mend = []string{hint}
	}
	return f
}

// onCluster asks a cluster something, within cephLimit.
func onCluster(ctx context.Context, c cephlink.Cluster, ask func(context.Context, *cephlink.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, cephLimit)
	defer cancel()
	link, err := cephlink.Start(ctx, cephlink.Options{Cluster: c, ConnectTime: cephLimit / 2})
	if err != nil {
		return err
	}
	return errors.Join(ask(ctx, link), link.Close())
}

func lookCephHealth(ctx context.Context, h *doctor.Host) doctor.Finding {
	images, err := cephImages(ctx, h.Runner)
	if err != nil {
		return cephUnknown(err)
	}
	clusters, err := cephClusters(images)
	if err != nil {
		return cephUnknown(err)
	}
	if len(clusters) == 0 {
		return doctor.Finding{Outcome: doctor.Absent, Saw: "this host uses no Ceph: there is no key beside a ceph.conf in /etc/ceph, and no image"}
	}
	f := doctor.Finding{Outcome: doctor.OK}
	var saw []string
	for _, c := range clusters {
		var r ceph.Report
		err := onCluster(ctx, c, func(ctx context.Context, link *cephlink.Client) (err error) {
			r, err = ceph.Judge(ctx, link, ceph.Query{})
			return err
		})
		one := clusterFinding(c, r, err)
		saw, f.Mend = append(saw, one.Saw), append(f.Mend, one.Mend...)
		if one.Outcome.Worse(f.Outcome) {
			f.Outcome = one.Outcome
		}
	}
	f.Saw = strings.Join(saw, "; ")
	return f
}

func clusterFinding(c cephlink.Cluster, r ceph.Report, err error) doctor.Finding {
	if err != nil {
		return cephUnknown(err)
	}
	f := doctor.Finding{Outcome: doctor.OK, Saw: fmt.Sprintf("%s: %s", r.FSID, r.Health)}
	for _, p := range r.Problems {
		code := strings.ToUpper(strings.ReplaceAll(strings.TrimPrefix(p.ID, "health-"), "-", "_"))
		if slices.ContainsFunc(r.Checks, func(c ceph.Check) bool { return c.Muted && c.Code == code }) {
			continue // somebody knows, and said so
		}
		o := doctor.Warning
		switch {
		case p.Fatal || slices.ContainsFunc(r.Checks, func(c ceph.Check) bool { return c.Code == code && c.Severity == "HEALTH_ERR" }):
			o = doctor.Problem
		case strings.HasSuffix(p.ID, "-unknown"):
			o = doctor.Unknown
		}
		if o.Worse(f.Outcome) {
			f.Outcome = o
		}
		f.Saw += "; " + p.Text
		if p.Hint != "" && !slices.Contains(f.Mend, p.Hint) {
			f.Mend = append(f.Mend, p.Hint)
		}
	}
	if f.Outcome.Worse(doctor.OK) && len(f.Mend) == 0 {
		f.Mend = []string{strings.Join(append([]string{"ceph"}, append(c.Args(), "health", "detail")...), " ")}
	}
	return f
}

func lookWatchers(ctx context.Context, h *doctor.Host) doctor.Finding {
	images, err := cephImages(ctx, h.Runner)
	if err != nil {
		return cephUnknown(err)
	}
	if len(images) == 0 {
		return doctor.Finding{Outcome: doctor.Absent, Saw: "no image of Ceph is mapped here, or to be"}
	}
	f := doctor.Finding{Outcome: doctor.OK, Saw: fmt.Sprintf("%d images, none of which anybody else has", len(images))}
	var saw []string
	for len(images) > 0 { // those of one cluster after the other
		c := images[0].cluster
		var rest []*cephImage
		err := onCluster(ctx, c, func(ctx context.Context, link *cephlink.Client) error {
			on := &rbd.Host{Link: link, Run: h.Runner}
			for _, i := range images {
				if !slices.Equal(i.cluster.Args(), c.Args()) {
					rest = append(rest, i)
					continue
				}
				img, err := on.Look(ctx, i.spec)
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				if one := imageFinding(i, img, err); one.Outcome != doctor.OK {
					saw, f.Mend = append(saw, one.Saw), append(f.Mend, one.Mend...)
					if one.Outcome.Worse(f.Outcome) {
						f.Outcome = one.Outcome
					}
				}
			}
			return nil
		})
		if err != nil && !f.Outcome.Worse(doctor.Unknown) {
			return cephUnknown(err)
		}
		if err != nil {
			break // what was found so far is worse
		}
		images = rest
	}
	if len(saw) > 0 {
		f.Saw = strings.Join(saw, "; ")
	}
	return f
}

// imageFinding judges who has an image. missing: it is not in the cluster.
func imageFinding(i *cephImage, img rbd.Image, missing error) doctor.Finding {
	status := "rbd " + strings.Join(append(i.cluster.Args(), "status", i.spec.String()), " ")
	foreign := strings.Join(img.Foreign(), ", ")
	switch {
	case missing != nil:
		return doctor.Finding{Outcome: doctor.Problem, Saw: missing.Error(), Mend: []string{"take it out of " + rbd.RBDMap + " and /etc/fstab, or see who removed it"}}
	case len(i.mapped) > 1:
		return doctor.Finding{Outcome: doctor.Problem, Saw: fmt.Sprintf("image %s is mapped %d times here", i.spec, len(i.mapped)), Mend: []string{"rbd device unmap all of them but the one that is mounted"}}
	case foreign == "":
		return doctor.Finding{Outcome: doctor.OK}
	case img.Dead():
		return doctor.Finding{Outcome: doctor.Warning, Saw: fmt.Sprintf("image %s: %s", i.spec, foreign),
			Mend: []string{status, "if that host is off for good: rbd lock rm, or storagectl relocate --rbd " + i.spec.String() + " --take-over"}}
	case len(i.mapped) > 0:
		return doctor.Finding{Outcome: doctor.Problem, Saw: fmt.Sprintf("image %s is mapped here, and %s", i.spec, foreign), Mend: []string{status, "unmap it on all hosts but one, at once"}}
	}
	return doctor.Finding{Outcome: doctor.Warning, Saw: fmt.Sprintf("image %s is to be mapped here, and %s", i.spec, foreign), Mend: []string{status, "unmap it there, or take it out of " + rbd.RBDMap + " here"}}
}
