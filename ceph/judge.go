// Package ceph looks at a Ceph cluster before anything is put into it, makes
// places in a CephFS, and mounts them.
package ceph

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/storagectl/storagectl/internal/cephlink"
)

// Query says what of a cluster is to be judged.
type Query struct {
	Pool      string `json:"pool,omitempty"`      // of an image
	Namespace string `json:"namespace,omitempty"` // in that pool
	DataPool  string `json:"dataPool,omitempty"`  // of the image's data, where another
	FS        string `json:"fs,omitempty"`        // a CephFS
	Need      int64  `json:"need,omitempty"`      // bytes that must fit
	TakeOver  bool   `json:"takeOver,omitempty"`  // dead clients are to be shut out
}

// Check is one entry of the cluster's own health report.
type Check struct {
	Code     string   `json:"code"`     // such as OSD_NEARFULL
	Severity string   `json:"severity"` // HEALTH_WARN or HEALTH_ERR
	Summary  string   `json:"summary"`
	Detail   []string `json:"detail,omitempty"`
	Muted    bool     `json:"muted,omitempty"`
}

// Pool is what is known of a pool.
type Pool struct {
	Name     string `json:"name"`
	ID       int64  `json:"id"`
	Size     int    `json:"size"` // replicas, or shards
	MinSize  int    `json:"minSize"`
	Erasure  bool   `json:"erasure,omitempty"`
	Free     int64  `json:"free"`            // bytes that fit, as df's max_avail; -1 where it may not be asked
	Quota    int64  `json:"quota,omitempty"` // bytes; 0: none
	Used     int64  `json:"used"`            // bytes stored
	CanWrite bool   `json:"canWrite"`
}

// FS is what is known of a CephFS.
type FS struct {
	Name      string   `json:"name"`
	ID        int64    `json:"id"`
	Active    int      `json:"active"` // MDS that serve it
	DataPools []string `json:"dataPools"`
}

// Problem is one thing in the way, or worth knowing.
type Problem struct {
	ID    string `json:"id"`   // lasting, for programs
	Text  string `json:"text"` // one sentence
	Hint  string `json:"hint,omitempty"`
	Fatal bool   `json:"fatal"` // nothing should be begun
}

// Report is the judgement of a cluster.
type Report struct {
	FSID    string  `json:"fsid"`
	Release string  `json:"release,omitempty"` // oldest of the monitors, such as 16.2.15
	Health  string  `json:"health"`            // HEALTH_OK, HEALTH_WARN, HEALTH_ERR; "" where it may not be asked
	Checks  []Check `json:"checks,omitempty"`
	Pools   []Pool  `json:"pools,omitempty"`
	FS      *FS     `json:"fs,omitempty"`
	MayTake bool    `json:"mayTake"` // it may put dead clients on the blocklist

	Problems []Problem `json:"problems"`
}

// Fatal lists the problems that forbid to begin.
func (r Report) Fatal() []Problem {
	var w []Problem
	for _, p := range r.Problems {
		if p.Fatal {
			w = append(w, p)
		}
	}
	return w
}

// Full reports whether nothing more can be written because there is no room.
func (r Report) Full() bool {
	return slices.ContainsFunc(r.Problems, func(p Problem) bool {
		return slices.Contains([]string{"cluster-full", "pool-full", "pool-full-quota", "health-osd-full"}, p.ID)
	})
}

// Facts are the cluster's answers as the helper brings them.
type Facts struct {
	FSID     string            `json:"fsid"`
	Answers  map[string]Answer `json:"answers"`  // by the command's words, such as "osd dump"
	Writable map[string]int    `json:"writable"` // by pool: 0, or the number of the error
	MayBlock int               `json:"mayBlock"` // likewise
}

// Answer is a monitor's answer to one command.
type Answer struct {
	Out   json.RawMessage `json:"out,omitempty"`
	Errno int             `json:"errno,omitempty"`
}

// Judge asks a cluster how it is, and what of this user's needs it would refuse.
// It changes nothing: that an object can be written is tried by removing one
// that is not there, and the right to the blocklist by an address that is none.
func Judge(ctx context.Context, link *cephlink.Client, q Query) (Report, error) {
	var f Facts
	if err := link.Call(ctx, "ceph.facts", q, &f); err != nil {
		return Report{}, fmt.Errorf("cannot judge the Ceph cluster: %w", err)
	}
	r, err := judge(q, f)
	if err != nil {
		return r, fmt.Errorf("cannot judge the Ceph cluster: %w", err)
	}
	return r, nil
}
