package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// HasSystemd reports whether systemd is the init of this machine, as
// sd_booted(3) does.
func HasSystemd() bool {
	fi, err := os.Lstat("/run/systemd/system")
	return err == nil && fi.IsDir()
}

// Bus talks to one systemd manager, the system's or a user's.
type Bus struct{ conn *sd.Conn }

// SystemBus connects to the system's manager.
func SystemBus(ctx context.Context) (*Bus, error) {
	conn, err := sd.NewSystemConnectionContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot reach systemd: %w", err)
	}
	return &Bus{conn}, nil
}

// UserBus connects to the manager of the user whose runtime directory is given
// (/run/user/UID). It works inside the user's own user namespace too, where
// getuid says 0: the peer credentials that the bus sees are those outside.
func UserBus(ctx context.Context, runtimeDir string, uid int) (*Bus, error) {
	auth := dbus.WithAuth(dbus.AuthExternal(strconv.Itoa(uid)))
	dial := func(path string, hello bool) (*dbus.Conn, error) {
		conn, err := dbus.Dial("unix:path="+path, auth, dbus.WithContext(ctx))
		if err != nil {
			return nil, err
		}
		if err = conn.Auth(nil); err == nil && hello {
			err = conn.Hello()
		}
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return conn, nil
	}
	conn, err := sd.NewConnection(func() (*dbus.Conn, error) {
		c, err := dial(filepath.Join(runtimeDir, "bus"), true)
		if err == nil {
			return c, nil
		}
		// Without dbus-user-session there is only the manager's own socket.
		c, err2 := dial(filepath.Join(runtimeDir, "systemd/private"), false)
		if err2 != nil {
			return nil, errors.Join(err, err2)
		}
		return c, nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot reach the user's systemd in %s: %w", runtimeDir, err)
	}
	return &Bus{conn}, nil
}

// Close ends the connection.
func (b *Bus) Close() { b.conn.Close() }

// Active reports whether a unit runs or is on its way to run. A unit that is
// not there is not active.
func (b *Bus) Active(ctx context.Context, unit string) (bool, error) {
	p, err := b.conn.GetUnitPropertyContext(ctx, unit, "ActiveState")
	if err != nil {
		return false, fmt.Errorf("cannot look at unit %s: %w", unit, err)
	}
	s, ok := p.Value.Value().(string)
	if !ok {
		return false, fmt.Errorf("cannot look at unit %s: its ActiveState is no string", unit)
	}
	// "failed" and "inactive" are down; "deactivating" still has processes.
	return s != "inactive" && s != "failed", nil
}

// Enabled reports whether a boot starts a unit: its file says so, and not for this
// boot alone. A unit that is not there is not enabled.
func (b *Bus) Enabled(ctx context.Context, unit string) (bool, error) {
	p, err := b.conn.GetUnitPropertyContext(ctx, unit, "UnitFileState")
	if err != nil {
		return false, fmt.Errorf("cannot look at unit %s: %w", unit, err)
	}
	return p.Value.Value() == "enabled", nil
}

// PIDFiles gives the path that each of the services that has one expects its
// process id in.
func (b *Bus) PIDFiles(ctx context.Context, services []string) (map[string]string, error) {
	paths := map[string]string{}
	for _, u := range services {
		if !strings.HasSuffix(u, ".service") {
			continue
		}
		p, err := b.conn.GetUnitTypePropertyContext(ctx, u, "Service", "PIDFile")
		if err != nil {
			return nil, fmt.Errorf("cannot look at unit %s: %w", u, err)
		}
		if path, ok := p.Value.Value().(string); ok && path != "" {
			paths[u] = path
		}
	}
	return paths, nil
}

// PIDFileSource is the unit file, or the drop-in, that says last where a service has
// its process id: "" if none does that the caller can read as read gives it. systemd
// lists drop-ins in the order in which it heeds them.
func (b *Bus) PIDFileSource(ctx context.Context, service string, read func(path string) ([]byte, error)) (string, error) {
	var files []string
	for _, name := range []string{"FragmentPath", "DropInPaths"} {
		p, err := b.conn.GetUnitPropertyContext(ctx, service, name)
		if err != nil {
			return "", fmt.Errorf("cannot look at unit %s: %w", service, err)
		}
		switch v := p.Value.Value().(type) {
		case string:
			files = append(files, v)
		case []string:
			files = append(files, v...)
		}
	}
	return lastPIDFile(files, read)
}

// lastPIDFile is the last of a unit's files that says where its process id is.
func lastPIDFile(files []string, read func(path string) ([]byte, error)) (last string, err error) {
	for _, f := range files {
		text, err := read(f)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("cannot read unit file %s: %w", f, err)
		}
		if setsPIDFile(text) {
			last = f
		}
	}
	return last, nil
}

// setsPIDFile tells whether a unit's file has a line PIDFile=, also an empty one, which
// takes back those before it.
func setsPIDFile(text []byte) bool {
	for line := range strings.Lines(string(text)) {
		key, _, is := strings.Cut(line, "=")
		if is && strings.TrimSpace(key) == "PIDFile" {
			return true
		}
	}
	return false
}

// SocketPath is the path of the first stream socket that a socket unit listens on.
func (b *Bus) SocketPath(ctx context.Context, unit string) (string, error) {
	p, err := b.conn.GetUnitTypePropertyContext(ctx, unit, "Socket", "Listen")
	if err != nil {
		return "", fmt.Errorf("cannot look at unit %s: %w", unit, err)
	}
	listen, _ := p.Value.Value().([][]any)
	for _, l := range listen {
		if len(l) == 2 && l[0] == "Stream" {
			if path, ok := l[1].(string); ok && strings.HasPrefix(path, "/") {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("cannot find the socket of unit %s: it listens on %v", unit, listen)
}

const unitDeadline = 100 * time.Second // systemd's own stop timeout is 90 s

// Stop stops a unit and returns when it is seen to be down. A child of a podman
// service that does its work is told to end, too; it may take its time.
func (b *Bus) Stop(ctx context.Context, unit string) error {
	twins := b.twins(ctx, unit)
	if p, err := b.conn.GetUnitPropertyContext(ctx, unit, "Triggers"); err == nil {
		triggers, _ := p.Value.Value().([]string)
		for _, t := range triggers { // a service ends with the socket that it requires
			twins = append(twins, b.twins(ctx, t)...)
		}
	}
	defer func() { endTwins(twins) }()
	return b.job(ctx, unit, "stop", false, b.conn.StopUnitContext)
}

// Start starts a unit and returns when it is seen to be up. A unit that systemd
// refuses because it was started too often lately is forgiven that once: it was
// we who stopped it.
func (b *Bus) Start(ctx context.Context, unit string) error {
	err := b.job(ctx, unit, "start", true, b.conn.StartUnitContext)
	if err == nil || ctx.Err() != nil {
		return err
	}
	units := []string{unit}
	if p, err := b.conn.GetUnitPropertyContext(ctx, unit, "Triggers"); err == nil {
		triggers, _ := p.Value.Value().([]string)
		units = append(units, triggers...)
	}
	for _, u := range units {
		// One that has not failed has nothing to be forgiven; the start tells.
		_ = b.conn.ResetFailedUnitContext(ctx, u)
	}
	return b.job(ctx, unit, "start", true, b.conn.StartUnitContext)
}

func (b *Bus) job(ctx context.Context, unit, verb string, want bool,
	do func(context.Context, string, string, chan<- string) (int, error)) error {
	ctx, cancel := context.WithTimeout(ctx, unitDeadline)
	defer cancel()
	done := make(chan string, 1)
	if _, err := do(ctx, unit, "replace", done); err != nil {
		return fmt.Errorf("cannot %s %s: %w", verb, unit, err)
	}
	result := "no answer"
	select {
	case result = <-done:
	case <-ctx.Done():
	}
	// The job's result is a message; the state is the truth.
	up, err := b.Active(context.WithoutCancel(ctx), unit)
	if err != nil {
		return err
	}
	if up != want {
		return fmt.Errorf("cannot %s %s: systemd answered %q", verb, unit, result)
	}
	return nil
}
