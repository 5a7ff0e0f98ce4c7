package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/rbd"
)

// This file is about a target on Ceph whose cluster is ill while a run works on it.

// standsAfter is how long a work may stand still before the cluster is asked why.
const standsAfter = 30 * time.Second

// onCluster is how the cluster is reached that the target lies on, and what of it
// matters to the target; ok is false where it lies on none that is known.
func (t *Target) onCluster() (c cephlink.Cluster, q ceph.Query, ok bool) {
	switch {
	case t == nil:
	case t.Image != nil:
		return t.Image.Cluster, ceph.Query{Pool: t.Image.Spec.Pool, Namespace: t.Image.Spec.Namespace, DataPool: t.Image.DataPool}, true
	case t.Place != nil:
		return t.Place.Cluster, ceph.Query{FS: t.Place.Place.FS}, true
	}
	return c, q, false
}

// onTarget has the worker do something that reads or writes the target. To whoever does
// that, all that is wrong with a cluster is an I/O error, or no answer: so an error gets
// what the cluster has to say, and where nothing goes on any more the cluster is asked
// why. If it is full then, the work is given up. That it is full is an error like any
// other and no refusal: with room again the run can be resumed.
func (s *Session) onTarget(ctx context.Context, op string, args, result any, progress func(json.RawMessage)) error {
	c, q, ok := s.Inputs.Target.onCluster()
	if !ok {
		return s.worker.Call(ctx, op, args, result, progress)
	}
	judge := func(ctx context.Context) (r ceph.Report, err error) {
		err = withCeph(ctx, s.env.Runner, c, func(h *rbd.Host) error {
			r, err = ceph.Judge(ctx, h.Link, q)
			return err
		})
		return r, err
	}
	working, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	w := &standstill{after: standsAfter, ask: judge, note: s.note, giveUp: giveUp}
	err := s.worker.Call(working, op, args, result, func(raw json.RawMessage) {
		progress(raw)
		w.look(ctx, raw)
	})
	if err == nil || ctx.Err() != nil {
		return err
	}
	if working.Err() != nil { // how the worker ended says nothing more; the way back needs another
		return errors.Join(context.Cause(working), s.renewWorker(context.WithoutCancel(ctx)))
	}
	if kind := faultKind(err); kind != "" && kind != faultNoRoom {
		return err // of the store, and not of the target
	}
	r, jerr := judge(ctx)
	says := clusterSays(r, jerr)
	switch {
	case r.Full(): // no room is what it comes to, and not what it is
		return fmt.Errorf("%s: %s", says, err) //nolint:errorlint // its kind is not to be seen
	case says != "":
		return fmt.Errorf("%w; %s", err, says)
	}
	return err
}

// clusterSays is what a cluster says is wrong with it, "" if nothing.
func clusterSays(r ceph.Report, err error) string {
	var words []string
	for _, p := range r.Fatal() {
		words = append(words, p.Text)
	}
	if err != nil {
		words = append(words, err.Error())
	}
	return strings.Join(words, "; ")
}

// standstill sees, by what a worker tells of its progress, that a work stands still.
type standstill struct {
	after  time.Duration
	ask    func(context.Context) (ceph.Report, error)
	note   func(format string, args ...any) error
	giveUp context.CancelCauseFunc

	last  []byte
	since time.Time
	told  string // of what is not over
}

// look is called with all that the worker tells, which is twice a second or so.
func (w *standstill) look(ctx context.Context, raw json.RawMessage) {
	if !bytes.Equal(raw, w.last) {
		if w.told != "" {
			w.tell("", "it goes on")
		}
		w.last, w.since = bytes.Clone(raw), time.Now()
		return
	}
	if time.Since(w.since) < w.after {
		return
	}
	r, err := w.ask(ctx)
	w.since = time.Now()
	says := clusterSays(r, err)
	switch {
	case ctx.Err() != nil || says == "" || says == w.told:
	case r.Full():
		w.tell(says, "nothing was written for %s: %s; it is given up, and a write that hangs in the kernel keeps the run until there is room", brief.Time(w.after), says)
		w.giveUp(fmt.Errorf("nothing could be written for %s: %s", brief.Time(w.after), says))
	default:
		w.tell(says, "nothing goes on for %s: %s; it is waited for", brief.Time(w.after), says)
	}
}

// tell notes what is so from now on.
func (w *standstill) tell(told, format string, args ...any) {
	w.told = told
	if err := w.note(format, args...); err != nil {
		w.giveUp(err)
	}
}
