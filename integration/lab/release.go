package lab

import "fmt"

// A release is a Debian release the lab can build a node of.
type release struct {
	name     string
	packages []string // beyond the common list
	aptopts  []string
	dropins  map[string]string // of systemd's units, by their path in its folder
}

// packages every node has, whatever its release.
func commonPackages() []string {
	return []string{
		"acl", "attr", "buildah", "busybox-static", "ca-certificates", "crun", "curl",
		"dbus", "dbus-user-session", "e2fsprogs", "fuse-overlayfs", "fuse3", "iproute2", "iptables", "jq",
		"kmod", "libcap2-bin", "libpam-systemd", "login", "nftables", "passwd", "podman", "procps",
		"skopeo", "slirp4netns", "sudo", "systemd", "systemd-sysv", "udev", "uidmap", "util-linux",
		"xfsprogs",
	}
}

// lookupRelease returns the recipe for a Debian release by its code name.
//
// bullseye has podman 3.0.1 and bookworm 4.3.1 (both BoltDB), trixie 5.4.2 and
// forky 5.8 (both SQLite). Every test run has bookworm and trixie; make matrix all.
func lookupRelease(name string) (release, error) {
	table := []release{
		{name: "bullseye", packages: []string{"containernetworking-plugins", "golang-github-containers-common"}},
		// Ceph's parts are for the helper, which is built against bookworm's.
		{name: "bookworm", packages: []string{"netavark", "aardvark-dns", "golang-github-containers-common", "ceph-common", "ceph-fuse", "libcephfs2"}},
		{name: "trixie", packages: []string{"netavark", "aardvark-dns", "passt", "containers-storage", "golang-github-containers-common"}},
		{
			name:     "forky",
			packages: []string{"netavark", "aardvark-dns", "passt", "containers-storage", "golang-github-containers-common"},
			// forky's Release file may be past its date between two pushes.
			aptopts: []string{`Acquire::Check-Valid-Until "false"`},
			// For ProtectControlGroups= systemd 262 mounts a /proc of its own, without the boot id
			// that nspawn gives a node. To logind each PID is another machine's then, and no user
			// manager starts.
			dropins: map[string]string{"systemd-logind.service.d/lab.conf": "[Service]\nProtectControlGroups=no\n"},
		},
	}
	for _, r := range table {
		if r.name == name {
			return r, nil
		}
	}
	return release{}, fmt.Errorf("cannot build a node: unknown release %q", name)
}
