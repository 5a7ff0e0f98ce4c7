package migrate

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"time"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
	"github.com/storagectl/storagectl/internal/window"
	"github.com/storagectl/storagectl/migrate/convert"
	"github.com/storagectl/storagectl/verify"
	"github.com/storagectl/storagectl/verify/dockerapi"
)

// JobMigrate is the name of the migrate job.
const JobMigrate = "migrate"

// overlay is the driver that has two ways of mounting.
const overlay = "overlay"

// What becomes of images and containers.
const (
	Keep    = "keep"
	Refuse  = "refuse" // containers only
	Discard = "discard"
	// Checkpoint keeps containers, and the memory of those that run; containers only.
	Checkpoint = "checkpoint"
)

// Request is what an operator asks of a migrate job.
type Request struct {
	To          string `json:"to"`
	User        string `json:"user,omitempty"` // "": the caller
	Images      string `json:"images"`         // Keep or Discard
	Containers  string `json:"containers"`     // Keep, Checkpoint, Refuse or Discard
	KeepDamaged bool   `json:"keepDamaged,omitempty"`
	SmokeImage  string `json:"smokeImage,omitempty"`
	MigrateDB   bool   `json:"migrateDB,omitempty"` // podman's database, from BoltDB to SQLite
	Commit      bool   `json:"commit,omitempty"`    // remove the old store at the end
	Outage      Outage `json:"outage,omitzero"`
	Parent      string `json:"parent,omitempty"` // RUN/TASK of the runbook that asks; "": none
	// Window is when the host may be out of service; nil: at any time. A job waits for
	// it as long as WindowWait; with Now it does not matter.
	Window     *window.Window `json:"window,omitempty"`
	WindowWait time.Duration  `json:"windowWait,omitempty"`
	Now        bool           `json:"now,omitempty"`
	// Relocate is nil in a migrate job.
	Relocate *Relocation `json:"relocate,omitempty"`
}

// Store is the container store of a job, as podman told it before the run.
type Store struct {
	GraphRoot string `json:"graphRoot"`
	RunRoot   string `json:"runRoot"`
	Driver    string `json:"driver"`
	// Program mounts the store's overlays in the kernel's place, "" where the kernel does.
	Program     string   `json:"program,omitempty"`
	Options     []string `json:"options,omitempty"`
	ImageStores []string `json:"imageStores,omitempty"`
	// LeftStores are those of ImageStores that hold nothing for the new driver:
	// they stay where they are, and podman will not see their images.
	LeftStores []string      `json:"leftStores,omitempty"`
	VolumePath string        `json:"volumePath,omitempty"`
	Database   string        `json:"database,omitempty"` // path of the libpod database
	DBKind     libpoddb.Kind `json:"dbKind"`
	MountedOn  string        `json:"mountedOn,omitempty"` // the mount point that the graphroot lies on
	// Mount is what a relocate job finds mounted at the graphroot itself.
	Mount *OldMount `json:"mount,omitempty"`
}

// Inputs are all that a run is built from; they stand in its first record.
type Inputs struct {
	Request Request      `json:"request"`
	Owner   podman.Owner `json:"owner"`
	Store   Store        `json:"store"`
	// Nomad is nil where Nomad places nothing in this store: the plan then has
	// no steps for it.
	Nomad *NomadUse `json:"nomad,omitempty"`
	// Target is where a relocate job moves the store.
	Target *Target `json:"target,omitempty"`

	// ConfEnv is the caller's environment as far as podman's configuration
	// depends on it.
	ConfEnv []string `json:"confEnv,omitempty"`
	Systemd bool     `json:"systemd"`         // the owner's units can be reached
	Podman  string   `json:"podman"`          // version
	HadTo   bool     `json:"hadTo,omitempty"` // folders of the new driver were there already
	// UnitFiles are the owner's units that have the old driver's name in the path of
	// a pid file.
	UnitFiles []string `json:"unitFiles,omitempty"`
	// Left is, of a job with a window, how many bytes of containers are copied while
	// podman is down.
	Left int64 `json:"left,omitempty"`
}

// Job names the job of these inputs.
func (in Inputs) Job() string {
	switch {
	case in.Growing():
		return JobGrow
	case in.Request.Relocate != nil:
		return JobRelocate
	}
	return JobMigrate
}

// There reports whether the store is what is asked for already, so that a migrate job
// has nothing to do.
func (in Inputs) There() bool { return in.Store.Driver == in.Request.To && !in.Unfusing() }

// Unfusing reports whether a migrate job is to have the kernel mount overlays, which a
// program mounts now.
func (in Inputs) Unfusing() bool {
	return in.Request.Relocate == nil && in.Request.Images == Keep && !in.DatabaseOnly() && in.Request.To == overlay &&
		in.Store.Driver == overlay && in.Store.Program != ""
}

// From is what the store is on, in a word; To what it will be on.
func (in Inputs) From() string {
	if in.Store.Driver == overlay && in.Store.Program != "" {
		return filepath.Base(in.Store.Program)
	}
	return in.Store.Driver
}

// To is in a word what the store will be on.
func (in Inputs) To() string {
	if in.Unfusing() {
		return "native overlay"
	}
	return in.Request.To
}

// Converting reports whether a relocation also brings the store to another driver.
func (in Inputs) Converting() bool {
	return in.Request.Relocate != nil && in.Request.To != in.Store.Driver
}

// converted are the entries of a graphroot that a relocation converts, and those
// that it makes of them.
func (in Inputs) converted() []string {
	if !in.Converting() {
		return nil
	}
	return append(storeParts(in.Store.Driver), storeParts(in.Request.To)...)
}

// StoreKey names the lock of the store.
func (in Inputs) StoreKey() string {
	return fmt.Sprintf("%d-%x", in.Owner.UID, sha256.Sum256([]byte(in.Store.GraphRoot)))[:32]
}

// Facts are what a migrate run learned and must remember.
type Facts struct {
	// Units ran before and are started again, last stopped first.
	Units *units `json:"units,omitempty"`
	// Since are the other units that ran when a rollback stopped podman: they
	// were begun after the migration.
	Since *units `json:"since,omitempty"`
	// Ran are the containers that are started again, the one that was started
	// first first; units start their own.
	Ran []Ran `json:"ran,omitempty"`
	// Checked are the images whose staged files were compared with the old ones.
	Checked []string `json:"checked,omitempty"`
	// Stage is what staging beside the live store did.
	Stage *StageFact `json:"stage,omitempty"`
	// Before names the manifest of the stopped store in the run's folder.
	Before *FileRef `json:"before,omitempty"`
	// BeforeAnew are those that were taken since of a store that is moved, because
	// podman could be used in between. The last one counts.
	BeforeAnew []FileRef `json:"beforeAnew,omitempty"`
	// Sample names the hashes of sampled files of the stopped store.
	Sample *FileRef `json:"sample,omitempty"`
	// Sizes names what the layers had on the disk, for the report.
	Sizes *FileRef `json:"sizes,omitempty"`
	// Conf is storage.conf as it was, and as the run wrote it.
	Conf *ConfFact `json:"conf,omitempty"`
	// OldDB is podman's database as it was before it was moved to SQLite, and NewDB
	// where it is since.
	OldDB *libpoddb.Facts `json:"oldDB,omitempty"`
	NewDB string          `json:"newDB,omitempty"`
	// OldDBAnew is OldDB as it was found since, because podman was used in between. The
	// last one counts.
	OldDBAnew []libpoddb.Facts `json:"oldDBAnew,omitempty"`
	// UnitFiles are units' files as they were, and as the run wrote them.
	UnitFiles *[]UnitFact `json:"unitFiles,omitempty"`
	// Thawed are containers whose checkpoint was used or given up by podman after the
	// cutover, which the saved database does not know.
	Thawed []string `json:"thawed,omitempty"`
	// Dropped are the containers that were given up on the operator's word.
	Dropped *[]string `json:"dropped,omitempty"`
	// Smoke is what the smoke test saw.
	Smoke *verify.SmokeReport `json:"smoke,omitempty"`
	// DockerAPI are the calls of a Docker client that were made before the return.
	DockerAPI []dockerapi.Call `json:"dockerAPI,omitempty"`
	// Needs are what the run would take of its maintenance window, each time that the
	// gate was reached while the window was open.
	Needs []NeedFact `json:"needs,omitempty"`
	// Returning says that the run began to give its Nomad nodes back.
	Returning bool `json:"returning,omitempty"`
	// Drains are the drains that were set, the last of a node last: what another
	// hand makes of one is known by them.
	Drains []drain.Mark `json:"drains,omitempty"`
	// Back are the nodes as a way back found them, where they had been given back.
	Back []drain.Node `json:"back,omitempty"`
	// KeptNew says that a rollback left the new store in the run's folder,
	// because it held what the old one does not.
	KeptNew []string `json:"keptNew,omitempty"`

	// Target is what a relocate run learned of its target.
	Target *TargetFact `json:"target,omitempty"`
	// Subvolume is the one of CephFS that the run began to make (nil: it was there, or
	// there is none), and SubvolumePath its folder once it is made.
	Subvolume     *SubvolumeFact `json:"subvolume,omitempty"`
	SubvolumePath string         `json:"subvolumePath,omitempty"`
	// Namespace says that the run began to make the namespace of its image.
	Namespace bool `json:"namespace,omitempty"`
	// Required are the units that systemd stopped with the mount that had to go for a growth,
	// until they are started again.
	Required []string `json:"required,omitempty"`
	// Mapped says that the image was not mapped here before the run mapped it.
	Mapped bool `json:"mapped,omitempty"`
	// Grown is what growing did.
	Grown *GrowFact `json:"grown,omitempty"`
	// Tried says that the target can do what the store needs.
	Tried bool `json:"tried,omitempty"`
	// Fstab is /etc/fstab as it was, and as the run wrote it.
	Fstab *FstabFact `json:"fstab,omitempty"`
	// OldBoot are the units' files that told a boot of the mount which the run took
	// down, and of what waits for it.
	OldBoot *[]host.BootFile `json:"oldBoot,omitempty"`
	// SourceGone says that a commit took away what an earlier run had made for the
	// old store to be on.
	SourceGone bool `json:"sourceGone,omitempty"`
	// Boots are those in which the copy was worked on, by the kernel's boot id.
	Boots []string `json:"boots,omitempty"`
	// RestBegun says that copying after the stop was begun before.
	RestBegun bool `json:"restBegun,omitempty"`
	// Copied is what copying beside the live store did, and Rest what it did
	// after podman was stopped.
	Copied *CopyFact `json:"copied,omitempty"`
	Rest   *CopyFact `json:"rest,omitempty"`
}

// StageFact is what staging beside the live store did.
type StageFact struct {
	Layers int `json:"layers"`
	Images int `json:"images"`
	convert.Counts
	Damage []convert.Damage `json:"damage,omitempty"` // carried over as it is
}

// FileRef names a file in the run's folder and what it must hash to.
type FileRef struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
}
