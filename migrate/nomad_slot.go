package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/engine"
)

// takeSlot waits for a slot and keeps it as long as this process lives.
func (s *Session) takeSlot(ctx context.Context) error {
	c, err := s.nomad()
	if err != nil {
		return err
	}
	out := s.Inputs.Request.Outage
	ctx, cancel := context.WithTimeout(ctx, out.SlotWait)
	defer cancel()
	mine, err := s.keptSlot()
	if err != nil {
		return err
	}
	lease, err := c.AcquireSlot(ctx, drain.SlotOptions{Path: out.SlotPath, Slots: out.Slots, Run: s.ID, Owner: s.Inputs.Nomad.Operator, Mine: mine,
		Waiting: func(slots []drain.Slot) {
			for _, sl := range slots {
				if sl.Held && s.env.Note != nil {
					s.env.Note(fmt.Sprintf("slot %s is held by %s (run %s) since %s", sl.Path, sl.Owner, sl.Run, sl.Since.Format(time.RFC3339)))
				}
			}
		}})
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return &Refusal{ID: "no-slot", Text: err.Error(), Hint: "wait until another node is done (storagectl status --cluster), or allow more with --slots"}
		}
		return RefusedBy(err)
	}
	s.lease = lease
	if s.env.Point != nil {
		s.env.Point("before slot-file")
	}
	b, err := json.Marshal(lease.Ref)
	if err == nil {
		err = renameio.WriteFile(s.slotFile(), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot remember the slot: %w", err)
	}
	return nil
}

// slotFile remembers the slot over a crash. It is no fact: a slot comes and goes.
func (s *Session) slotFile() string { return filepath.Join(s.env.Dir.RunPath(s.ID), "slot.json") }

// keptSlot is the slot that the run has, or had when it was cut off; nil: none.
func (s *Session) keptSlot() (*drain.SlotRef, error) {
	b, err := os.ReadFile(s.slotFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var ref drain.SlotRef
	if err == nil {
		err = json.Unmarshal(b, &ref)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read which slot the run has: %w", err)
	}
	return &ref, nil
}

// holdsSlot says whether this process holds the slot. One that was lost in the
// middle is an error: the run stops before its next change. A way back on a node
// that is still out of service needs none: it ends an outage, and begins none. Nor does
// one that the maintenance window sends back.
func (s *Session) holdsSlot(ctx context.Context) (bool, error) {
	if s.retreating() {
		return true, nil
	}
	st := s.journal.State()
	if mark := st.Steps[stepUndrain].Mark; st.Phase == engine.PhaseRollingBack && (mark == engine.MarkNone || mark == engine.MarkUndone) {
		return true, nil
	}
	return s.lease != nil, s.lostSlot(ctx)
}

func (s *Session) lostSlot(ctx context.Context) error {
	if s.lease == nil {
		return nil
	}
	return s.lease.Check(ctx)
}

func (s *Session) slotBack(ctx context.Context) error {
	c, err := s.nomad()
	if err != nil {
		return err
	}
	if s.lease != nil {
		s.lease.Leave()
		s.lease = nil
	}
	ref, err := s.keptSlot()
	if err != nil || ref == nil {
		return err
	}
	if err := c.ReleaseSlot(ctx, *ref); err != nil {
		return err
	}
	if err := os.Remove(s.slotFile()); err != nil {
		return fmt.Errorf("cannot forget the slot: %w", err)
	}
	return nil
}

func (s *Session) slotGone(context.Context) (bool, error) {
	ref, err := s.keptSlot()
	return ref == nil, err
}
