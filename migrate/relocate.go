package migrate

import (
	"context"
	"path/filepath"
	"slices"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/rbd"
	"github.com/storagectl/storagectl/verify"
)

// JobRelocate is the name of the relocate job.
const JobRelocate = "relocate"

// The steps of a relocate job that a migrate job has not, by the names that
// journals know.
const (
	stepTarget   = "target"
	stepCopy     = "copy"
	stepReadBack = "read-back"
	stepManifest = "manifest"
	stepCopyRest = "copy-rest"
	stepMount    = "mount"
)

// How a relocated graphroot is mounted after a boot.
const (
	MountAuto = "automount" // when it is first used
	MountBoot = "boot"
)

// Relocation is what an operator asks of a relocate job.
type Relocation struct {
	// Path is a folder on a filesystem that is mounted already; the store gets a
	// folder of its own in it.
	Path string `json:"path,omitempty"`
	// Device is a block device whose filesystem the store gets for itself: a path,
	// or UUID=…, LABEL=… of a filesystem that holds nothing, PARTUUID=…, PARTLABEL=….
	Device string `json:"device,omitempty"`
	// RBD is an image of Ceph, POOL[/NAMESPACE]/IMAGE, that the store gets for itself.
	RBD      string   `json:"rbd,omitempty"`
	Size     int64    `json:"size,omitempty"`     // bytes of an image, or quota of a subvolume, that is to be made
	DataPool string   `json:"dataPool,omitempty"` // for its data, where another
	Features []string `json:"features,omitempty"` // of an image that is to be made; none: as the cluster has it
	Mapper   string   `json:"mapper,omitempty"`   // krbd, nbd or fuse; "": krbd where the kernel has it
	// MakeNamespace makes the namespace that RBD names where it is not there.
	MakeNamespace bool             `json:"makeNamespace,omitempty"`
	Cluster       cephlink.Cluster `json:"cluster,omitzero"`
	TakeOver      bool             `json:"takeOver,omitempty"` // shut out who holds the image and is dead
	// CephFS is FS:/PATH, in which the store gets a folder of its own.
	CephFS string `json:"cephfs,omitempty"`
	// MakeSubvolume makes the subvolume that CephFS names (FS:@GROUP/NAME) where it is
	// not there, with Size as its quota, and MakeGroup its group, too.
	MakeSubvolume bool   `json:"makeSubvolume,omitempty"`
	MakeGroup     bool   `json:"makeGroup,omitempty"`
	Mounter       string `json:"mounter,omitempty"` // kernel or fuse; "": the kernel's where it has one
	FS            string `json:"fs,omitempty"`      // the filesystem to make: xfs or ext4
	Format        bool   `json:"format,omitempty"`  // make it anew where one is that holds no files
	Driver        string `json:"driver,omitempty"`  // DriverVFS, DriverFuse; "": as the store is
	Mount         string `json:"mount"`             // MountAuto or MountBoot
	Rate          int64  `json:"rate,omitempty"`    // bytes a second of the copy beside the live store; 0: no limit
}

// Target is where a store goes, as it was found before the run.
type Target struct {
	Kind   string       `json:"kind"`           // KindPath, KindHome, KindDevice or KindRBD
	Where  string       `json:"where"`          // the folder that the operator gave, or the device
	On     string       `json:"on,omitempty"`   // the mount point that the folder lies on
	FSType string       `json:"fsType"`         // as the kernel names it
	ID     string       `json:"id,omitempty"`   // of the folder's filesystem
	Free   uint64       `json:"free"`           // bytes
	Make   bool         `json:"make,omitempty"` // a filesystem is made on the device, as far as can be told
	Image  *TargetImage `json:"image,omitempty"`
	Place  *TargetPlace `json:"place,omitempty"`
	// Program mounts overlays there in the kernel's place, and SetProgram says that
	// storage.conf is to be told so.
	Program    string `json:"program,omitempty"`
	SetProgram bool   `json:"setProgram,omitempty"`
	// Units says that units of systemd's mount it after a boot, and not fstab:
	// others than root can change the path of the graphroot.
	Units bool `json:"units,omitempty"`
	// Trim says that a weekly trim is told of it: of what units mount systemd knows none.
	Trim bool `json:"trim,omitempty"`
}

// TargetImage is an RBD image as target.
type TargetImage struct {
	Spec     rbd.Spec         `json:"spec"`
	Cluster  cephlink.Cluster `json:"cluster"`
	Create   bool             `json:"create,omitempty"` // it is to be made
	Size     int64            `json:"size,omitempty"`   // bytes
	DataPool string           `json:"dataPool,omitempty"`
	Features []string         `json:"features,omitempty"`
	// MakeNamespace says that its namespace is not there, and is to be made.
	MakeNamespace bool       `json:"makeNamespace,omitempty"`
	Mapper        rbd.Mapper `json:"mapper"`
	FSID          string     `json:"fsid,omitempty"` // of the cluster
	Wait          int        `json:"wait,omitempty"` // seconds for which a boot waits for it
	// Had is how many bytes the image had on which the store stands already, and
	// which only grows; 0: it is to be moved there.
	Had int64 `json:"had,omitempty"`
	// Holders are the dead clients that it is taken over from.
	Holders []rbd.Locker `json:"holders,omitempty"`
}

// TargetPlace is a folder of a CephFS as target.
type TargetPlace struct {
	Place   ceph.Place       `json:"place"` // the store's own folder
	Cluster cephlink.Cluster `json:"cluster"`
	Create  bool             `json:"create,omitempty"` // it is to be made
	Mounter ceph.Mounter     `json:"mounter"`
	FSID    string           `json:"fsid,omitempty"`
	Syntax  ceph.Syntax      `json:"syntax,omitempty"` // of a kernel mount's source
	// Subvolume is made for it. Place has no path then: the run learns it.
	Subvolume *ceph.NewSubvolume `json:"subvolume,omitempty"`
}

// The kinds of targets.
const (
	KindPath   = "path"
	KindHome   = "home" // the folder that the graphroot lies in: no mount any more
	KindDevice = "device"
	KindRBD    = "rbd"
	KindCephFS = "cephfs"
)

// TargetFact is what a run learned of its target.
type TargetFact struct {
	UUID   string `json:"uuid"` // of the device's filesystem
	FSType string `json:"fsType"`
}

// CopyFact is what copying beside the live store, or after the stop, did.
type CopyFact struct {
	Files   int64   `json:"files"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

func (s *Session) relocating() bool { return s.Inputs.Request.Relocate != nil }

// relocateSteps copies the store to the target and mounts that at the same path.
// Until the last step the old store is whole, beside the mount point.
func (s *Session) relocateSteps() []engine.Step {
	ready := []string{stepTarget}
	var image []engine.Step
	var mapped []string
	if s.Inputs.Target.Kind == KindRBD {
		mapped = []string{stepImage}
		ready = []string{stepImage, stepTarget}
		if len(s.Inputs.Target.Image.Holders) > 0 {
			image = []engine.Step{{Name: stepTakeOver, Title: "shut out the dead holder of the image", Holds: s.takenOver, Do: s.takeOver, Undo: s.tellShutOut}}
		}
		image = append(image, engine.Step{Name: stepImage, Title: "make the image a device of this host", Holds: s.imageMapped, Do: s.mapImage, Undo: s.unmapImage})
	}
	stopped := append(slices.Clone(ready), stepStop)
	swap := engine.Step{Name: stepSwap, Title: "move the old store aside", Needs: append(slices.Clone(stopped), stepManifest),
		Holds: s.asideAlone, Do: s.moveAside, Undo: s.moveBack}
	commit := engine.Step{Name: stepCommit, Title: "remove the old store", Final: true, Needs: []string{stepMount},
		Holds: s.asideGone, Do: s.removeAside}
	if s.Inputs.Store.Mount != nil {
		swap.Title = "take the old store's mount down"
		swap.Holds, swap.Do, swap.Undo = s.oldAway, s.takeOldDown, s.putOldUp
		commit.Holds, commit.Do = s.oldGone, s.removeOldMount
	}
	mount := engine.Step{Name: stepMount, Title: "mount the target in its place", Needs: stopped,
		Holds: s.mounted, Do: s.mountTarget, Undo: s.unmountTarget}
	if s.home() {
		mount.Title = "move the copy to its place"
		mount.Do, mount.Undo = s.moveHome, s.leaveHome
	}
	c := s.conversion(ready, stopped)
	var conf []engine.Step // before the mount: no podman must meet the new place without it
	if s.Inputs.Target.SetProgram {
		conf = []engine.Step{{Name: stepConf, Title: "write storage.conf", Needs: stopped,
			Holds: s.configured, Do: s.configure, Undo: s.unconfigure}}
	}
	return slices.Concat(image, []engine.Step{
		{Name: stepTarget, Title: "prepare the target", Needs: mapped,
			Holds: s.targetReady, Do: s.prepareTarget, Undo: s.releaseTarget},
	}, c.live, []engine.Step{
		{Name: stepCopy, Title: "copy the store beside the live one", Pausable: true, Needs: ready,
			Do: s.copyLive},
		{Name: stepReadBack, Title: "read the copy back", Pausable: true, Needs: ready,
			Do: s.readBack},
		{Name: stepStop, Title: "stop podman", Pausable: true,
			Holds: s.stopped, Do: s.stop, Undo: s.putBack},
		{Name: stepManifest, Title: "take the manifest of the stopped store", Needs: stopped,
			Holds: s.manifestFresh, Do: s.takeManifest},
		swap,
		{Name: stepCopyRest, Title: "copy what changed since", Needs: stopped,
			Do: s.copyRest},
	}, c.rest, conf, []engine.Step{
		mount,
	}, c.mounted, []engine.Step{
		{Name: stepVerify, Title: "verify against the manifest and run a container", Needs: []string{stepStop, stepMount},
			Do: s.verifyMoved},
		{Name: stepStart, Title: "start what ran before",
			Holds: s.started, Do: s.startUnits},
		commit,
	})
}

// alone reports whether the store gets a filesystem for itself.
func (s *Session) alone() bool { return s.Inputs.Target.Kind != KindPath && !s.home() }

// aside is where the old store lies until the commit: beside its mount point, so
// that a rename takes it there and back; or, where it has a mount of its own, at
// the run's place for that.
func (s *Session) aside() string { return s.Inputs.OldStore(s.ID) }

func asideOf(graphRoot, run string) string {
	return graphRoot + asideMark + run
}

const asideMark = ".storagectl-"

// targetFolder is the folder of the target that becomes the graphroot, as it can
// be reached until it does.
func (s *Session) targetFolder() string {
	if s.home() {
		return s.Inputs.Store.GraphRoot + asideMark + s.ID + "-new"
	}
	if s.alone() {
		return filepath.Join(privateMounts, s.ID)
	}
	return filepath.Join(s.Inputs.Target.Where, folderOf(s.Inputs))
}

// privateMounts is where a run mounts a device until it takes the store's place.
// Only root can change anything in it; the owner reaches what is the owner's.
const privateMounts = "/run/storagectl/mounts"

// TargetFolder is the folder or device that a relocation puts in the store's
// place, "" in another job.
func (s *Session) TargetFolder() string {
	if !s.relocating() {
		return ""
	}
	if s.alone() {
		return s.Inputs.Target.Where
	}
	if s.home() {
		return s.Inputs.Store.GraphRoot
	}
	return s.targetFolder()
}

// takeManifest takes the manifest that the result is judged by.
func (s *Session) takeManifest(ctx context.Context) error {
	if err := s.refuseContainers(ctx); err != nil {
		return err
	}
	part, err := ask[verify.StorePart](ctx, s, opManifest, s.storeRef(s.Inputs.Store.Driver))
	if err != nil {
		return err
	}
	if err := s.noteManifest(ctx, part); err != nil {
		return err
	}
	s.manifested = true
	return nil
}

// manifestFresh observes that podman has not been used since the manifest was taken:
// this process took it, or the store is out of podman's reach already. A boot in
// between starts podman on the old store, and what it makes or removes then is the
// store that is moved.
func (s *Session) manifestFresh(context.Context) (bool, error) {
	if s.facts.Before == nil {
		return false, nil
	}
	if s.manifested || s.journal.State().Phase == engine.PhaseRollingBack {
		return true, nil
	}
	return s.asideThere()
}
