package convert

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// The drivers that a store can be on.
const (
	vfs     = "vfs"
	overlay = "overlay"
)

// Store names a live store. It crosses process boundaries as JSON.
type Store struct {
	GraphRoot   string   `json:"graphroot"`
	RunRoot     string   `json:"runroot"`
	Driver      string   `json:"driver"`                 // "vfs" or "overlay"
	Program     string   `json:"program,omitempty"`      // mounts its overlays in the kernel's place
	Options     []string `json:"options,omitempty"`      // graph driver options, as podman info tells them
	ImageStores []string `json:"image_stores,omitempty"` // additional read-only image stores
}

// Options says what to convert, where to and how.
type Options struct {
	Source Store `json:"source"`
	// To is the driver of the staged store: "overlay", as the kernel mounts it, or
	// "vfs". Empty is overlay.
	To string `json:"to,omitempty"`
	// Stage is the run's folder, <graphroot>/.storagectl-<run>. Sync makes it
	// (mode 0700) when it is absent; nothing outside it is ever written.
	Stage string `json:"stage"`
	// Workers is how many layers are filled at once; 0 means one a processor.
	Workers int `json:"workers,omitempty"`
	// Containers also converts storage containers. Their writable layers are
	// copied, never linked, because they are written in place. Only when
	// nothing runs.
	Containers bool `json:"containers,omitempty"`
	// KeepDamaged carries damage found in the source over as it is.
	KeepDamaged bool `json:"keep_damaged,omitempty"`
	// Elsewhere tells Survey that the stage will lie on another filesystem, which
	// need not be there yet: it reckons with copies, and does not look for room.
	Elsewhere bool `json:"elsewhere,omitempty"`
	// BytesPerSecond limits the copying of file data by Sync; 0 means no limit.
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
	// IdleIO has Sync's input and output wait for everybody else's.
	IdleIO   bool           `json:"idle_io,omitempty"`
	Progress func(Progress) `json:"-"`
}

// Progress is told a few times a second at most, never concurrently.
type Progress struct {
	Phase       string `json:"phase"`        // "layers", "images", "flush" (data to disk), "compare"
	LayersDone  int    `json:"layers_done"`  // of those that had to be made
	LayersTotal int    `json:"layers_total"` //
	Entries     int64  `json:"entries"`      // entries placed or compared
	Read        int64  `json:"read"`         // bytes of layer lists read
	ReadTotal   int64  `json:"read_total"`   // bytes of layer lists to read: the measure for a rate and an ETA
	BytesCopied int64  `json:"bytes_copied"` // file data written, none where files are linked
	ImagesDone  int    `json:"images_done"`  // diffs and trees compared
	ImagesTotal int    `json:"images_total"` // of so many
}

// Method is how a layer's files reach the staged store.
type Method string

// The three methods, the cheapest first.
const (
	Link    Method = "link"    // hard links: no data is copied
	Reflink Method = "reflink" // copies that share data blocks
	Copy    Method = "copy"    // full copies
)

// ContainerInfo is what a refusal or a plan says of one storage container.
type ContainerInfo struct {
	ID      string   `json:"id"`
	Names   []string `json:"names,omitempty"`
	Image   string   `json:"image,omitempty"`
	Layer   string   `json:"layer,omitempty"`
	Buildah bool     `json:"buildah,omitempty"` // a build container of buildah
	Mapped  bool     `json:"mapped,omitempty"`  // with id maps of its own (--userns, --uidmap)
	Shifted bool     `json:"shifted,omitempty"` // whose files get their owners when they are mounted
}

// ImageStoreInfo tells of one additional image store. It stays where it is,
// and an overlay store shows its images only if it holds an overlay store too.
type ImageStoreInfo struct {
	Path       string `json:"path"`
	Images     int    `json:"images"`      // vfs images in it
	HasOverlay bool   `json:"has_overlay"` // also usable by the overlay driver
	Imported   int    `json:"imported"`    // layers of it that local images stand on, and that are carried over
}

// Estimate is what Survey found without writing anything.
type Estimate struct {
	Layers     int             `json:"layers"`
	Images     int             `json:"images"`
	Dangling   int             `json:"dangling"` // images without a name
	Containers []ContainerInfo `json:"containers,omitempty"`
	// ContainerBytes is what containers have written into their layers: it is
	// copied, and while podman is stopped.
	ContainerBytes  int64            `json:"container_bytes,omitempty"`
	ContainerLayers int              `json:"container_layers"`
	Entries         int64            `json:"entries"` // listed by the layers; layers without a list count 0
	Bytes           int64            `json:"bytes"`   // uncompressed size of the layers
	ListBytes       int64            `json:"list_bytes"`
	WithoutList     int              `json:"without_list"` // layers without tar-split, found by comparing trees
	Method          Method           `json:"method"`
	MethodReason    string           `json:"method_reason"`
	BytesNeeded     int64            `json:"bytes_needed"` // free space that staging needs, rounded up
	BytesFree       int64            `json:"bytes_free"`
	InodesNeeded    int64            `json:"inodes_needed"`
	InodesFree      int64            `json:"inodes_free"` // 0 where the filesystem has no such limit
	Damage          []Damage         `json:"damage,omitempty"`
	OtherDrivers    []string         `json:"other_drivers,omitempty"` // other drivers' folders in the graphroot
	ImageStores     []ImageStoreInfo `json:"image_stores,omitempty"`
}

// Report is what one Sync did.
type Report struct {
	Layers        int      `json:"layers"` // in the staged store now
	Images        int      `json:"images"`
	Containers    int      `json:"containers"`
	NewLayers     []string `json:"new_layers,omitempty"`
	NewImages     []string `json:"new_images,omitempty"`
	DroppedLayers []string `json:"dropped_layers,omitempty"`
	DroppedImages []string `json:"dropped_images,omitempty"`
	Vanished      []string `json:"vanished,omitempty"` // layers that were removed while they were being staged
	Counts
	Damage  []Damage `json:"damage,omitempty"`
	Changed bool     `json:"changed"` // false: everything was there already and nothing was written
}

// Counts adds up what was put into staged layers.
type Counts struct {
	Dirs      int64 `json:"dirs"`
	Linked    int64 `json:"linked"`    // names made by link(2)
	Reflinked int64 `json:"reflinked"` // files cloned
	Copied    int64 `json:"copied"`    // files copied in full
	Whiteouts int64 `json:"whiteouts"`
	Opaque    int64 `json:"opaque"`
	Bytes     int64 `json:"bytes"`   // file data copied in full
	Regroup   int64 `json:"regroup"` // names linked only to keep a hard-link group whole
	Walked    int64 `json:"walked"`  // layers found by comparing trees, not from a list
}

func (c *Counts) add(o Counts) {
	c.Dirs += o.Dirs
	c.Linked += o.Linked
	c.Reflinked += o.Reflinked
	c.Copied += o.Copied
	c.Whiteouts += o.Whiteouts
	c.Opaque += o.Opaque
	c.Bytes += o.Bytes
	c.Regroup += o.Regroup
	c.Walked += o.Walked
}

// DamageKind classifies damage.
type DamageKind string

// The kinds of damage.
const (
	MissingLayerFolder DamageKind = "missing-layer-folder"
	MissingParent      DamageKind = "missing-parent"
	MissingLayer       DamageKind = "missing-layer"    // an image's top layer has no record
	MissingBigData     DamageKind = "missing-big-data" // or of another size or digest than recorded
	BadList            DamageKind = "bad-list"         // tar-split unreadable
	MissingFile        DamageKind = "missing-file"
	WrongSize          DamageKind = "wrong-size"
	Unrepresentable    DamageKind = "unrepresentable" // whole, but the new store cannot show it (a 0:0 device, an overlay.* attribute)
)

// Damage is one thing that is wrong in the source.
type Damage struct {
	Kind   DamageKind `json:"kind"`
	Layer  string     `json:"layer,omitempty"`
	Image  string     `json:"image,omitempty"`
	Path   string     `json:"path,omitempty"`
	Detail string     `json:"detail,omitempty"`
}

func (d Damage) String() string {
	what := "layer " + short(d.Layer)
	if d.Image != "" {
		what = "image " + short(d.Image)
	}
	s := string(d.Kind) + " in " + what
	if d.Path != "" {
		s += fmt.Sprintf(" at %q", d.Path)
	}
	if d.Detail != "" {
		s += " (" + d.Detail + ")"
	}
	return s
}

// DamageError lists the damage for which Sync stopped; Options.KeepDamaged
// would carry it over as it is.
type DamageError struct{ Damage []Damage }

func (e *DamageError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cannot convert a damaged store: %d places", len(e.Damage))
	for i, d := range e.Damage {
		if i == 5 {
			fmt.Fprintf(&b, "; and %d more", len(e.Damage)-i)
			break
		}
		b.WriteString("; " + d.String())
	}
	return b.String()
}

// ErrNoNativeOverlay says that the stage's filesystem or kernel cannot mount
// overlay for this owner. A store made for fuse-overlayfs marks deletions in
// another way, so it is not made by accident.
var ErrNoNativeOverlay = errors.New("native overlay cannot be mounted here")

// ErrUnconvertible says that the source keeps something in a way that the new
// driver has no equal for: it is told what and where.
var ErrUnconvertible = errors.New("this cannot be converted")

// ErrBusy says that another Sync works on the same stage.
var ErrBusy = errors.New("another process works on this stage")

func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

func (o *Options) check() error {
	switch {
	case o.Source.Driver == vfs && o.to() == overlay, o.Source.Driver == overlay && o.to() == vfs, o.unfusing():
	default:
		return fmt.Errorf("cannot convert from driver %q to %q", o.Source.Driver, o.to())
	}
	if !filepath.IsAbs(o.Source.GraphRoot) || filepath.Clean(o.Source.GraphRoot) == "/" {
		return fmt.Errorf("cannot use graphroot %q", o.Source.GraphRoot)
	}
	if !filepath.IsAbs(o.Stage) || filepath.Clean(o.Stage) == filepath.Clean(o.Source.GraphRoot) {
		return fmt.Errorf("cannot use stage folder %q", o.Stage)
	}
	return nil
}

func (o *Options) to() string {
	if o.To == "" {
		return overlay
	}
	return o.To
}

// unfusing reports whether layers of a mount program are made into the kernel's.
func (o *Options) unfusing() bool {
	return o.Source.Driver == overlay && o.to() == overlay && o.Source.Program != ""
}

// Layout of the stage.
func (o *Options) newRoot() string     { return filepath.Join(o.Stage, "new") }
func (o *Options) overlayHome() string { return filepath.Join(o.Stage, "new", overlay) }
func (o *Options) vfsHome() string     { return filepath.Join(o.Stage, "new", vfs) }
func (o *Options) receipts() string    { return filepath.Join(o.Stage, "receipts") }
func (o *Options) tmp() string         { return filepath.Join(o.Stage, "tmp", "convert") }
