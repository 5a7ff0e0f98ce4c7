package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/rbd"
)

// This file is about /etc/ceph/rbdmap, by which a boot maps an image of krbd.

// editRBDMap changes /etc/ceph/rbdmap where a change is needed.
func (s *Session) editRBDMap(edit func([]byte) ([]byte, error)) error {
	before, err := os.ReadFile(rbd.RBDMap)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot read rbdmap: %w", err)
	}
	after, err := edit(before)
	if err != nil || bytes.Equal(before, after) {
		return err
	}
	if err := host.ReplaceFile(rbd.RBDMap, before, after); err != nil {
		return err
	}
	s.point("before after-rbdmap")
	return nil
}

// setRBDMap adds the image to those that the kernel's client maps at boot, or
// takes it out. The other mappers have units of their own for that.
func (s *Session) setRBDMap(ctx context.Context, on bool) error {
	t := s.Inputs.Target.Image
	if t.Mapper != rbd.Krbd {
		return nil
	}
	err := s.editRBDMap(func(now []byte) ([]byte, error) {
		if !on {
			return rbd.RemoveEntry(now, t.Spec)
		}
		return rbd.SetEntry(now, t.mapEntry())
	})
	if err != nil || !on || !s.Inputs.Systemd {
		return err
	}
	// Never restarted: its stop unmaps every image of the host.
	_, err = s.env.Runner.Run(ctx, host.Cmd{Argv: []string{"systemctl", "--no-reload", "enable", rbdMapUnit}, Timeout: time.Minute})
	return err
}

// rbdMapUnit maps the images of rbdmap at boot.
const rbdMapUnit = "rbdmap.service"

// inRBDMap observes that a boot maps the image.
func (s *Session) inRBDMap(ctx context.Context) (enabled bool, err error) {
	t := s.Inputs.Target.Image
	if t.Mapper != rbd.Krbd {
		return true, nil
	}
	text, err := os.ReadFile(rbd.RBDMap)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("cannot read rbdmap: %w", err)
	}
	if _, ours := rbd.HasEntry(text, t.Spec); !ours || !s.Inputs.Systemd {
		return ours, nil
	}
	err = s.onSystemBus(ctx, func(b *host.Bus) (err error) { enabled, err = b.Enabled(ctx, rbdMapUnit); return err })
	return enabled, err
}

// mapEntry is the image's line in rbdmap. It says no more of the cluster than the
// operator did: rbd finds the rest at a boot as it did in the run.
func (t *TargetImage) mapEntry() rbd.MapEntry {
	c := t.Cluster
	e := rbd.MapEntry{Spec: t.Spec, User: c.ID(), Keyring: c.Keyring, KeyFile: c.KeyFile, Conf: c.Conf, Mons: c.Mons, Options: []string{"exclusive"}}
	if len(c.Mons) > 0 { // a ceph.conf that lies about is of another cluster
		e.Conf = c.ConfPath()
	}
	return e
}
