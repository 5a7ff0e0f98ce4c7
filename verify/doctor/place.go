package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/storagectl/storagectl/internal/host"
)

// place is the machine, or the container, that the checks run in.
type place struct {
	What    string // a host, a container of podman, …
	By      string // by what that shows; "" for a host
	Kube    bool
	Systemd bool // it is process 1
}

// inside reports a container without a systemd of its own: what boots, mounts and
// limits it is the one around it, and nothing in it can change that.
func (p place) inside() bool { return p.By != "" && !p.Systemd }

// outer is who can give a device or a right to such a container.
func (p place) outer(podman, kube string) string {
	if p.Kube {
		return kube
	}
	return podman
}

// place looks where this runs. Each sign is one that somebody leaves out: sudo drops
// the environment, a pod need not have a service account, and a control group
// namespace hides the path.
func (h *Host) place() place {
	p := place{What: "a host", Systemd: host.HasSystemd()}
	if comm, err := os.ReadFile("/proc/1/comm"); err == nil && p.Systemd {
		// A folder of the host's /run is no systemd of this container's.
		name := strings.TrimSpace(string(comm))
		p.Systemd = name == "systemd" || name == "init"
	}
	there := func(path string) bool { _, err := os.Stat(path); return err == nil }
	cgroup, _ := os.ReadFile("/proc/1/cgroup") // not to be read: no sign
	const account = "/run/secrets/kubernetes.io/serviceaccount"
	manager, _ := os.ReadFile("/run/systemd/container") // systemd writes down who started it
	switch group := string(cgroup); {
	case h.Getenv("KUBERNETES_SERVICE_HOST") != "":
		p.What, p.By, p.Kube = "a container of Kubernetes", "KUBERNETES_SERVICE_HOST", true
	case there(account):
		p.What, p.By, p.Kube = "a container of Kubernetes", account, true
	case strings.Contains(group, "kubepods"):
		p.What, p.By, p.Kube = "a container of Kubernetes", "its control group", true
	case there("/run/.containerenv"):
		p.What, p.By = "a container of podman", "/run/.containerenv"
	case there("/.dockerenv"):
		p.What, p.By = "a container of Docker", "/.dockerenv"
	case strings.Contains(group, "libpod-"), strings.Contains(group, "/docker"), strings.Contains(group, "containerd"), strings.Contains(group, "/lxc"):
		p.What, p.By = "a container", "its control group"
	case len(manager) > 0:
		p.What, p.By = "a container of "+strings.TrimSpace(string(manager)), "/run/systemd/container"
	}
	return p
}

func lookPlace(_ context.Context, h *Host) Finding {
	p := h.place()
	text := p.What
	if p.By != "" {
		text += fmt.Sprintf(" (%s)", p.By)
	}
	if !p.Systemd {
		text += ", without systemd"
	}
	return ok("%s, Linux %s", text, sysctl("kernel/osrelease"))
}

// onHosts makes a check of a function that is about what a machine does at boot, or
// with the mounts of containers on it. In a container it has nothing to judge.
func onHosts(look func(context.Context, *Host) Finding) func(context.Context, *Host) Finding {
	return func(ctx context.Context, h *Host) Finding {
		if p := h.place(); p.inside() {
			return absent("%s: that is up to the one around it", p.What)
		}
		return look(ctx, h)
	}
}

// noNewPrivileges reports whether the kernel gives programs that this process starts
// no more privileges than it has (prctl(2), PR_SET_NO_NEW_PRIVS), so that newuidmap
// cannot do its work.
func noNewPrivileges() bool {
	b, err := os.ReadFile("/proc/self/status")
	return err == nil && strings.Contains(string(b), "\nNoNewPrivs:\t1\n")
}

// mayHave reports whether a program of this container can have a capability
// (capabilities(7), the bounding set). True where that is not known.
func mayHave(capability int) bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), "\nCapBnd:")
	var set uint64
	if _, err := fmt.Sscanf(rest, "%x", &set); err != nil {
		return true
	}
	return set&(1<<capability) != 0
}

// mappedIDs is the number of ids, from 0 on, that this user namespace has: what lies
// above cannot be given to a namespace below. 0: it is not known.
func mappedIDs() uint64 {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return 0
	}
	end := uint64(0)
	for l := range strings.Lines(string(b)) {
		var in, out, n uint64
		if _, err := fmt.Sscan(l, &in, &out, &n); err == nil {
			end = max(end, in+n)
		}
	}
	return end
}

// sysctl reads a setting of the kernel, "" where it has none of that name.
func sysctl(name string) string {
	b, err := os.ReadFile(filepath.Join("/proc/sys", name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// refused reports whether the kernel would not make a namespace: it is forbidden, or
// there are as many as may be.
func refused(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENOSPC)
}
