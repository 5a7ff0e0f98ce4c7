package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/host"
)

const groupSocket = "socket"

// socketLimit is how long podman's API may take: its service may have to start
// first. It hangs on some releases.
const socketLimit = 6 * time.Second

func socketChecks() []Check {
	return []Check{
		{
			ID: "socket-unit", Group: groupSocket, Title: "podman.socket is enabled and listens",
			Why:   "Nomad's driver, Prefect and all other clients of the Docker API come in there.",
			Mends: "systemctl enable --now podman.socket, with --user for a user.",
			Fixes: "enables and starts it, unless it is masked: that was somebody's decision. Taken back to what it was.",
			Look:  lookSocketUnit,
		},
		{
			ID: "socket-answers", Group: groupSocket, Title: "Podman's API answers",
			Why:   "A socket that takes connections and never answers makes its clients hang.",
			Mends: "Restart podman.service; see its log.",
			Look:  lookSocketAnswers,
		},
		{
			ID: "socket-mode", Group: groupSocket, Title: "Only those who should can use the socket",
			Why:   "Who can write to podman's socket can start any container: on the rootful one that is root.",
			Mends: "SocketMode=0660 and SocketGroup= in a drop-in of podman.socket.",
			Look:  lookSocketMode,
		},
		{
			ID: "docker-host", Group: groupSocket, Title: "DOCKER_HOST leads to a socket that is there",
			Why:   "Docker's clients go where it says, and nowhere else.",
			Mends: "Set it to unix:// and the path of podman's socket.",
			Look:  lookDockerHost,
		},
		{
			ID: "docker-sock", Group: groupSocket, Title: "/run/docker.sock leads to an engine",
			Why:   "Clients of Docker that are told nothing else go there. A link to nowhere gives each of them another error.",
			Mends: "Link it to podman's socket, or remove it.",
			Fixes: "points a link that leads nowhere at podman's socket. Taken back to where it led.",
			Look:  lookDockerSock,
		},
	}
}

// ask takes the engine's word on what it is.
func (s *socketSeen) ask(ctx context.Context, client *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://d/version", nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("it does not answer within %s", brief.Time(socketLimit))
		}
		return errors.New(reason(err))
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s", res.Status)
	}
	var v struct {
		Version, ApiVersion string //nolint:revive // the API's names
		Components          []struct{ Name string }
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("what it answers is no version: %w", err)
	}
	s.Version, s.API = v.Version, v.ApiVersion
	if len(v.Components) > 0 {
		s.Engine = v.Components[0].Name
	}
	return nil
}

// seeUnits asks the systemd that has the owner's units.
func seeUnits(ctx context.Context, uid int, units []string) (map[string]host.UnitState, error) {
	var b *host.Bus
	var err error
	if uid == 0 {
		b, err = host.SystemBus(ctx)
	} else {
		b, err = host.UserBus(ctx, os.Getenv("XDG_RUNTIME_DIR"), uid)
	}
	if err != nil {
		return nil, err
	}
	defer b.Close()
	states := map[string]host.UnitState{}
	for _, u := range units {
		if states[u], err = b.UnitState(ctx, u); err != nil {
			return nil, err
		}
	}
	return states, nil
}

// socketPath is where podman's socket is.
func (h *Host) socketPath() string {
	if h.Owner.Rootful() {
		return "/run/podman/podman.sock"
	}
	dir := h.Owner.RuntimeDir
	if dir == "" {
		dir = fmt.Sprintf("/run/user/%d", h.Owner.UID)
	}
	return filepath.Join(dir, "podman", "podman.sock")
}

// systemctl is the command by which root tells the owner's systemd something.
func (h *Host) systemctl(words string) string {
	switch {
	case h.Owner.Rootful():
		return "systemctl " + words
	case h.self():
		return "systemctl --user " + words
	}
	return fmt.Sprintf("systemctl --user -M %s@ %s", h.Owner.Name, words)
}

// editSocket is the command for a drop-in of the owner's podman.socket: systemctl edits
// no unit by -M.
func (h *Host) editSocket() string {
	if h.Owner.Rootful() {
		return "systemctl edit podman.socket"
	}
	return h.as("systemctl --user edit podman.socket")
}

const podmanSocket = "podman.socket"

// socketState is what the owner's systemd says of podman.socket. Where there is
// no systemd, or it does not answer, the finding says so.
func (h *Host) socketState(ctx context.Context) (host.UnitState, *Finding) {
	f := absent("no systemd here")
	switch {
	case !host.HasSystemd():
		return host.UnitState{}, &f
	case !h.Owner.Rootful() && h.Owner.RuntimeDir == "":
		f = problem("the user's systemd does not run, and so no socket", h.bringUp())
		return host.UnitState{}, &f
	}
	states, err := askOwner[map[string]host.UnitState](ctx, h, opUnits, []string{podmanSocket})
	if err != nil {
		f = unknown(err)
		return host.UnitState{}, &f
	}
	return states[podmanSocket], nil
}

func lookSocketUnit(ctx context.Context, h *Host) Finding {
	if h.Cutover != "" { // a socket that listens would start podman in the middle of it
		return unknown(h.canRun())
	}
	s, f := h.socketState(ctx)
	if f != nil {
		return *f
	}
	enable := h.systemctl("enable --now " + podmanSocket)
	up := s.Active == "active"
	enabled := strings.HasPrefix(s.File, "enabled")
	change := Change{Kind: changeSocket, User: h.Owner.Name, Before: s.File + " " + s.Active, Text: "enable and start podman.socket of " + h.Owner.Name}
	switch {
	case s.Load == "masked":
		return warning("it is masked", h.systemctl("unmask "+podmanSocket), enable)
	case s.Load == "not-found":
		return problem("there is no such unit", "apt-get install --reinstall podman")
	case up && enabled:
		return ok("enabled, and it listens")
	case up:
		return warning("it listens, but will not after the next boot ("+s.File+")", enable).by(change)
	}
	saw := fmt.Sprintf("it does not listen (%s, %s)", s.Active, s.File)
	if enabled {
		return problem(saw, enable).by(change)
	}
	return warning(saw, enable).by(change) // it may be that nobody needs it
}

func lookSocketAnswers(ctx context.Context, h *Host) Finding {
	if s, f := h.socketState(ctx); f == nil && s.Active != "active" {
		return absent("podman.socket does not listen")
	} else if f != nil && f.Outcome == Problem {
		return absent("%s", f.Saw)
	}
	s, err := askOwner[socketSeen](ctx, h, opSocket, h.socketPath())
	switch {
	case err != nil:
		return unknown(err)
	case !s.There && !host.HasSystemd():
		return absent("there is no socket at %s", s.Path)
	case s.Why != "":
		return problem(fmt.Sprintf("%s: %s", s.Path, s.Why), h.systemctl("restart podman.socket podman.service"))
	}
	return ok("podman %s, API %s, at %s", s.Version, s.API, s.Path)
}

func lookSocketMode(ctx context.Context, h *Host) Finding {
	s, err := askOwner[socketSeen](ctx, h, opSocketFile, h.socketPath())
	switch {
	case err != nil:
		return unknown(err)
	case !s.There || !s.Socket:
		return absent("there is no socket at %s", s.Path)
	case s.Mode&0o600 != 0o600:
		return problem(fmt.Sprintf("%s cannot use %s (mode %04o)", h.Owner.Name, s.Path, s.Mode), "chmod u+rw "+word(s.Path))
	case s.Mode&0o006 != 0:
		return problem(fmt.Sprintf("everybody can use %s (mode %04o)", s.Path, s.Mode), "chmod o-rwx "+word(s.Path), h.editSocket()+"  # [Socket] SocketMode=0660")
	}
	return ok("mode %04o", s.Mode)
}

// envSeen is a setting of an environment that a file makes.
type envSeen struct {
	File  string `json:"file"`
	Name  string `json:"name"`
	Value string `json:"value"`
}

// seeEnvironment reads the files of an environment.d folder, or /etc/environment.
func seeEnvironment(pattern string) ([]envSeen, error) {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	var all []envSeen
	for _, path := range files {
		f, err := readSmall(path)
		if err != nil || !f.There {
			continue // somebody else's mistake shows where it matters
		}
		for l := range strings.Lines(string(f.Content)) {
			name, value, is := strings.Cut(strings.TrimPrefix(strings.TrimSpace(l), "export "), "=")
			if is && (name == "DOCKER_HOST" || name == "CONTAINER_HOST") {
				all = append(all, envSeen{path, name, strings.Trim(strings.TrimSpace(value), `"'`)})
			}
		}
	}
	return all, nil
}

func lookDockerHost(ctx context.Context, h *Host) Finding {
	var all []envSeen
	if h.self() {
		for _, name := range []string{"DOCKER_HOST", "CONTAINER_HOST"} {
			if v := h.Getenv(name); v != "" {
				all = append(all, envSeen{"the environment", name, v})
			}
		}
	}
	system, err := seeEnvironment("/etc/environment")
	if err != nil {
		return unknown(err)
	}
	own, err := askOwner[[]envSeen](ctx, h, opEnvFile, filepath.Join(h.Owner.Home, ".config/environment.d/*.conf"))
	if err != nil {
		return unknown(err)
	}
	all = append(append(all, system...), own...)
	if len(all) == 0 {
		return absent("it is set neither here nor in a file of the environment")
	}
	var good []string
	for _, e := range all {
		path, is := strings.CutPrefix(e.Value, "unix:")
		if !is {
			good = append(good, fmt.Sprintf("%s=%s (%s) is not on this host", e.Name, e.Value, e.File))
			continue
		}
		path = "/" + strings.TrimLeft(os.Expand(path, func(v string) string {
			return map[string]string{"XDG_RUNTIME_DIR": h.Owner.RuntimeDir, "UID": fmt.Sprint(h.Owner.UID), "HOME": h.Owner.Home}[v]
		}), "/")
		s, err := askOwner[socketSeen](ctx, h, opSocket, path)
		if err != nil {
			return unknown(err)
		}
		if s.Why != "" {
			return problem(fmt.Sprintf("%s=%s (%s): %s", e.Name, e.Value, e.File, s.Why), fmt.Sprintf("set %s=unix://%s", e.Name, h.socketPath()))
		}
		good = append(good, fmt.Sprintf("%s=%s (%s) answers", e.Name, e.Value, e.File))
	}
	return ok("%s", strings.Join(good, "; "))
}

const dockerSock = "/run/docker.sock"

func lookDockerSock(ctx context.Context, h *Host) Finding {
	link, _ := os.Readlink(dockerSock) // /run is root's
	if _, err := os.Lstat(dockerSock); errors.Is(err, os.ErrNotExist) {
		return absent("there is none; clients need DOCKER_HOST=unix://%s", h.socketPath())
	}
	target := link
	if target != "" && !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(dockerSock), target)
	}
	if target == "" {
		return ok("it is an engine's own socket")
	}
	s, err := askOwner[socketSeen](ctx, h, opSocket, target)
	switch {
	case err != nil:
		return unknown(err)
	case s.Why == "":
		return ok("it leads to %s %s at %s", s.Engine, s.Version, target)
	case s.There && s.Socket:
		return warning(fmt.Sprintf("it leads to %s, where %s gets no answer: %s", target, h.Owner.Name, s.Why), "see whose socket that is: ls -lL "+dockerSock)
	}
	want := h.socketPath()
	f := problem(fmt.Sprintf("it leads to %s: %s", target, s.Why), fmt.Sprintf("ln -sfn %s %s", word(want), dockerSock))
	if os.Getuid() != 0 || want == target || !h.Owner.Rootful() { // root's clients are not sent to a user's socket
		return f
	}
	return f.by(Change{Kind: changeLink, Path: dockerSock, Before: link, After: want, Text: fmt.Sprintf("point %s at %s", dockerSock, want)})
}
