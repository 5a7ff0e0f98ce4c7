package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
)

const groupUser = "user"

// idsWanted is how many subordinate ids a user needs for images that have all the
// usual owners in them.
const idsWanted = 65536

func userChecks() []Check {
	return []Check{
		{
			ID: "subids", Group: groupUser, Title: "The user has subordinate ids",
			Why:   "Rootless podman gives the users inside a container ids of these ranges. Without them images with more than one owner cannot be unpacked; where two users have the same, one can write to the other's files.",
			Mends: "usermod --add-subuids and --add-subgids, with a range that nobody has.",
			Fixes: "gives a user who has none in either file the first free range of 65536 ids; podman system migrate is needed afterwards where podman ran before. Taken back by usermod --del-subuids and --del-subgids.",
			Look:  rootless(lookSubIDs),
		},
		{
			ID: "newuidmap", Group: groupUser, Title: "newuidmap and newgidmap work",
			Why:   "Podman has these two write the map of its user namespace, which takes privileges. A copy of the system without its file capabilities breaks them.",
			Mends: "Install the package uidmap anew.",
			Look:  rootless(lookNewIDMap),
		},
		{
			ID: "linger", Group: groupUser, Title: "The user's services run without a login",
			Why:   "Without linger systemd ends all of the user's containers, and podman's socket, when the last session ends; and starts none of them at boot.",
			Mends: "loginctl enable-linger USER.",
			Fixes: "enables linger. Taken back by disabling it.",
			Look:  rootless(lookLinger),
		},
		{
			ID: "runtime-dir", Group: groupUser, Title: "The user's runtime folder is there",
			Why:   "Podman keeps its run state, its socket and the registry logins in XDG_RUNTIME_DIR. Without it it makes do with /tmp, and does not see what runs.",
			Mends: "Enable linger, or log in by something that goes through PAM (not su or sudo).",
			Look:  rootless(lookRuntimeDir),
		},
		{
			ID: "user-bus", Group: groupUser, Title: "The user's systemd answers",
			Why:   "Podman asks it for control groups and starts health checks by it; units can be seen and stopped only over it.",
			Mends: "systemctl restart user@UID.service, which ends all that the user runs; install dbus-user-session.",
			Look:  rootless(lookUserBus),
		},
	}
}

// rootless makes a check of a function that is about an unprivileged user.
func rootless(look func(context.Context, *Host) Finding) func(context.Context, *Host) Finding {
	return func(ctx context.Context, h *Host) Finding {
		if h.Owner.Rootful() {
			return absent("the store is root's")
		}
		return look(ctx, h)
	}
}

// idRange is a line of /etc/subuid or /etc/subgid.
type idRange struct {
	who          string
	start, count uint64
}

func readRanges(path string) ([]idRange, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []idRange
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		p := strings.Split(strings.TrimSpace(sc.Text()), ":")
		if len(p) != 3 || strings.HasPrefix(p[0], "#") {
			continue
		}
		start, err1 := strconv.ParseUint(p[1], 10, 32)
		count, err2 := strconv.ParseUint(p[2], 10, 32)
		if err1 == nil && err2 == nil {
			all = append(all, idRange{p[0], start, count})
		}
	}
	return all, sc.Err()
}

func lookSubIDs(_ context.Context, h *Host) Finding {
	o := h.Owner
	files := map[string][]idRange{}
	for _, path := range []string{"/etc/subuid", "/etc/subgid"} {
		ranges, err := readRanges(path)
		if err != nil {
			return unknown(err)
		}
		files[path] = ranges
	}
	free := firstFree(append(files["/etc/subuid"], files["/etc/subgid"]...))
	span := fmt.Sprintf("%d-%d", free, free+idsWanted-1)
	var us, gs uint64
	for _, r := range o.SubUIDs {
		us += uint64(r.Count)
	}
	for _, r := range o.SubGIDs {
		gs += uint64(r.Count)
	}
	mend := fmt.Sprintf("usermod --add-subuids %s --add-subgids %s %s", span, span, o.Name)
	switch {
	case us == 0 && gs == 0:
		return problem(fmt.Sprintf("%s has none", o.Name), mend, h.as("podman system migrate")).
			by(Change{Kind: changeSubIDs, User: o.Name, After: span, Text: fmt.Sprintf("give %s the subordinate ids %s", o.Name, span)})
	case us == 0:
		return problem(fmt.Sprintf("%s has none in /etc/subuid", o.Name), fmt.Sprintf("usermod --add-subuids %s %s", likeOther(o.SubGIDs, files["/etc/subuid"], span), o.Name), h.as("podman system migrate"))
	case gs == 0:
		return problem(fmt.Sprintf("%s has none in /etc/subgid", o.Name), fmt.Sprintf("usermod --add-subgids %s %s", likeOther(o.SubUIDs, files["/etc/subgid"], span), o.Name), h.as("podman system migrate"))
	}
	if n := mappedIDs(); n > 0 {
		for _, r := range append(slices.Clone(o.SubUIDs), o.SubGIDs...) {
			if end := uint64(r.Start) + uint64(r.Count); end > n {
				return problem(fmt.Sprintf("%s has the ids %d-%d, and the user namespace that this runs in has none from %d on", o.Name, r.Start, end-1, n),
					fmt.Sprintf("give the container around more ids, or %s others: a range below %d in /etc/subuid and /etc/subgid", o.Name, n))
			}
		}
	}
	for path, ranges := range files {
		for _, a := range ranges {
			if a.who != o.Name && a.who != strconv.FormatUint(uint64(o.UID), 10) {
				continue
			}
			for _, b := range ranges {
				if b.who != o.Name && b.who != strconv.FormatUint(uint64(o.UID), 10) && a.start < b.start+b.count && b.start < a.start+a.count {
					return problem(fmt.Sprintf("%s gives %s and %s the same ids, from %d on", path, o.Name, b.who, max(a.start, b.start)),
						"give one of them another range, while neither has containers: "+mend)
				}
			}
		}
	}
	if us < idsWanted || gs < idsWanted {
		return warning(fmt.Sprintf("%s has %d user ids and %d group ids; images may need %d", o.Name, us, gs, idsWanted), mend, h.as("podman system migrate"))
	}
	return ok("%d user ids, %d group ids", us, gs)
}

// likeOther is the range that the user has in the other file, if nobody has it in
// this one: files of the store belong to it. Else it is the free one.
func likeOther(other []podman.IDRange, taken []idRange, free string) string {
	if len(other) == 0 {
		return free
	}
	start, end := uint64(other[0].Start), uint64(other[0].Start)+uint64(other[0].Count)
	for _, t := range taken {
		if start < t.start+t.count && t.start < end {
			return free
		}
	}
	return fmt.Sprintf("%d-%d", start, end-1)
}

// firstFree is where the first range after all others begins, as useradd has it.
func firstFree(all []idRange) uint64 {
	free := uint64(100000)
	for _, r := range all {
		free = max(free, r.start+r.count)
	}
	return free
}

func lookNewIDMap(_ context.Context, h *Host) Finding {
	if p := h.place(); p.inside() && noNewPrivileges() {
		return problem("no_new_privs is set: whatever they are, they get no privileges", p.outer(
			"start the container without --security-opt no-new-privileges", "allowPrivilegeEscalation: true in the securityContext"))
	}
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		path := ""
		for _, dir := range []string{"/usr/bin", "/bin", "/usr/local/bin"} {
			if fi, err := os.Stat(filepath.Join(dir, tool)); err == nil && fi.Mode().IsRegular() {
				path = filepath.Join(dir, tool)
				break
			}
		}
		if path == "" {
			return problem(tool+" is not installed", "apt-get install uidmap")
		}
		fi, err := os.Stat(path)
		if err != nil {
			return unknown(err)
		}
		caps, err := unix.Getxattr(path, "security.capability", nil)
		setuid, byCaps := fi.Mode()&fs.ModeSetuid != 0, err == nil && caps > 0
		if !setuid && !byCaps {
			return problem(path+" is neither setuid nor has file capabilities", "apt-get install --reinstall uidmap")
		}
		// As a program of root's it gives up the user's id, and then the kernel wants
		// CAP_SYS_ADMIN of it, which containers do not have (seen, Linux 6.18).
		if !byCaps && h.place().inside() && !mayHave(unix.CAP_SYS_ADMIN) {
			return problem(path+" is setuid, which does not do in a container without CAP_SYS_ADMIN",
				"in the image of the container: chmod u-s /usr/bin/newuidmap /usr/bin/newgidmap; setcap cap_setuid+ep /usr/bin/newuidmap; setcap cap_setgid+ep /usr/bin/newgidmap")
		}
	}
	return ok("both are there, with their privileges")
}

const lingerDir = "/var/lib/systemd/linger"

func lookLinger(_ context.Context, h *Host) Finding {
	if !host.HasSystemd() {
		return absent("no systemd here")
	}
	switch _, err := os.Lstat(filepath.Join(lingerDir, h.Owner.Name)); {
	case err == nil:
		return ok("linger is on")
	case !errors.Is(err, fs.ErrNotExist):
		return unknown(err)
	}
	return problem("linger is off", "loginctl enable-linger "+h.Owner.Name).
		by(Change{Kind: changeLinger, User: h.Owner.Name, Text: "enable linger for " + h.Owner.Name})
}

// bringUp is the command that starts the systemd of a user who has none running.
func (h *Host) bringUp() string {
	if on, err := there(filepath.Join(lingerDir, h.Owner.Name)); err == nil && on {
		return fmt.Sprintf("systemctl start user@%d.service", h.Owner.UID)
	}
	return "loginctl enable-linger " + h.Owner.Name
}

func lookRuntimeDir(_ context.Context, h *Host) Finding {
	dir := fmt.Sprintf("/run/user/%d", h.Owner.UID)
	if h.Owner.RuntimeDir != "" {
		dir = h.Owner.RuntimeDir
	}
	fi, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if !host.HasSystemd() {
			return warning(dir+" is not there; podman makes do with a folder in /tmp", fmt.Sprintf("install -d -m 700 -o %[1]d -g %[2]d %[3]s  # and set XDG_RUNTIME_DIR=%[3]s", h.Owner.UID, h.Owner.GID, dir))
		}
		return problem(dir+" is not there", h.bringUp())
	}
	if err != nil {
		return unknown(err)
	}
	st, is := fi.Sys().(*syscall.Stat_t)
	if !fi.IsDir() || !is || st.Uid != h.Owner.UID || fi.Mode().Perm()&0o077 != 0 {
		return problem(fmt.Sprintf("%s is not a folder of %s's alone (%s)", dir, h.Owner.Name, fi.Mode()), fmt.Sprintf("systemctl restart user-runtime-dir@%d.service", h.Owner.UID))
	}
	if v := h.Getenv("XDG_RUNTIME_DIR"); h.self() && v == "" {
		return warning("it is there, but XDG_RUNTIME_DIR is not set here", "export XDG_RUNTIME_DIR="+dir)
	}
	return ok("%s", dir)
}

func lookUserBus(ctx context.Context, h *Host) Finding {
	if !host.HasSystemd() {
		return absent("no systemd here")
	}
	if h.Owner.RuntimeDir == "" {
		return problem("no systemd of theirs runs", h.bringUp())
	}
	w, err := h.awake(ctx)
	if err != nil {
		return unknown(err)
	}
	const limit = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if _, err := askBy[map[string]host.UnitState](ctx, h, w, opUnits, []string{"default.target"}); err != nil {
		why := err.Error()
		if ctx.Err() != nil {
			why = fmt.Sprintf("it does not answer within %s", brief.Time(limit))
		}
		return problem(why, fmt.Sprintf("systemctl restart user@%d.service  # ends all that %s runs", h.Owner.UID, h.Owner.Name))
	}
	return ok("it answers")
}
