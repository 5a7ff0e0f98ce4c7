package migrate

import (
	"context"

	"github.com/storagectl/storagectl/internal/engine"
)

// Stopped reports whether the run has stopped podman and not started it again.
func (s *Session) Stopped() bool { return PodmanDown(s.journal.State()) }

// Reclaimable is how many bytes a commit frees now.
func (s *Session) Reclaimable(ctx context.Context) (uint64, error) {
	if s.relocating() {
		return ask[uint64](ctx, s, opReclaim, pathArg{s.aside()})
	}
	return ask[uint64](ctx, s, opReclaim, pathArg{s.folder()})
}

// State is the run as its journal tells it.
func (s *Session) State() engine.State { return s.journal.State() }

// Journal is the run's memory. It ends with the session.
func (s *Session) Journal() *engine.Journal { return s.journal }

// Facts is what the run has learned.
func (s *Session) Facts() Facts { return s.facts }
