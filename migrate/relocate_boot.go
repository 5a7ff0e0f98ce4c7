package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/rbd"
)

// This file is what a boot is told of a relocated store.

const fstabPath = "/etc/fstab"

// FstabFact is /etc/fstab as it was, and as the run wrote it.
type FstabFact struct {
	Before FileRef `json:"before"`
	After  FileRef `json:"after"`
}

func (s *Session) fstabLines() ([]host.FstabLine, error) {
	b, err := os.ReadFile(fstabPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot read fstab: %w", err)
	}
	lines, err := host.ParseFstab(b)
	return slices.DeleteFunc(lines, func(l host.FstabLine) bool { return l.Run != s.ID }), err
}

// bootMount is how the target is mounted by a boot.
func (s *Session) bootMount() (host.FstabEntry, host.FstabHow, error) {
	how := host.FstabHow{Boot: s.boots()}
	e := host.FstabEntry{Source: s.targetFolder(), Path: s.Inputs.Store.GraphRoot, Type: "none"}
	if !s.alone() {
		how.More = []string{"bind"}
		return e, how, nil
	}
	if s.onCephFS() {
		return s.bootPlace(e, how)
	}
	e.Source, e.Type = "UUID="+s.facts.Target.UUID, s.facts.Target.FSType
	if s.Inputs.Target.Kind == KindRBD {
		e.Source, how.Network = s.spec().Link(), true
		how.Wait = s.Inputs.Target.Image.wait()
		if s.Inputs.Target.Image.Mapper != rbd.Krbd {
			how.Requires = []string{rbd.UnitName(s.spec())}
		} else { // it fails with any other image of the host; the device itself is required in any case
			how.After = []string{rbdMapUnit}
		}
	}
	return e, how, nil
}

// lateCluster is how long a boot waits for an image: after a power cut of the whole
// site the cluster may be up long after this host.
const lateCluster = 15 * time.Minute

// wait is how long a boot waits for the image; 0, of a run of an earlier release: as
// long as systemd does by itself.
func (t *TargetImage) wait() time.Duration { return time.Duration(t.Wait) * time.Second }

// bootUnits are the units that mount the target, where fstab must not: others than
// root can change the path.
func (s *Session) bootUnits() ([]host.UnitFile, error) {
	e, how, err := s.bootMount()
	if err != nil {
		return nil, err
	}
	return host.MountUnitFiles(e, how, s.ID)
}

// hasBoot reports whether a boot will mount the target, and what uses the store
// will wait for that.
func (s *Session) hasBoot() (bool, error) {
	if s.alone() && s.facts.Target == nil {
		return false, nil
	}
	for _, d := range s.dropIns() {
		if there, err := host.HasDropIn("", d); err != nil || !there {
			return false, err
		}
	}
	if !s.Inputs.Target.Units {
		lines, err := s.fstabLines()
		return len(lines) > 0, err
	}
	units, err := s.bootUnits()
	if err != nil {
		return false, err
	}
	for _, u := range units {
		if there, err := host.HasUnitFile("", u); err != nil || !there {
			return false, err
		}
	}
	return true, nil
}

func (s *Session) setBoot(ctx context.Context) error {
	if !s.Inputs.Target.Units {
		return s.writeFstab(ctx)
	}
	units, err := s.bootUnits()
	if err != nil {
		return err
	}
	for _, u := range units {
		if err := host.WriteUnitFile("", u); err != nil {
			return err
		}
		s.point("before after-unit " + u.Name)
	}
	return nil
}

func (s *Session) unsetBoot(ctx context.Context) error {
	if s.facts.Fstab != nil {
		return s.revertFstab(ctx)
	}
	if !s.Inputs.Target.Units || s.alone() && s.facts.Target == nil {
		return nil
	}
	units, err := s.bootUnits()
	if err != nil {
		return err
	}
	for _, u := range units {
		if err := host.RemoveUnitFile("", u); err != nil {
			return err
		}
		s.point("before after-no unit " + u.Name)
	}
	return nil
}

func (s *Session) boots() bool {
	return s.Inputs.Request.Relocate.Mount == MountBoot || !s.Inputs.Systemd
}

func (s *Session) writeFstab(ctx context.Context) error {
	if lines, err := s.fstabLines(); err != nil || len(lines) > 0 {
		return err
	}
	before, err := os.ReadFile(fstabPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot read fstab: %w", err)
	}
	e, how, err := s.bootMount()
	if err != nil {
		return err
	}
	e.Options = host.FstabOptions(how)
	after, err := host.EditFstab(before, s.ID, []host.FstabEntry{e})
	if err != nil {
		return err
	}
	if s.facts.Fstab == nil { // of an earlier try it stands, whatever was changed since: the way back takes out our lines alone
		fact := FstabFact{}
		if fact.Before, err = s.keepFile("fstab-before", before); err != nil {
			return err
		}
		if fact.After, err = s.keepFile("fstab-after", after); err != nil {
			return err
		}
		if err := s.learn(func(f *Facts) { f.Fstab = &fact }); err != nil {
			return err
		}
	}
	warnings, err := s.env.Runner.WriteFstab(ctx, fstabPath, before, after)
	for _, w := range warnings {
		err = errors.Join(err, s.note("findmnt says of the new fstab: %s", w))
	}
	return err
}

// dropIns order what uses the store after its mount. The first is of a unit that
// is there; the others may not be on this host.
func (s *Session) dropIns() []host.DropIn {
	root := s.Inputs.Store.GraphRoot
	var ds []host.DropIn
	add := func(unit string) {
		there := slices.ContainsFunc(ds, func(d host.DropIn) bool { return d.Unit == unit })
		if d, ok := host.StoreDropIn(unit, s.ID, root); ok && !there {
			ds = append(ds, d)
		}
	}
	if !s.Inputs.Systemd {
		return nil
	}
	if s.Inputs.Owner.Rootful() {
		add("podman.service")
		add("podman-restart.service")
		add("podman-auto-update.service") // Debian has it look at each boot
	} else {
		add(fmt.Sprintf("user@%d.service", s.Inputs.Owner.UID))
	}
	if n := s.Inputs.Nomad; n != nil && len(n.Units) == 0 {
		add("nomad.service")
	} else if n != nil {
		for _, u := range n.Units {
			add(u)
		}
	}
	if s.facts.Units != nil {
		units := s.facts.Units.System
		if s.Inputs.Owner.Rootful() { // root's own manager is the system's
			units = s.facts.Units.Own
		}
		for _, u := range units {
			add(u)
		}
	}
	if img := s.Inputs.Target.Image; img != nil && img.Wait > 0 && s.Inputs.Target.Units {
		ds = append(ds, host.DeviceDropIn(img.Spec.Link(), s.ID, img.wait()))
	}
	if s.Inputs.Target.Trim {
		if d, ok := host.TrimDropIn(s.ID, root); ok {
			ds = append(ds, d)
		}
	}
	return ds
}

func (s *Session) revertFstab(ctx context.Context) error {
	before, err := s.keptFile(&s.facts.Fstab.Before)
	if err != nil {
		return err
	}
	after, err := s.keptFile(&s.facts.Fstab.After)
	if err != nil {
		return err
	}
	now, err := os.ReadFile(fstabPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot read fstab: %w", err)
	}
	want, err := host.RevertFstab(now, before, after, s.ID)
	if err != nil || string(want) == string(now) {
		return err
	}
	_, err = s.env.Runner.WriteFstab(ctx, fstabPath, now, want)
	return err
}
