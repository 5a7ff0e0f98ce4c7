package ceph

import (
	"encoding/json"
	"slices"
	"syscall"
	"testing"
)

// good is a cluster without a fault, as Ceph 16 answers.
func good() Facts {
	return Facts{
		FSID: "f",
		Answers: map[string]Answer{
			"health":   {Out: json.RawMessage(`{"status":"HEALTH_OK","checks":{}}`)},
			"versions": {Out: json.RawMessage(`{"mon":{"ceph version 16.2.15 (x) pacific (stable)":2,"ceph version 16.2.9 (x) pacific (stable)":1}}`)},
			"osd dump": {Out: json.RawMessage(`{"flags":"sortbitwise,recovery_deletes","pools":[
				{"pool":1,"pool_name":"rbd","type":1,"flags_names":"hashpspool","size":3,"min_size":2,"quota_max_bytes":0},
				{"pool":2,"pool_name":"ec","type":3,"flags_names":"hashpspool,ec_overwrites","size":3,"min_size":2},
				{"pool":3,"pool_name":"data","type":1,"flags_names":"hashpspool","size":3,"min_size":2,"quota_max_bytes":1000}],
				"osds":[{"osd":0,"up":1,"in":1},{"osd":1,"up":1,"in":1},{"osd":2,"up":1,"in":1}]}`)},
			"df":      {Out: json.RawMessage(`{"pools":[{"name":"rbd","stats":{"stored":5,"max_avail":5000}},{"name":"ec","stats":{"stored":5,"max_avail":9000}},{"name":"data","stats":{"stored":400,"max_avail":9000}}]}`)},
			"fs dump": {Out: json.RawMessage(`{"filesystems":[{"id":1,"mdsmap":{"fs_name":"cephfs","flags":18,"data_pools":[3],"damaged":[],"info":{"gid_1":{"state":"up:active","rank":0}}}}]}`)},
		},
		Writable: map[string]int{"rbd": 0, "ec": 0, "data": 0},
	}
}

func with(f Facts, cmd, out string) Facts {
	f.Answers[cmd] = Answer{Out: json.RawMessage(out)}
	return f
}

func health(code, severity string) string {
	return `{"status":"` + severity + `","checks":{"` + code + `":{"severity":"` + severity + `","summary":{"message":"m"},"detail":[{"message":"d"}]}}}`
}

func dump(flags, poolFlags string, size, minSize string, osds string) string {
	return `{"flags":"` + flags + `","pools":[{"pool":1,"pool_name":"rbd","type":1,"flags_names":"` + poolFlags + `","size":` + size + `,"min_size":` + minSize + `}],"osds":` + osds + `}`
}

const upOne = `[{"osd":0,"up":1,"in":1},{"osd":1,"up":0,"in":1}]`

func TestJudge(t *testing.T) {
	rbd := Query{Pool: "rbd"}
	denied := func(cmd string) Facts {
		f := good()
		f.Answers[cmd] = Answer{Errno: int(syscall.EACCES)}
		return f
	}
	writable := func(n syscall.Errno) Facts {
		f := good()
		f.Writable["rbd"] = int(n)
		return f
	}
	noBlock := good()
	noBlock.MayBlock = int(syscall.EACCES)
	for name, c := range map[string]struct {
		q     Query
		f     Facts
		fatal []string
		warn  []string
	}{
		"good":            {Query{Pool: "rbd", FS: "cephfs", Need: 500}, good(), nil, nil},
		"room for images": {Query{Pool: "rbd", Need: 4000}, good(), nil, nil},
		"none for files":  {Query{FS: "cephfs", Need: 4000}, good(), []string{"pool-too-small"}, nil},
		"nearfull":        {rbd, with(good(), "health", health("OSD_NEARFULL", "HEALTH_WARN")), []string{"health-osd-nearfull"}, nil},
		"degraded":        {rbd, with(good(), "health", health("PG_DEGRADED", "HEALTH_WARN")), []string{"health-pg-degraded"}, nil},
		"inactive":        {rbd, with(good(), "health", health("PG_AVAILABILITY", "HEALTH_WARN")), []string{"health-pg-availability"}, nil},
		"a clock":         {rbd, with(good(), "health", health("MON_CLOCK_SKEW", "HEALTH_WARN")), nil, []string{"health-mon-clock-skew"}},
		"MDS, for images": {rbd, with(good(), "health", health("MDS_ALL_DOWN", "HEALTH_ERR")), nil, []string{"health-mds-all-down"}},
		"MDS, for files":  {Query{FS: "cephfs"}, with(good(), "health", health("MDS_ALL_DOWN", "HEALTH_ERR")), []string{"health-mds-all-down"}, nil},
		"paused":          {rbd, with(good(), "osd dump", dump("pauserd,pausewr", "", "1", "1", upOne)), []string{"cluster-pausewr", "cluster-pauserd"}, nil},
		"quota":           {rbd, with(good(), "osd dump", dump("", "hashpspool,full,full_quota", "1", "1", upOne)), []string{"pool-full", "pool-full-quota"}, nil},
		"min_size":        {rbd, with(good(), "osd dump", dump("", "", "3", "2", upOne)), []string{"pool-read-only"}, nil},
		"undersized":      {rbd, with(good(), "osd dump", dump("", "", "2", "1", upOne)), nil, []string{"pool-undersized"}},
		"too small":       {Query{Pool: "rbd", Need: 6000}, good(), []string{"pool-too-small"}, nil},
		"data pool":       {Query{Pool: "rbd", DataPool: "ec", Need: 6000}, good(), nil, nil},
		"quota too small": {Query{Pool: "data", Need: 601}, good(), []string{"pool-too-small"}, nil},
		"erasure":         {Query{Pool: "ec"}, good(), []string{"pool-erasure"}, nil},
		"no pool":         {Query{Pool: "gone"}, good(), []string{"no-pool"}, nil},
		"no fs":           {Query{FS: "gone"}, good(), []string{"no-fs"}, nil},
		"no mds":          {Query{FS: "cephfs"}, with(good(), "fs dump", `{"filesystems":[{"id":1,"mdsmap":{"fs_name":"cephfs","flags":18,"info":{"gid_1":{"state":"up:replay"}}}}]}`), []string{"fs-no-mds"}, nil},
		"offline":         {Query{FS: "cephfs"}, with(good(), "fs dump", `{"filesystems":[{"id":1,"mdsmap":{"fs_name":"cephfs","flags":19,"info":{}}}]}`), []string{"fs-offline"}, nil},
		"damaged":         {Query{FS: "cephfs"}, with(good(), "fs dump", `{"filesystems":[{"id":1,"mdsmap":{"fs_name":"cephfs","damaged":[0],"info":{}}}]}`), []string{"fs-damaged"}, nil},
		"no right":        {rbd, writable(syscall.EPERM), []string{"no-right"}, nil},
		"stuck":           {rbd, writable(syscall.ETIMEDOUT), []string{"pool-stuck"}, nil},
		"no blocklist":    {rbd, noBlock, nil, []string{"no-blocklist"}},
		"needs blocklist": {Query{Pool: "rbd", TakeOver: true}, noBlock, []string{"no-blocklist"}, nil},
		"health unknown":  {rbd, denied("health"), nil, []string{"health-unknown"}},
		"map unknown":     {rbd, denied("osd dump"), nil, []string{"map-unknown"}},
		"df unknown":      {rbd, denied("df"), nil, []string{"free-unknown"}},
	} {
		r, err := judge(c.q, c.f)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var fatal, warn []string
		for _, p := range r.Problems {
			if p.Fatal {
				fatal = append(fatal, p.ID)
			} else {
				warn = append(warn, p.ID)
			}
			if p.Text == "" {
				t.Errorf("%s: %s has no text", name, p.ID)
			}
		}
		if !slices.Equal(fatal, c.fatal) || !slices.Equal(warn, c.warn) {
			t.Errorf("%s: fatal %q, warnings %q; want %q and %q", name, fatal, warn, c.fatal, c.warn)
		}
		if len(r.Fatal()) != len(fatal) || r.Release != "16.2.9" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if _, err := judge(rbd, with(good(), "osd dump", `{"pools":7}`)); err == nil {
		t.Error("an answer that cannot be read is no answer")
	}
	broken := good()
	broken.Answers["health"] = Answer{Errno: int(syscall.ETIMEDOUT)}
	if _, err := judge(rbd, broken); err == nil {
		t.Error("a monitor that does not answer is a failure")
	}
}
