package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/verify"
)

const groupStorage = "storage"

// filesBudget is how long the look at the files of layers may take.
const filesBudget = 700 * time.Millisecond

func storageChecks() []Check {
	return []Check{
		{
			ID: "driver", Group: groupStorage, Title: "The storage driver",
			Why:   "vfs copies the whole image for every layer and container: slow, and many times the space. fuse-overlayfs is slower than the kernel's overlay.",
			Mends: "storagectl migrate --to overlay.",
			Look:  withInfo(lookDriver),
		},
		{
			ID: "graphroot", Group: groupStorage, Title: "The filesystem of the store",
			Why:   "Overlay needs a local filesystem that has whiteouts and d_type; on CephFS and NFS podman falls back to fuse-overlayfs or fails. With nosuid or noexec programs in containers of vfs do not work; a mount below the graphroot is taken away by podman's cleaning up.",
			Mends: "Move the store to a local disk or an image of Ceph (RBD): storagectl relocate. Mount it without nosuid and noexec, at the graphroot itself.",
			Look:  rooted(lookGraphRoot),
		},
		{
			ID: "space", Group: groupStorage, Title: "Room on the filesystem of the store",
			Why:   "A full disk stops pulls and containers in the middle of a write, and podman's database with them.",
			Mends: "podman image prune; storagectl relocate to a larger disk, or with --size, where the store is on an image of Ceph that can grow.",
			Look:  rooted(lookSpace),
		},
		{
			ID: "reclaimable", Group: groupStorage, Title: "What nobody uses",
			Why:   "Images without a name, and exited containers, keep their layers.",
			Mends: "podman image prune; podman container prune.",
			Look:  lookReclaimable,
		},
		{
			ID: "external-containers", Group: groupStorage, Title: "Containers of other tools",
			Why:   "buildah leaves its working container behind when a build is cut off. podman ps does not show it, and its image cannot be removed.",
			Mends: "podman ps --all --external shows them; podman rm, or buildah rm, removes them.",
			Look:  lookExternal,
		},
		{
			ID: "store-records", Group: groupStorage, Title: "The store's records are whole",
			Why:   "An image whose layer or manifest is gone cannot be run, saved or converted.",
			Mends: "Pull the image anew: podman rmi -f, podman pull. storagectl migrate --keep-damaged carries it over as it is.",
			Look:  lookRecords,
		},
		{
			ID: "store-files", Group: groupStorage, Title: "The files of image layers are there",
			Why:   "Containers see what lies in the layers' folders, whatever the records say. A short look compares types and sizes with the store's lists; storagectl verify --read-data reads all content.",
			Mends: "Pull the image anew: podman rmi -f, podman pull.",
			Limit: 15 * time.Second,
			Look:  rooted(lookFiles),
		},
		{
			ID: "locks", Group: groupStorage, Title: "Nobody sits on the store's locks",
			Why:   "Podman waits for its locks without end. A process that is stopped, or hangs in the kernel on a dead disk, holds them for ever.",
			Mends: "kill -CONT the process that is named, or end it.",
			Look:  rooted(lookLocks),
		},
		{
			ID: "leftover-runs", Group: groupStorage, Title: "What runs of storagectl have left",
			Why:   "The folder of a run holds the old store until the commit, and takes its space. One that no run knows may hold the only copy of something.",
			Mends: "storagectl commit or rollback; storagectl history lists the runs.",
			Look:  rooted(lookLeftovers),
		},
		{
			ID: "mount-program-flag", Group: groupStorage, Title: "No stale .has-mount-program",
			Why:   "Podman writes true into this file when it opens a store with a mount program, and later takes that for a sign that native overlay is not possible: rootless podman without a configured driver then stays on fuse-overlayfs or vfs.",
			Mends: "Remove it, if no mount program is configured and no layer was made by one; else storagectl migrate --to overlay.",
			Fixes: "removes it where no layer has the marks of fuse-overlayfs (.wh. files). Taken back by making it again.",
			Look:  rooted(lookMountProgram),
		},
	}
}

func lookDriver(_ context.Context, h *Host, i infoSeen) Finding {
	migrate := "storagectl migrate --to overlay" + h.userFlag() + " --dry-run"
	program := ""
	for k, v := range i.Store.GraphOptions {
		if !strings.HasSuffix(k, ".mount_program") {
			continue
		}
		program = fmt.Sprint(v)
		if m, is := v.(map[string]any); is {
			program = fmt.Sprint(m["Executable"])
		}
	}
	switch d := i.Store.GraphDriverName; {
	case d == "vfs":
		s, err := h.store()
		if p := h.place(); err == nil && s.FSType == "overlay" && p.inside() {
			return warning("vfs, on the root of a container, which is an overlay itself", volumeMend(p, i.Store.GraphRoot)+"; then "+migrate)
		}
		if err != nil || noOverlay(s.FSType) {
			return warning("vfs", "move it to a filesystem that holds overlay, and convert it on its way or there: storagectl relocate")
		}
		return warning("vfs", migrate)
	case d != "overlay":
		return warning(d + ", which newer podman does not support")
	case program != "":
		saw := "overlay by " + program + ", not by the kernel"
		if s, err := h.store(); err == nil && noOverlay(s.FSType) {
			return warning(saw, "move it to a filesystem that holds the kernel's overlay (storagectl relocate"+h.userFlag()+"); then "+migrate)
		}
		// Not by taking mount_program away: what the program has marked as deleted the
		// kernel would show again.
		return warning(saw, migrate)
	case i.Store.GraphStatus["Native Overlay Diff"] == "false":
		return ok("overlay by the kernel; without native diff, so that commits are slower")
	}
	return ok("overlay, by the kernel")
}

// volumeMend is how a container gets a folder that is on no overlay.
func volumeMend(p place, path string) string {
	return p.outer("start the container with a volume at "+word(path), "a volume of the pod (emptyDir, or a claim) at "+word(path))
}

// noOverlay names the filesystems on which the kernel's overlay cannot lie.
func noOverlay(fsType string) bool {
	return slices.Contains([]string{"ceph", "nfs", "fuse", "overlay"}, fsType)
}

func (h *Host) lookStore(ctx context.Context) (storeSeen, error) {
	g, r, d, err := h.root()
	if err != nil {
		return storeSeen{}, err
	}
	return askOwner[storeSeen](ctx, h, opStore, storeArgs{g, r, d})
}

func lookGraphRoot(_ context.Context, h *Host, graphRoot, _, driver string) Finding {
	s, err := h.store()
	if err != nil {
		return notSeen(err)
	}
	relocate := "storagectl relocate" + h.userFlag() + " --path DIR --dry-run  # DIR on a local disk"
	if p := h.place(); p.inside() {
		relocate = volumeMend(p, graphRoot)
	}
	saw := fmt.Sprintf("%s on %s", graphRoot, s.FSType)
	for _, o := range []string{"ro", "noexec", "nosuid"} {
		if !slices.Contains(s.Options, o) {
			continue
		}
		instead := map[string]string{"nosuid": "suid", "noexec": "exec", "ro": "rw"}[o]
		f := problem(fmt.Sprintf("%s, mounted %s at %s", saw, o, s.MountedOn), fmt.Sprintf("mount -o remount,%s %s  # and the same in /etc/fstab", instead, word(s.MountedOn)))
		if o != "ro" && driver == "overlay" { // an overlay has flags of its own
			f.Outcome = Warning
		}
		return f
	}
	for _, m := range s.Mounts {
		if m == filepath.Join(graphRoot, "overlay") && !s.OwnOverlay {
			return problem(fmt.Sprintf("something is mounted at %s, which podman unmounts when it cleans up", m), "mount that filesystem at "+graphRoot+" itself")
		}
	}
	if driver == "overlay" {
		c, err := h.conf()
		if err != nil {
			return notSeen(err)
		}
		switch program := c.effective("mount_program").Value; {
		case s.FSType == "tmpfs":
			return warning(saw+": it is gone after a boot", relocate)
		case noOverlay(s.FSType) && program == "":
			return problem(saw+", which cannot hold the kernel's overlay", relocate)
		case s.NoDType:
			return problem(saw+" without d_type (XFS made with ftype=0)", relocate)
		}
	}
	if s.FSType == "overlay" {
		return warning(saw+": an overlay itself, which holds no other, and in a container goes with it", relocate)
	}
	if noOverlay(s.FSType) {
		return warning(saw+": a network filesystem; podman locks and many small files are slow there", relocate)
	}
	return ok("%s", saw)
}

func ref(graphRoot, runRoot, driver string) verify.StoreRef {
	return verify.StoreRef{GraphRoot: graphRoot, RunRoot: runRoot, Driver: driver}
}

func lookReclaimable(_ context.Context, h *Host) Finding {
	r, err := h.records()
	if err != nil {
		return notSeen(err)
	}
	c, err := h.conf()
	if err != nil {
		return notSeen(err)
	}
	exited := 0
	for _, db := range c.Databases {
		for _, ct := range db.Containers {
			if ct.State == "exited" || ct.State == "stopped" {
				exited++
			}
		}
	}
	saw := fmt.Sprintf("%d of %d images without a name and unused, %d exited containers", r.Dangling, r.Images, exited)
	var mend []string
	if r.Dangling > 0 {
		mend = append(mend, h.as("podman image prune"))
	}
	if r.Dangling > max(10, r.Images/2) {
		return warning(saw, mend...)
	}
	f := ok("%s", saw)
	f.Mend = mend
	return f
}

func lookExternal(_ context.Context, h *Host) Finding {
	r, err := h.records()
	if err != nil {
		return notSeen(err)
	}
	c, err := h.conf()
	if err != nil {
		return notSeen(err)
	}
	known := map[string]bool{}
	for _, db := range c.Databases {
		for _, ct := range db.Containers {
			known[ct.ID] = true
		}
	}
	var names []string
	for _, ct := range r.Containers {
		if !known[ct.ID] && time.Since(ct.Created) > time.Hour { // a build may be under way
			names = append(names, ct.Name)
		}
	}
	if len(names) == 0 {
		return ok("none that is older than an hour")
	}
	return warning(fmt.Sprintf("%d that podman does not know: %s", len(names), few(names)), h.as("podman rm -- "+words(names[:min(5, len(names))])))
}

// few names the first of many.
func few(names []string) string {
	if len(names) > 5 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:5], ", "), len(names)-5)
	}
	return strings.Join(names, ", ")
}

func lookRecords(_ context.Context, h *Host) Finding {
	r, err := h.records()
	if err != nil {
		return notSeen(err)
	}
	if len(r.Damage) == 0 {
		return ok("%d images, %d layers, %d containers", r.Images, r.Layers, len(r.Containers))
	}
	return problem(few(r.Damage), damageMends(h, r.Broken)...)
}

func damageMends(h *Host, images []string) []string {
	if len(images) == 0 {
		return []string{"find the image (" + h.as("podman images --all") + "), remove it with podman rmi -f and pull it anew"}
	}
	var mends []string
	for _, i := range images[:min(3, len(images))] {
		mends = append(mends, h.as("podman rmi -f -- "+word(i))+" && "+h.as("podman pull -- "+word(i)))
	}
	return mends
}

func lookFiles(ctx context.Context, h *Host, graphRoot, runRoot, driver string) Finding {
	if driver != "vfs" && driver != "overlay" {
		return absent("nothing is known of the driver %s", driver)
	}
	r, err := askOwner[verify.QuickReport](ctx, h, opFiles, ref(graphRoot, runRoot, driver))
	if err != nil {
		return notSeen(err)
	}
	if len(r.Damage) > 0 {
		return problem(few(r.Damage), damageMends(h, nil)...)
	}
	return ok("%d files in %d of %d layers are as listed", r.Files, r.Looked, r.Layers)
}

func lookLocks(ctx context.Context, h *Host, graphRoot, runRoot, driver string) Finding {
	files, err := askOwner[map[string]string](ctx, h, opLocks, storeArgs{graphRoot, runRoot, driver})
	if err != nil {
		return unknown(err)
	}
	held, err := locksHeld(files)
	if err != nil {
		return unknown(err)
	}
	for _, l := range held {
		switch l.state {
		case "T", "t":
			return problem(fmt.Sprintf("%s is held by %s (pid %d), which is stopped", l.path, l.name, l.pid), fmt.Sprintf("kill -CONT %d", l.pid))
		case "D":
			return warning(fmt.Sprintf("%s is held by %s (pid %d), which waits for the disk", l.path, l.name, l.pid), "dmesg  # does the disk answer?")
		}
	}
	return ok("%d are held, all by processes that run", len(held))
}

func lookLeftovers(_ context.Context, h *Host, graphRoot, _, _ string) Finding {
	s, err := h.store()
	if err != nil {
		return notSeen(err)
	}
	var known, strange []string
	for _, l := range s.Leftover {
		if h.runOf(l) != "" {
			known = append(known, l)
		} else {
			strange = append(strange, l)
		}
	}
	switch {
	case len(strange) > 0:
		return warning(few(strange)+": left from a run that this state directory does not know",
			"storagectl history  # as who began it; it may hold the only copy of a store, so do not delete it")
	case len(known) > 0:
		return warning(few(known)+": kept from an earlier run", h.leftoverMends(known)...)
	case len(s.Staging) > 0:
		return warning(few(s.Staging)+": left from pulls that were cut off", "podman removes them when it next starts after a boot")
	}
	return ok("nothing in %s", graphRoot)
}

// leftoverMends are the commands that end what folders of runs are kept for. None
// deletes anything without asking, should all be pasted at once.
func (h *Host) leftoverMends(folders []string) []string {
	var mends []string
	for _, folder := range folders {
		run := h.runOf(folder)
		next, told := h.Next[run]
		switch {
		case strings.HasSuffix(folder, "-stray"):
			mends = append(mends, h.as("podman --root "+word(folder)+" images")+"  # made while the store was away; no command removes it")
		case len(next) > 0:
			mends = append(mends, strings.Join(next, "  # or "))
		case told:
			remove := "rm -rf " + word(folder)
			if !h.Owner.Rootful() {
				remove = "podman unshare " + remove
			}
			mends = append(mends, "storagectl status "+run+"  # rolled back: what was made after its cutover is kept; if nobody wants that, "+h.as(remove))
		default:
			mends = append(mends, "storagectl status "+run)
		}
	}
	return mends
}

// runOf is the run that a folder is of, "" if this state directory knows none.
func (h *Host) runOf(folder string) string {
	for _, run := range h.Runs {
		if strings.Contains(filepath.Base(folder), ".storagectl-"+run) {
			return run
		}
	}
	return ""
}

func lookMountProgram(ctx context.Context, h *Host, graphRoot, _, driver string) Finding {
	s, err := h.store()
	if err != nil {
		return notSeen(err)
	}
	if !s.HasMountProgram {
		return ok("there is none that says true")
	}
	c, err := h.conf()
	if err != nil {
		return notSeen(err)
	}
	path := filepath.Join(graphRoot, "overlay", mountProgramFlag)
	if p := c.effective("mount_program").Value; p != "" {
		return ok("it is there, and %s is configured", p)
	}
	f := warning(path+" says true, and no mount program is configured", "rm "+path)
	if by, err := askOwner[string](ctx, h, opFuseOnly, graphRoot); err != nil || by != "" {
		if by != "" {
			f.Mend = []string{"storagectl migrate --to overlay" + h.userFlag() + " --dry-run  # " + by + " was made by fuse-overlayfs, and native overlay would show it wrongly: this converts it"}
		}
		return f
	}
	return f.by(Change{Kind: changeFlag, Path: path, Before: "true", Text: "remove " + path})
}
