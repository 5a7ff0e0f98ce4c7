package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/storagectl/storagectl/internal/host"
)

const (
	groupKernel   = "kernel"
	groupSecurity = "security"
)

func kernelChecks() []Check {
	return []Check{
		{
			ID: "place", Group: groupKernel, Title: "Where this runs",
			Why:   "In a container or a Kubernetes workspace there is no systemd, and devices and mounts are what the one around gives. What does not apply there is left out.",
			Mends: "Nothing is to be mended.",
			Look:  lookPlace,
		},
		{
			ID: "user-namespaces", Group: groupKernel, Title: "Users may make user namespaces",
			Why:   "Rootless podman begins with one.",
			Mends: "The sysctl that is named.",
			Look:  rootless(lookUserNamespaces),
		},
		{
			ID: "overlay", Group: groupKernel, Title: "The kernel mounts overlay for the owner",
			Why:   "Native overlay is the fast driver. Without it podman takes fuse-overlayfs, rootful podman silently, or copies every layer (vfs).",
			Mends: "modprobe overlay; in a user namespace Linux 5.13 or newer.",
			Look:  lookOverlay,
		},
		{
			ID: "fuse-device", Group: groupKernel, Title: "/dev/fuse can be used by the owner",
			Why:   "fuse-overlayfs, ceph-fuse and storagectl relocate --mapper fuse need it.",
			Mends: "modprobe fuse; in a container a device plugin, or --device /dev/fuse.",
			Fixes: "makes the device where it is missing and the kernel has fuse. Taken back by removing it.",
			Look:  lookFuse,
		},
		{
			ID: "tun-device", Group: groupKernel, Title: "/dev/net/tun can be used by the owner",
			Why:   "The network of rootless containers (slirp4netns, pasta) needs it.",
			Mends: "modprobe tun; chmod 666 /dev/net/tun.",
			Look:  rootless(lookTun),
		},
		{
			ID: "shared-root", Group: groupKernel, Title: "/ is a shared mount",
			Why:   "Else what is mounted later on the host, an automount of CephFS for example, is not seen in containers that run, and mounts can be held by containers after they were taken away.",
			Mends: "mount --make-rshared / at boot.",
			Fixes: "makes / shared until the next boot. Taken back by making it private.",
			Look:  onHosts(lookSharedRoot),
		},
		{
			ID: "cgroups", Group: groupKernel, Title: "Control groups can limit containers",
			Why:   "Without the controllers memory and CPU limits of a container are refused or ignored.",
			Mends: "Boot with cgroup v2; let systemd delegate the controllers to users.",
			Look:  onHosts(lookCgroups),
		},
		{
			ID: "unprivileged-ports", Group: groupKernel, Title: "Ports that containers of a user can have",
			Why:   "Rootless containers can publish ports from this number on.",
			Mends: "sysctl net.ipv4.ip_unprivileged_port_start=80 for web servers.",
			Look:  rootless(lookPorts),
		},
		{
			ID: "selinux", Group: groupSecurity, Title: "SELinux",
			Why:   "In enforcing mode containers reach only what is labelled for them; a store at an unusual path, or volumes on CephFS or FUSE, need a rule or a boolean.",
			Mends: "semanage fcontext and restorecon for the store; setsebool -P for the boolean that is named.",
			Look:  lookSELinux,
		},
		{
			ID: "apparmor", Group: groupSecurity, Title: "AppArmor",
			Why:   "Newer systems forbid user namespaces to programs without a profile, and profiles of fusermount3 or podman may forbid FUSE mounts at the store.",
			Mends: "A profile for the program, or the sysctl that is named.",
			Look:  lookAppArmor,
		},
	}
}

func lookUserNamespaces(_ context.Context, h *Host) Finding {
	if v := sysctl("user/max_user_namespaces"); v == "0" {
		return problem("user.max_user_namespaces is 0", "sysctl user.max_user_namespaces=15000")
	}
	if v := sysctl("kernel/unprivileged_userns_clone"); v == "0" {
		return problem("kernel.unprivileged_userns_clone is 0", "sysctl kernel.unprivileged_userns_clone=1")
	}
	// The owner's worker begins with one.
	if _, err := h.fuse(); refused(err) {
		p := h.place()
		mend := []string{"sysctl user kernel.unprivileged_userns_clone kernel.apparmor_restrict_unprivileged_userns  # what the kernel limits"}
		if p.inside() {
			mend = []string{p.outer("start the container with --security-opt seccomp=unconfined, or a profile that allows clone and unshare",
				"a seccompProfile of the pod that allows clone and unshare (Unconfined, or one of its own)")}
		}
		return problem("the kernel refuses one: "+reason(err), mend...)
	} else if err != nil {
		return unknown(err)
	}
	return ok("user.max_user_namespaces is %s", orUnlimited(sysctl("user/max_user_namespaces")))
}

func orUnlimited(s string) string {
	if s == "" {
		return "not limited"
	}
	return s
}

func lookOverlay(_ context.Context, h *Host) Finding {
	k, err := h.fuse()
	if err != nil {
		return unknown(err)
	}
	if k.Overlay == "" {
		return ok("one was mounted in memory, as the owner")
	}
	mend := "modprobe overlay"
	if p := h.place(); p.inside() {
		mend = p.outer("start the container with a seccomp profile that allows mounts (--security-opt seccomp=FILE), or configure fuse-overlayfs (mount_program)",
			"a seccompProfile of the pod that allows mounts, or fuse-overlayfs (mount_program) with a device plugin for /dev/fuse")
	} else if !h.Owner.Rootful() {
		mend = "modprobe overlay  # a rootless one needs Linux 5.13 or newer, else fuse-overlayfs (mount_program)"
	}
	return warning(k.Overlay, mend)
}

func lookFuse(_ context.Context, h *Host) Finding {
	k, err := h.fuse()
	if err != nil {
		return unknown(err)
	}
	switch {
	case k.Fuse == "":
		return ok("it can be opened")
	case !k.FuseThere:
		f := warning("it is not there", "modprobe fuse; mknod -m 666 /dev/fuse c 10 229")
		// In a container a node is not yet a device that may be opened.
		if os.Getuid() == 0 && kernelHas("fuse") && !h.place().inside() {
			return f.by(Change{Kind: changeFuse, Path: "/dev/fuse", Text: "make the device /dev/fuse"})
		}
		if p := h.place(); p.inside() {
			f.Mend = []string{deviceMend(p, "/dev/fuse")}
		}
		return f
	}
	if p := h.place(); p.inside() {
		return warning("it cannot be opened: "+k.Fuse, deviceMend(p, "/dev/fuse"))
	}
	return warning("it cannot be opened: "+k.Fuse, "chmod 666 /dev/fuse")
}

// deviceMend is how a container gets a device.
func deviceMend(p place, device string) string {
	return p.outer("start the container with --device "+device,
		"a device plugin for "+device+" in the cluster, and its resource in the limits of the pod")
}

// kernelHas reports whether a filesystem is built in, or its module loaded.
func kernelHas(fsType string) bool {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return false
	}
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) > 0 && f[len(f)-1] == fsType {
			return true
		}
	}
	return false
}

func lookTun(_ context.Context, h *Host) Finding {
	k, err := h.fuse()
	switch {
	case err != nil:
		return unknown(err)
	case k.Tun == "":
		return ok("it can be opened")
	}
	if p := h.place(); p.inside() {
		return problem("it cannot be opened: "+k.Tun, deviceMend(p, "/dev/net/tun"))
	}
	if !k.TunThere {
		return problem("it is not there", "modprobe tun; mkdir -p /dev/net; mknod -m 666 /dev/net/tun c 10 200")
	}
	return problem("it cannot be opened: "+k.Tun, "chmod 666 /dev/net/tun")
}

func lookSharedRoot(context.Context, *Host) Finding {
	table, err := host.MountsOf(os.Getpid())
	if err != nil {
		return unknown(err)
	}
	m, is := table.At("/")
	switch {
	case !is:
		return unknown(errors.New("no mount is seen at /"))
	case strings.Contains(m.Propagation, "shared"):
		return ok("it is")
	}
	f := warning("it is private", "mount --make-rshared /")
	if os.Getuid() != 0 || m.Propagation != "" { // a slave is somebody's intention
		return f
	}
	return f.by(Change{Kind: changeShared, Path: "/", Text: "make / a shared mount, until the next boot"})
}

func lookCgroups(_ context.Context, h *Host) Finding {
	b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if errors.Is(err, fs.ErrNotExist) {
		return warning("control groups are of version 1, which podman 5 no longer supports", "boot with systemd.unified_cgroup_hierarchy=1")
	}
	if err != nil {
		return unknown(err)
	}
	have := strings.Fields(string(b))
	where := "the system has"
	system := have
	if !h.Owner.Rootful() && host.HasSystemd() {
		slice := fmt.Sprintf("/sys/fs/cgroup/user.slice/user-%[1]d.slice/user@%[1]d.service/cgroup.controllers", h.Owner.UID)
		b, err := os.ReadFile(slice)
		if errors.Is(err, fs.ErrNotExist) {
			return Finding{Outcome: Unknown, Saw: "the user's systemd has no control group to look at"}
		}
		if err != nil {
			return unknown(err)
		}
		have, where = strings.Fields(string(b)), h.Owner.Name+" has"
	}
	var missing []string
	for _, c := range []string{"memory", "pids"} {
		if !slices.Contains(have, c) {
			missing = append(missing, c)
		}
	}
	if len(missing) == 0 {
		return ok("%s %s", where, strings.Join(have, ", "))
	}
	return warning(fmt.Sprintf("version 2, without the controllers %s: limits of containers are refused or ignored", strings.Join(missing, " and ")),
		cgroupMends(system, missing)...)
}

// cgroupMends tell what gives the owner the controllers that are missing: systemd has
// to delegate them, which is of no use while it has not got them itself.
func cgroupMends(system, missing []string) []string {
	for _, c := range missing {
		if !slices.Contains(system, c) {
			return []string{"boot with cgroup_enable=memory on the kernel's command line, where the kernel has them at all: cat /proc/cgroups"}
		}
	}
	return []string{"install -d /etc/systemd/system/user@.service.d",
		`printf '[Service]\nDelegate=cpu cpuset io memory pids\n' >/etc/systemd/system/user@.service.d/delegate.conf`,
		"systemctl daemon-reload  # counts for a user's systemd that starts after it, at the next boot for example"}
}

func lookPorts(context.Context, *Host) Finding {
	n, err := strconv.Atoi(sysctl("net/ipv4/ip_unprivileged_port_start"))
	if err != nil {
		return Finding{Outcome: Unknown, Saw: "the kernel does not tell"}
	}
	if n > 1024 {
		return warning(fmt.Sprintf("only ports from %d on", n), "sysctl net.ipv4.ip_unprivileged_port_start=1024")
	}
	return ok("from %d on", n)
}

func lookSELinux(_ context.Context, h *Host) Finding {
	b, err := os.ReadFile("/sys/fs/selinux/enforce")
	if errors.Is(err, fs.ErrNotExist) {
		return absent("the kernel does not have it, or it is off")
	}
	if err != nil {
		return unknown(err)
	}
	if strings.TrimSpace(string(b)) == "0" {
		return ok("permissive: nothing is forbidden")
	}
	if s, err := h.store(); err == nil {
		want := map[string]string{"ceph": "container_use_cephfs", "nfs": "virt_use_nfs", "fuse": "virt_sandbox_use_fusefs"}[s.FSType]
		if want != "" {
			v, err := os.ReadFile("/sys/fs/selinux/booleans/" + want)
			if err == nil && strings.HasPrefix(string(v), "0") {
				return problem(fmt.Sprintf("enforcing, and %s is off while the store is on %s", want, s.FSType), "setsebool -P "+want+" 1")
			}
		}
	}
	return ok("enforcing")
}

func lookAppArmor(_ context.Context, h *Host) Finding {
	if _, err := os.Stat("/sys/kernel/security/apparmor"); errors.Is(err, fs.ErrNotExist) {
		return absent("the kernel does not have it, or it is off")
	}
	if !h.Owner.Rootful() && sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1" {
		if _, err := os.Stat("/etc/apparmor.d/podman"); err != nil {
			return problem("user namespaces are forbidden to programs without a profile, and podman has none", "sysctl kernel.apparmor_restrict_unprivileged_userns=0  # or install podman's profile")
		}
	}
	b, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return Finding{Outcome: Unknown, Saw: "only root can see which profiles are loaded"}
		}
		return unknown(err)
	}
	for l := range strings.Lines(string(b)) {
		name, mode, _ := strings.Cut(strings.TrimSpace(l), " ")
		if strings.Contains(name, "fusermount") && strings.Contains(mode, "enforce") {
			return warning(fmt.Sprintf("the profile %s is enforced: it may forbid FUSE mounts at unusual paths (the kernel's log tells: apparmor=\"DENIED\")", name),
				"aa-complain "+word(name)+"  # or add the store's path to /etc/apparmor.d/local/fusermount3")
		}
	}
	return ok("on; no profile forbids FUSE mounts")
}
