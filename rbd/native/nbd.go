//go:build cgo

package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/cephlink"
	link "github.com/storagectl/storagectl/internal/cephlink/native"
	"github.com/storagectl/storagectl/rbd"
)

// nbd has rbd-nbd map the image. That holds the exclusive lock; this process keeps its
// device's name, and ends it in order.
func (s *served) nbd(ctx context.Context) error {
	// First whether the cluster answers: rbd waits five minutes for it, and says little.
	conn, err := link.Dial(s.req.Cluster, link.Limits{Connect: 30 * time.Second}, nil)
	if err != nil {
		return err
	}
	fsid, err := conn.GetFSID()
	conn.Shutdown()
	if err != nil {
		return fmt.Errorf("cannot tell the cluster's id: %w", err)
	}
	out, err := s.rbd(ctx, "map", "--exclusive", s.req.Spec.String())
	if err != nil {
		return err
	}
	s.mapping = rbd.Mapping{Spec: s.req.Spec, Mapper: rbd.NBD, FSID: fsid, Device: strings.TrimSpace(out)}
	if err := s.mapping.Process(os.Getpid()); err != nil {
		return err
	}
	s.rule(ctx, fmt.Sprintf("KERNEL==\"%s\"", pattern(filepath.Base(s.mapping.Device))))
	return s.show(ctx)
}

// endNBD unmaps the device, and refuses while it is in use.
func (s *served) endNBD(ctx context.Context) error {
	if s.mapping.Device != "" {
		if err := rbd.Unused(s.mapping.Device); err != nil {
			return err
		}
		if _, err := s.rbd(ctx, "unmap", s.mapping.Device); err != nil {
			return err
		}
	}
	err := rbd.CleanServe(ctx, s.req.Dir, s.req.State, s.req.Link)
	s.mapping.Device = ""
	return err
}

// rbd runs one of the verbs of "rbd device" for nbd.
func (s *served) rbd(ctx context.Context, verb string, more ...string) (string, error) {
	args := append(s.req.Cluster.Args(), "device", verb, "--device-type", string(rbd.NBD))
	cmd := exec.CommandContext(ctx, "rbd", append(args, more...)...)
	cmd.Env, cmd.WaitDelay = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, time.Second
	var words strings.Builder
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) { // rbd-nbd lives on, and may have its end of the pipe
		return "", &cephlink.Fault{Errno: cephlink.Errno(err), Text: fmt.Sprintf("cannot %s by rbd-nbd: %v: %s", verb, err, strings.TrimSpace(words.String()))}
	}
	return string(out), nil
}
