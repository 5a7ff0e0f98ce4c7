package drain

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"
)

// ErrNoNode reports that none of the cluster's nodes is this host's.
var ErrNoNode = errors.New("no Nomad node of this host")

// DownError reports a node of this host that Nomad does not hear of: nobody can
// drain it, and it may be back at any moment.
type DownError struct{ Node, ID string }

func (e *DownError) Error() string {
	return fmt.Sprintf("Nomad calls node %s (%s), which is this host's, down", e.Node, e.ID[:min(8, len(e.ID))])
}

// UnseenError reports clients of Nomad that run here and are not known to be any
// of the cluster's nodes.
type UnseenError struct{ Clients, Nodes int }

func (e *UnseenError) Error() string {
	return fmt.Sprintf("of the clients of Nomad that run here (%d processes), only %d can be told among the cluster's nodes", e.Clients, e.Nodes)
}

// ErrLost reports a slot that another may hold by now.
var ErrLost = errors.New("the maintenance slot is lost")

// RightsError reports what the token may not do, and the least policy that
// would lift that, as HCL.
type RightsError struct {
	Missing []string
	Policy  string
}

func (e *RightsError) Error() string {
	return "the Nomad token lacks rights: " + strings.Join(e.Missing, "; ")
}

// ForeignDrainError reports a node that is drained for somebody else.
type ForeignDrainError struct {
	Node, AccessorID string
	Meta             map[string]string
	Since            time.Time
}

func (e *ForeignDrainError) Error() string {
	return fmt.Sprintf("node %s is being drained by somebody else (%s%s) since %s", e.Node, accessor(e.AccessorID), metaText(e.Meta), e.Since.Format(time.RFC3339))
}

// CanceledError reports a drain that somebody stopped.
type CanceledError struct {
	Node, AccessorID string
	Meta             map[string]string
	At               time.Time
}

func (e *CanceledError) Error() string {
	return fmt.Sprintf("the drain of node %s was cancelled by %s%s at %s", e.Node, accessor(e.AccessorID), metaText(e.Meta), e.At.Format(time.RFC3339))
}

// EligibleError reports a node that takes work again though it should not.
type EligibleError struct{ Node string }

func (e *EligibleError) Error() string {
	return fmt.Sprintf("node %s was made eligible again by another hand", e.Node)
}

// ChangedError reports a node that came back with another id.
type ChangedError struct {
	Name, Was string
	Now       string // "": no node of that name is there
}

func (e *ChangedError) Error() string {
	if e.Now == "" {
		return fmt.Sprintf("node %s (%s) is gone from the cluster", e.Name, e.Was)
	}
	return fmt.Sprintf("node %s has another id: it was %s and is %s", e.Name, e.Was, e.Now)
}

// MovedError reports a node that another hand made eligible, or ineligible, since
// it was found.
type MovedError struct {
	Node     string
	Eligible bool // now
}

func (e *MovedError) Error() string {
	if e.Eligible {
		return fmt.Sprintf("node %s was made eligible by another hand since it was looked at", e.Node)
	}
	return fmt.Sprintf("node %s was made ineligible by another hand since it was looked at", e.Node)
}

// AliveError reports what still lives when the time is over.
type AliveError struct {
	Node       string
	Allocs     []string // job/id
	Containers []string
	Leftover   []string // those of Containers that no living allocation owns
	Draining   bool     // Nomad does not call the drain complete either
	Down       bool     // Nomad does not hear of the node
	Last       error
}

func (e *AliveError) Error() string {
	var w []string
	if e.Draining {
		w = append(w, "the drain is not complete")
	}
	if e.Down {
		w = append(w, "Nomad calls it down")
	}
	if len(e.Allocs) > 0 {
		w = append(w, "allocations are alive: "+strings.Join(e.Allocs, ", "))
	}
	if len(e.Containers) > 0 {
		w = append(w, "containers of Nomad are left: "+strings.Join(e.Containers, ", "))
	}
	if len(e.Leftover) > 0 {
		w = append(w, "no allocation that lives owns them, so that Nomad will not end them: as the store's owner, podman rm -f "+strings.Join(e.Leftover, " "))
	}
	if e.Last != nil {
		w = append(w, "Nomad was last heard with: "+e.Last.Error())
	}
	return fmt.Sprintf("node %s is not empty at the deadline: %s", e.Node, strings.Join(w, "; "))
}

func (e *AliveError) Unwrap() error { return e.Last }

// DriverError reports a node whose driver is not fit for work.
type DriverError struct{ Node, Driver, Why string }

func (e *DriverError) Error() string {
	return fmt.Sprintf("driver %s of node %s is not healthy: %s", e.Driver, e.Node, e.Why)
}

func accessor(id string) string {
	if id == "" {
		return "an unknown token"
	}
	return "accessor " + id
}

func metaText(m map[string]string) string {
	if len(m) == 0 {
		return ""
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for i, k := range keys {
		keys[i] = k + "=" + m[k]
	}
	return ", " + strings.Join(keys, " ")
}
