package ceph

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"syscall"
)

// judge makes the report of what the cluster answered.
func judge(q Query, f Facts) (Report, error) {
	j := &judging{q: q, f: f}
	j.r.FSID, j.r.Release, j.r.MayTake = f.FSID, f.release(), f.MayBlock == 0
	for _, part := range []func() error{j.health, j.pools, j.filesystem, j.rights} {
		if err := part(); err != nil {
			return j.r, err
		}
	}
	return j.r, nil
}

type judging struct {
	q    Query
	f    Facts
	r    Report
	dump dumpAnswer
}

func (j *judging) fatal(id, hint, format string, args ...any) {
	j.r.Problems = append(j.r.Problems, Problem{ID: id, Text: fmt.Sprintf(format, args...), Hint: hint, Fatal: true})
}

func (j *judging) warn(id, hint, format string, args ...any) {
	j.r.Problems = append(j.r.Problems, Problem{ID: id, Text: fmt.Sprintf(format, args...), Hint: hint})
}

// grave are the checks under which writes wait or fail, or a filesystem's data
// is at risk. What concerns pools and filesystems one by one is judged by their
// own entries; all else is a warning.
func grave(code string) bool {
	return slices.Contains([]string{
		"OSD_FULL", "OSD_BACKFILLFULL", "OSD_NEARFULL", "POOL_BACKFILLFULL", "POOL_NEARFULL",
		"PG_AVAILABILITY", "PG_DAMAGED", "OBJECT_UNFOUND", "PG_RECOVERY_FULL", "PG_BACKFILL_FULL",
		"OSD_SCRUB_ERRORS", "PG_DEGRADED", "PG_DEGRADED_FULL",
	}, code)
}

// ofFS are the checks of filesystems, grave only for who uses one.
func ofFS(code string) bool {
	return slices.Contains([]string{"FS_WITH_FAILED_MDS", "MDS_ALL_DOWN", "FS_DEGRADED", "MDS_DAMAGE", "MDS_HEALTH_READ_ONLY"}, code)
}

func (j *judging) health() error {
	var h healthAnswer
	ok, err := j.f.read("health", &h)
	if err != nil {
		return err
	}
	if !ok {
		j.warn("health-unknown", "ceph auth caps … mon 'profile rbd' or 'allow r' …", "the user may not ask for the cluster's health")
		return nil
	}
	j.r.Health = h.Status
	for code, c := range h.Checks {
		check := Check{Code: code, Severity: c.Severity, Summary: c.Summary.Message, Muted: c.Muted}
		for _, d := range c.Detail {
			check.Detail = append(check.Detail, d.Message)
		}
		j.r.Checks = append(j.r.Checks, check)
	}
	sort.Slice(j.r.Checks, func(a, b int) bool { return j.r.Checks[a].Code < j.r.Checks[b].Code })
	for _, c := range j.r.Checks {
		id := "health-" + strings.ToLower(strings.ReplaceAll(c.Code, "_", "-"))
		text := fmt.Sprintf("the cluster reports %s: %s", c.Code, c.Summary)
		if grave(c.Code) || ofFS(c.Code) && j.q.FS != "" {
			j.fatal(id, "ceph health detail", "%s", text)
		} else {
			j.warn(id, "", "%s", text)
		}
	}
	return nil
}

func (j *judging) pools() error {
	ok, err := j.f.read("osd dump", &j.dump)
	if err != nil {
		return err
	}
	if !ok {
		j.warn("map-unknown", "ceph auth caps … mon 'profile rbd' or 'allow r' …", "the user may not look at the cluster's map: its pools are not judged")
		return nil
	}
	flags := strings.Split(j.dump.Flags, ",")
	for _, flag := range []string{"pausewr", "pauserd", "full"} {
		if slices.Contains(flags, flag) {
			j.fatal("cluster-"+flag, "ceph osd unset "+strings.TrimSuffix(strings.TrimSuffix(flag, "wr"), "rd"), "the whole cluster has the flag %s: nothing is written", flag)
		}
	}
	if slices.Contains(flags, "nearfull") {
		j.fatal("cluster-nearfull", "ceph df", "the cluster is nearly full")
	}
	var df dfAnswer
	counted, err := j.f.read("df", &df)
	if err != nil {
		return err
	}
	for _, name := range j.names() {
		if err := j.pool(name, df, counted); err != nil {
			return err
		}
	}
	return nil
}

// names are the pools that data or metadata would go to.
func (j *judging) names() []string {
	var w []string
	for _, n := range []string{j.q.Pool, j.q.DataPool, j.f.FilesPool(j.q.FS)} {
		if n != "" && !slices.Contains(w, n) {
			w = append(w, n)
		}
	}
	return w
}

func (j *judging) pool(name string, df dfAnswer, counted bool) error {
	for _, p := range j.dump.PoolsList {
		if p.Name != name {
			continue
		}
		const erasure = 3
		out := Pool{Name: name, ID: p.ID, Size: p.Size, MinSize: p.MinSize, Erasure: p.Type == erasure, Quota: p.QuotaBytes, Free: -1}
		flags := strings.Split(p.Flags, ",")
		for _, flag := range []string{"full", "full_quota", "nearfull", "backfillfull"} {
			if slices.Contains(flags, flag) {
				j.fatal("pool-"+strings.ReplaceAll(flag, "_", "-"), "ceph df; ceph osd pool get-quota "+name, "pool %s is %s", name, strings.ReplaceAll(flag, "_", " by its "))
			}
		}
		if out.Erasure && name == j.q.Pool && j.q.DataPool == "" {
			j.fatal("pool-erasure", "give a replicated pool for the image and this one as its data pool", "pool %s is erasure coded: it cannot hold an image's metadata", name)
		}
		if out.Erasure && !slices.Contains(flags, "ec_overwrites") {
			j.fatal("pool-no-overwrites", "ceph osd pool set "+name+" allow_ec_overwrites true", "pool %s is erasure coded and does not allow what is written to be written again", name)
		}
		up := 0
		for _, o := range j.dump.OSDs {
			up += o.Up & o.In
		}
		if up < p.MinSize {
			j.fatal("pool-read-only", "ceph osd tree", "pool %s needs %d OSDs to be written to, and %d are up", name, p.MinSize, up)
		} else if up < p.Size {
			j.warn("pool-undersized", "ceph osd tree", "pool %s wants %d copies, and %d OSDs are up", name, p.Size, up)
		}
		for _, s := range df.Pools {
			if s.Name == name && counted {
				out.Free, out.Used = s.Stats.MaxAvail, s.Stats.Stored
				if p.QuotaBytes > 0 {
					out.Free = max(0, min(out.Free, p.QuotaBytes-out.Used))
				}
			}
		}
		last := name == j.q.DataPool || j.q.DataPool == ""
		switch {
		case out.Free < 0:
			j.warn("free-unknown", "", "the user may not ask how much is free in pool %s", name)
		case last && out.Free < j.q.Need:
			j.fatal("pool-too-small", "ceph df", "pool %s has room for %d bytes, and %d are needed", name, out.Free, j.q.Need)
		}
		out.CanWrite = j.f.Writable[name] == 0
		j.r.Pools = append(j.r.Pools, out)
		return nil
	}
	j.fatal("no-pool", "ceph osd pool ls", "there is no pool %q", name)
	return nil
}

func (j *judging) filesystem() error {
	if j.q.FS == "" {
		return nil
	}
	var a fsAnswer
	ok, err := j.f.read("fs dump", &a)
	if err != nil {
		return err
	}
	if !ok {
		j.warn("fs-unknown", "ceph fs authorize "+j.q.FS+" …", "the user may not ask for the state of CephFS")
		return nil
	}
	for _, fs := range a.Filesystems {
		m := fs.MDSMap
		if m.Name != j.q.FS {
			continue
		}
		j.r.FS = &FS{Name: m.Name, ID: fs.ID}
		for _, i := range m.Info {
			if i.State == "up:active" {
				j.r.FS.Active++
			}
		}
		for _, id := range m.DataPools {
			for _, p := range j.dump.PoolsList {
				if p.ID == id {
					j.r.FS.DataPools = append(j.r.FS.DataPools, p.Name)
				}
			}
		}
		const notJoinable = 1 // "ceph fs set NAME joinable false", or "ceph fs fail NAME"
		switch {
		case len(m.Damaged) > 0:
			j.fatal("fs-damaged", "ceph health detail", "the filesystem %s is damaged", m.Name)
		case j.r.FS.Active == 0 && m.Flags&notJoinable != 0:
			j.fatal("fs-offline", "ceph fs set "+m.Name+" joinable true", "the filesystem %s was taken offline", m.Name)
		case j.r.FS.Active == 0:
			j.fatal("fs-no-mds", "ceph fs status "+m.Name, "no MDS serves the filesystem %s", m.Name)
		}
		return nil
	}
	j.fatal("no-fs", "ceph fs ls", "there is no filesystem %q", j.q.FS)
	return nil
}

func (j *judging) rights() error {
	for _, name := range j.names() {
		n := j.f.Writable[name]
		num := syscall.Errno(n)
		switch {
		case n == 0, errors.Is(num, syscall.ENOENT): // the pool is missing, which was said
		case errors.Is(num, syscall.EPERM), errors.Is(num, syscall.EACCES):
			hint := fmt.Sprintf("ceph auth caps … mon 'profile rbd' osd 'profile rbd pool=%s'", name)
			if j.q.FS != "" {
				hint = "ceph fs authorize " + j.q.FS + " client.… PATH rw"
			}
			j.fatal("no-right", hint, "the user may not write to pool %s", name)
		case errors.Is(num, syscall.ETIMEDOUT):
			j.fatal("pool-stuck", "ceph -s; ceph pg dump_stuck", "pool %s does not answer", name)
		default:
			j.fatal("pool-broken", "ceph health detail", "pool %s cannot be written to: %v", name, num)
		}
	}
	if j.f.MayBlock != 0 {
		text := "the user may not put dead clients on the blocklist: after a crash of this host the image must be freed by hand"
		if j.q.TakeOver {
			j.fatal("no-blocklist", "ceph auth caps … mon 'profile rbd' …", "%s", text)
		} else if j.q.Pool != "" {
			j.warn("no-blocklist", "ceph auth caps … mon 'profile rbd' …", "%s", text)
		}
	}
	return nil
}
