package ceph

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
)

// The parts of the monitors' answers that count here, as Ceph 14 to 20 write
// them.

type healthAnswer struct {
	Status string `json:"status"`
	Checks map[string]struct {
		Severity string `json:"severity"`
		Summary  struct {
			Message string `json:"message"`
		} `json:"summary"`
		Detail []struct {
			Message string `json:"message"`
		} `json:"detail"`
		Muted bool `json:"muted"`
	} `json:"checks"`
}

type dumpAnswer struct {
	Flags     string  `json:"flags"`
	Full      float64 `json:"full_ratio"`
	NearFull  float64 `json:"nearfull_ratio"`
	PoolsList []struct {
		ID         int64  `json:"pool"`
		Name       string `json:"pool_name"`
		Type       int    `json:"type"` // 3: erasure coded
		Flags      string `json:"flags_names"`
		Size       int    `json:"size"`
		MinSize    int    `json:"min_size"`
		QuotaBytes int64  `json:"quota_max_bytes"`
	} `json:"pools"`
	OSDs []struct {
		ID int `json:"osd"`
		Up int `json:"up"`
		In int `json:"in"`
	} `json:"osds"`
}

type dfAnswer struct {
	Pools []struct {
		Name  string `json:"name"`
		Stats struct {
			Stored   int64 `json:"stored"`
			MaxAvail int64 `json:"max_avail"`
		} `json:"stats"`
	} `json:"pools"`
}

type fsAnswer struct {
	Filesystems []struct {
		ID     int64 `json:"id"`
		MDSMap struct {
			Name      string  `json:"fs_name"`
			Enabled   bool    `json:"enabled"`
			Flags     int     `json:"flags"`
			DataPools []int64 `json:"data_pools"`
			Failed    []int   `json:"failed"`
			Damaged   []int   `json:"damaged"`
			Info      map[string]struct {
				State string `json:"state"`
				Rank  int    `json:"rank"`
			} `json:"info"`
		} `json:"mdsmap"`
	} `json:"filesystems"`
}

// read stores a command's answer in out. asked is false where the monitors do
// not let this user ask.
func (f Facts) read(cmd string, out any) (asked bool, err error) {
	a, ok := f.Answers[cmd]
	if !ok {
		return false, fmt.Errorf("the helper did not ask for %s", cmd)
	}
	num := syscall.Errno(a.Errno)
	switch {
	case errors.Is(num, syscall.EACCES), errors.Is(num, syscall.EPERM):
		return false, nil
	case a.Errno != 0:
		return false, fmt.Errorf("cannot ask the monitors for %s: %w", cmd, num)
	}
	if err := json.Unmarshal(a.Out, out); err != nil {
		return false, fmt.Errorf("cannot read the monitors' answer to %s: %w", cmd, err)
	}
	return true, nil
}

// FilesPool is the pool that the data of a CephFS goes to where no folder says
// otherwise, "" where that is not known.
func (f Facts) FilesPool(fs string) string {
	var a fsAnswer
	var d dumpAnswer
	if fs == "" {
		return ""
	}
	if ok, err := f.read("fs dump", &a); !ok || err != nil {
		return ""
	}
	if ok, err := f.read("osd dump", &d); !ok || err != nil {
		return ""
	}
	for _, m := range a.Filesystems {
		for _, p := range d.PoolsList {
			if m.MDSMap.Name == fs && len(m.MDSMap.DataPools) > 0 && p.ID == m.MDSMap.DataPools[0] {
				return p.Name
			}
		}
	}
	return ""
}

// release is the oldest version in the answer to "versions", which counts
// daemons by their version's text.
func (f Facts) release() string {
	var v map[string]map[string]int
	if ok, err := f.read("versions", &v); !ok || err != nil {
		return ""
	}
	var all []string
	for text := range v["mon"] {
		if w := strings.Fields(text); len(w) > 2 {
			all = append(all, w[2])
		}
	}
	if len(all) == 0 {
		return ""
	}
	return slices.MinFunc(all, compareVersions)
}

// compareVersions compares dotted numbers.
func compareVersions(a, b string) int {
	x, y := numbers(a), numbers(b)
	return slices.Compare(x, y)
}

func numbers(s string) []int {
	var out []int
	for _, w := range strings.Split(s, ".") {
		n := 0
		for _, c := range w {
			if c < '0' || c > '9' {
				break
			}
			n = n*10 + int(c-'0')
		}
		out = append(out, n)
	}
	return out
}
