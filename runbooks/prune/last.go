package prune

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

// Last is what the last prune of a store came to, as it lies in the state directory:
// prune/STORE.json, for whoever makes metrics of it (docs/prune.md).
type Last struct {
	Time      time.Time    `json:"time"`
	Owner     string       `json:"owner"`
	GraphRoot string       `json:"graphRoot"`
	Parent    string       `json:"parent,omitempty"` // the task of a runbook that it was
	Seconds   float64      `json:"seconds"`
	ExitCode  int          `json:"exit_code"`
	Before    uint64       `json:"free_before"`
	After     uint64       `json:"free_after"`
	Freed     uint64       `json:"freed_bytes"`
	Removed   map[Kind]int `json:"removed"`
	Left      int          `json:"left"`
	Failed    int          `json:"failed"`
	// Nomad says that jobs of Nomad's were read for this store, once.
	Nomad bool `json:"nomad,omitempty"`
	// Seen tells when each image of the store was seen in use by a prune.
	Seen map[string]time.Time `json:"seen,omitempty"`
}

func lastPath(stateDir, store string) string {
	return filepath.Join(stateDir, "prune", store+".json")
}

// ReadLast reads what the last prune of a store left; where there was none, nothing.
// store is the name of the store's lock.
func ReadLast(stateDir, store string) (Last, error) {
	var l Last
	b, err := os.ReadFile(lastPath(stateDir, store))
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &l)
	}
	if err != nil {
		return Last{}, fmt.Errorf("cannot read what the last prune left: %w", err)
	}
	return l, nil
}

// Write puts it in the place of the one before, whole or not at all.
func (l Last) Write(stateDir, store string) error {
	b, err := json.Marshal(l)
	if err == nil {
		err = os.MkdirAll(filepath.Join(stateDir, "prune"), 0o700)
	}
	if err == nil {
		err = renameio.WriteFile(lastPath(stateDir, store), append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot keep what the prune came to: %w", err)
	}
	return nil
}

// See notes which images of a store are in use now, and forgets those that are gone.
func (l *Last) See(s State) {
	seen := map[string]time.Time{}
	for _, i := range s.Images {
		if at := l.Seen[i.ID]; !at.IsZero() {
			seen[i.ID] = at
		}
		for _, c := range s.Containers {
			if c.Image == i.ID && !over(c.Status) {
				seen[i.ID] = s.Now.UTC().Truncate(time.Second)
			}
		}
	}
	l.Seen = seen
}
