package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// GroupMounts is the group of what is mounted, and of Ceph.
const GroupMounts = "ceph and mounts"

func mountChecks() []Check {
	return []Check{
		{
			ID: "fstab", Group: GroupMounts, Title: "/etc/fstab does not keep the machine from booting",
			Why:   "Without nofail a lost disk, or one that has another UUID by now, stops the boot; without _netdev a network filesystem is mounted before the network is there. A secret in this file can be read by everybody.",
			Mends: "Add nofail and _netdev (or noauto with x-systemd.automount); name a device that is there; use secretfile=.",
			Look:  onHosts(func(context.Context, *Host) Finding { return lookFstab("/etc/fstab", "/dev") }),
		},
		{
			ID: "network-mounts", Group: GroupMounts, Title: "Network filesystems answer",
			Why:   "Who touches a mount whose server is gone hangs, podman as well.",
			Mends: "See the cluster or server; umount -f the mount.",
			Look:  lookNetworkMounts,
		},
		{
			ID: "ceph-keys", Group: GroupMounts, Title: "Ceph's keys are for root alone",
			Why:   "Who can read a key can do on the cluster what its user may.",
			Mends: "chmod 600 the file.",
			Look:  func(context.Context, *Host) Finding { return lookCephKeys("/etc/ceph") },
		},
		{
			ID: "backup-excludes", Group: GroupMounts, Title: "Backups leave out overlay, too",
			Why:   "A backup that excludes vfs by its path swallows the whole store after a conversion to overlay.",
			Mends: "Exclude the graphroot itself, or overlay beside vfs.",
			Look:  rooted(lookBackups),
		},
	}
}

// networkFS are filesystems that need the network.
func networkFS(fsType string) bool {
	return slices.Contains([]string{"ceph", "nfs", "nfs4", "cifs", "smb3", "glusterfs", "9p", "fuse.ceph", "fuse.sshfs", "fuse.glusterfs"}, fsType)
}

// deviceGone names the device of a line of fstab that is not there now, "" if it is, or
// is no device of udev's. Labels are encoded as udev does it.
func deviceGone(source, dev string) string {
	if rest, is := strings.CutPrefix(source, "/dev/"); is {
		source = filepath.Join(dev, rest)
	} else {
		key, value, _ := strings.Cut(source, "=")
		by := map[string]string{"UUID": "by-uuid", "LABEL": "by-label", "PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel"}[key]
		folder := filepath.Join(dev, "disk", by)
		if _, err := os.Stat(folder); by == "" || err != nil { // without udev nobody can tell
			return ""
		}
		var name strings.Builder
		for _, b := range []byte(strings.Trim(value, `"`)) {
			if b >= 0x80 || b >= '0' && b <= '9' || b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z' || strings.IndexByte("#+-.:=@_", b) >= 0 {
				name.WriteByte(b)
			} else {
				fmt.Fprintf(&name, `\x%02x`, b)
			}
		}
		source = filepath.Join(folder, name.String())
	}
	if _, err := os.Stat(source); errors.Is(err, fs.ErrNotExist) {
		return source
	}
	return ""
}

// lookFstab judges the lines of fstab; dev is where the devices are.
func lookFstab(path, dev string) Finding {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return absent("there is none")
	}
	if err != nil {
		return unknown(err)
	}
	lines, err := host.ParseFstab(b)
	if err != nil {
		return problem(err.Error(), "mend that line; then systemctl daemon-reload")
	}
	var saw, mend []string
	worst := OK
	add := func(o Outcome, l host.FstabLine, text, how string) {
		saw, mend = append(saw, fmt.Sprintf("line %d (%s) %s", l.Line, l.Path, text)), append(mend, how)
		if o.Worse(worst) {
			worst = o
		}
	}
	for _, l := range lines {
		net := networkFS(l.Type) || strings.HasPrefix(l.Source, "/dev/rbd")
		missing := func(o string) bool { return !slices.Contains(l.Options, o) }
		if slices.ContainsFunc(l.Options, func(o string) bool { return strings.HasPrefix(o, "secret=") || strings.HasPrefix(o, "password=") }) {
			add(Problem, l, "has a secret in it", fmt.Sprintf("put the secret into a file that root alone can read, and secretfile=FILE into line %d", l.Line))
		}
		auto := missing("noauto")
		switch {
		case net && missing("_netdev"):
			add(Warning, l, "needs the network and lacks _netdev", fmt.Sprintf("add _netdev to line %d, and systemctl daemon-reload", l.Line))
		case net && auto && missing("nofail") && missing("x-systemd.automount"):
			add(Warning, l, "needs the network and lacks nofail: without it the machine does not come up", fmt.Sprintf("add nofail to line %d, and systemctl daemon-reload", l.Line))
		case strings.HasPrefix(l.Source, "/dev/rbd") && missing("x-systemd.requires=rbdmap.service"):
			add(Warning, l, "does not wait for rbdmap", fmt.Sprintf("add x-systemd.requires=rbdmap.service to line %d", l.Line))
		}
		if net || !auto || !missing("nofail") || !missing("x-systemd.automount") || l.Path == "/" || l.Path == "/usr" {
			continue
		}
		if gone := deviceGone(l.Source, dev); gone != "" && l.Type == "swap" {
			add(Warning, l, "wants "+gone+", which is not there: the next boot waits for it for 90 s", fmt.Sprintf("blkid  # names the devices that are there; mend line %d, or add nofail to it, and systemctl daemon-reload", l.Line))
		} else if gone != "" {
			add(Problem, l, "wants "+gone+", which is not there: the next boot waits for it for 90 s, and ends in the emergency shell", fmt.Sprintf("blkid  # names the devices that are there; mend line %d, or add nofail to it, and systemctl daemon-reload", l.Line))
		}
	}
	if worst == OK {
		return ok("%d lines", len(lines))
	}
	return Finding{Outcome: worst, Saw: strings.Join(saw, "; "), Mend: mend}
}

// tryMount asks a filesystem for a sign of life.
func tryMount(path string) error {
	var sf unix.Statfs_t
	if err := unix.Statfs(path, &sf); err != nil && !errors.Is(err, unix.EACCES) {
		return errors.New(reason(err))
	}
	return nil
}

func lookNetworkMounts(ctx context.Context, h *Host) Finding {
	table, err := host.Mounts()
	if err != nil {
		return unknown(err)
	}
	var seen, bad []string
	for _, m := range table {
		if !networkFS(m.Type) && m.Type != "fuse.ceph-fuse" && !strings.HasPrefix(m.Source, "/dev/rbd") || slices.Contains(seen, m.Path) {
			continue
		}
		seen = append(seen, m.Path)
		// In a process of its own: who hangs in the kernel cannot even end.
		w, err := h.awake(ctx)
		if err != nil {
			return unknown(err)
		}
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		answer := make(chan error, 1)
		go func() {
			_, err := askBy[none](try, h, w, opMounts, m.Path)
			answer <- err
		}()
		select {
		case err := <-answer:
			if err != nil {
				bad = append(bad, fmt.Sprintf("%s (%s): %v", m.Path, m.Type, err))
			}
		case <-try.Done():
			bad = append(bad, fmt.Sprintf("%s (%s) does not answer", m.Path, m.Type))
		}
		cancel()
	}
	switch {
	case len(seen) == 0:
		return absent("none is mounted")
	case len(bad) > 0:
		return problem(strings.Join(bad, "; "), "umount -f PATH  # gives up on it; first see to the server or cluster (ceph -s)")
	}
	return ok("%s", few(seen))
}

func lookCephKeys(dir string) Finding {
	found, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(found) == 0 {
		return absent("there is nothing in %s", dir)
	}
	var open, mend []string
	n := 0
	for _, f := range found {
		if ext := filepath.Ext(f); ext != ".keyring" && ext != ".secret" {
			continue
		}
		fi, err := os.Stat(f)
		if err != nil {
			continue
		}
		n++
		if fi.Mode().Perm()&0o004 != 0 {
			open, mend = append(open, fmt.Sprintf("everybody can read %s", f)), append(mend, "chmod o-rwx "+f)
		}
	}
	switch {
	case n == 0:
		return absent("there is no key in %s", dir)
	case len(open) > 0:
		return problem(strings.Join(open, "; "), mend...)
	}
	return ok("%d, for root alone", n)
}

// lookBackups reads where backups are usually configured, and only files of root's.
func lookBackups(_ context.Context, _ *Host, _, _, driver string) Finding {
	var hits []string
	n := 0
	for _, pattern := range []string{"/etc/cron*/*", "/etc/crontab", "/etc/restic*", "/etc/restic*/*", "/etc/borg*/*", "/etc/borg*", "/etc/systemd/system/*.service", "/etc/default/*backup*", "/etc/rsnapshot.conf", "/etc/bacula/*", "/etc/duplicity/*", "/usr/local/bin/*backup*", "/usr/local/sbin/*backup*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return unknown(err)
		}
		for _, path := range found {
			f, err := readSmall(path)
			if err != nil || !f.There {
				continue
			}
			n++
			if bytes.Contains(f.Content, []byte("*/vfs/*")) || bytes.Contains(f.Content, []byte("storage/vfs")) {
				if !bytes.Contains(f.Content, []byte("/overlay")) {
					hits = append(hits, path)
				}
			}
		}
	}
	switch {
	case len(hits) == 0:
		return ok("%d files of root's were read, and none leaves out vfs alone", n)
	case driver == "overlay":
		return problem(few(hits)+" leaves out vfs and not overlay: the whole store goes into the backup", "exclude the graphroot in "+hits[0])
	}
	return warning(few(hits)+" leaves out vfs and not overlay: after a conversion the whole store would go into the backup", "exclude the graphroot in "+hits[0])
}
