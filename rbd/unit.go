package rbd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/storagectl/storagectl/internal/host"
)

const (
	unitDir   = "/etc/systemd/system"
	configDir = "/etc/storagectl/rbd" // what the units serve
	wantedBy  = "remote-fs.target"
)

// UnitName is the systemd service that serves an image by mapper fuse or nbd, where
// MapOptions.Unit asked for one: what a mount of the image must require.
func UnitName(spec Spec) string {
	return "storagectl-rbd-" + spec.name() + ".service"
}

func unitPaths(spec Spec) (unitFile, config string) {
	return filepath.Join(unitDir, UnitName(spec)), filepath.Join(configDir, spec.name()+".json")
}

// Served are the images that a service of this host serves by mapper fuse, now and at
// a boot.
func Served() ([]ServeRequest, error) {
	files, err := filepath.Glob(filepath.Join(configDir, "*.json"))
	var all []ServeRequest
	for _, path := range files {
		var q ServeRequest
		b, rerr := os.ReadFile(path)
		if errors.Is(rerr, fs.ErrNotExist) {
			continue // taken away meanwhile
		}
		if rerr == nil {
			rerr = json.Unmarshal(b, &q)
		}
		if rerr != nil {
			err = errors.Join(err, fmt.Errorf("cannot read %s: %w", path, rerr))
			continue
		}
		all = append(all, q)
	}
	return all, err
}

// AtBoot names the file by which this host maps the image at a boot, by whatever hand it
// was written: a line of [RBDMap], or what a service of ours serves. "" means none.
func AtBoot(spec Spec) (string, error) {
	text, err := os.ReadFile(RBDMap)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if there, _ := HasEntry(text, spec); there {
		return RBDMap, nil
	}
	_, config := unitPaths(spec)
	// Cut off before it was enabled, no boot starts it.
	_, err = os.Lstat(filepath.Join(unitDir, wantedBy+".wants", UnitName(spec)))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return config, err
}

// unitText is the service. It starts when the network is up; what mounts the image
// requires it and comes after it, and so it stops after that is gone. Were it killed
// before, what is mounted could not be written back.
//
// It may take wait to start, and nothing else of the boot waits for it, as targets do by
// default: before remote-fs.target is reached nobody but root can log in.
func unitText(spec Spec, helper, config string, wait time.Duration) string {
	esc := func(s string) string {
		return strings.NewReplacer(`%`, `%%`, `\`, `\\`, `"`, `\"`, `$`, `$$`).Replace(s)
	}
	return fmt.Sprintf(`# Written by storagectl; storagectl removes it.
[Unit]
Description=RBD image %s as a block device
DefaultDependencies=no
Requires=sysinit.target
Wants=network-online.target
After=sysinit.target basic.target network-online.target nss-lookup.target
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=notify
NotifyAccess=main
ExecStart="%s" rbd-serve "%s"
KillMode=mixed
TimeoutStartSec=%d
TimeoutStopSec=180
OOMScoreAdjust=-1000

[Install]
WantedBy=%s
`, strings.ReplaceAll(spec.String(), "%", "%%"), esc(helper), esc(config), int((wait + 2*time.Minute).Seconds()), wantedBy)
}

// serveByUnit starts the service of an image, and lets it come back at boot.
func (h *Host) serveByUnit(ctx context.Context, spec Spec, opts MapOptions) (Mapping, error) {
	if !host.HasSystemd() {
		return Mapping{}, errors.New("systemd does not run here")
	}
	file, config := unitPaths(spec)
	order := h.serveRequest(spec)
	order.Wait = int(opts.Wait.Seconds())
	if opts.Mapper == NBD {
		order.Mapper = NBD
	}
	req, err := json.MarshalIndent(order, "", "  ")
	if err != nil {
		return Mapping{}, err
	}
	if err := os.MkdirAll(configDir, 0o755); err != nil {
		return Mapping{}, err
	}
	if err := renameio.WriteFile(config, append(req, '\n'), 0o600); err != nil {
		return Mapping{}, err
	}
	if err := renameio.WriteFile(file, []byte(unitText(spec, h.Link.Path, config, opts.Wait)), 0o644); err != nil {
		return Mapping{}, err
	}
	// The store will be where only they bring it back: their names must outlive a power cut.
	if err := errors.Join(host.SyncDir(configDir), host.SyncDir(filepath.Dir(configDir)), host.SyncDir(unitDir)); err != nil {
		return Mapping{}, err
	}
	for _, args := range [][]string{{"daemon-reload"}, {"enable", UnitName(spec)}, {"restart", UnitName(spec)}} {
		if err := h.systemctl(ctx, args...); err != nil {
			words := h.lastWords(ctx, spec)
			return Mapping{}, errors.Join(fmt.Errorf("%w%s", err, words), h.stopUnit(context.WithoutCancel(ctx), spec))
		}
	}
	if err := host.SyncDir(filepath.Join(unitDir, wantedBy+".wants")); err != nil {
		return Mapping{}, errors.Join(err, h.stopUnit(context.WithoutCancel(ctx), spec))
	}
	now, err := h.served()
	if err != nil {
		return Mapping{}, err
	}
	for _, m := range now {
		if m.Spec == spec && !m.Dead {
			return m, nil
		}
	}
	return Mapping{}, fmt.Errorf("%s runs, but serves nothing", UnitName(spec))
}

// lastWords is what a service that failed wrote.
func (h *Host) lastWords(ctx context.Context, spec Spec) string {
	out, err := h.Run.Run(context.WithoutCancel(ctx), host.Cmd{Env: toolEnv(), Timeout: 10 * time.Second,
		Argv: []string{"journalctl", "--no-pager", "--output=cat", "--lines=5", "--unit=" + UnitName(spec)}})
	if out = bytes.TrimSpace(out); err != nil || len(out) == 0 {
		return ""
	}
	return "; it said: " + string(out)
}

// Forget stops the service that serves an image by mapper fuse or nbd, and keeps it from
// coming back at a boot. It needs no cluster; where there is none it does nothing.
func (h *Host) Forget(ctx context.Context, spec Spec) error { return h.stopUnit(ctx, spec) }

// stopUnit stops and removes the service of an image, where there is one.
func (h *Host) stopUnit(ctx context.Context, spec Spec) error {
	file, config := unitPaths(spec)
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := h.systemctl(ctx, "disable", "--now", UnitName(spec)); err != nil {
		return err
	}
	for _, f := range []string{file, config} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return h.systemctl(ctx, "daemon-reload")
}

func (h *Host) systemctl(ctx context.Context, args ...string) error {
	_, err := h.Run.Run(ctx, host.Cmd{Argv: append([]string{"systemctl"}, args...), Env: toolEnv(), Timeout: unmapTime + time.Minute})
	return err
}
