// Package prune removes from a container store what nobody needs: it looks, chooses,
// and acts. The choice is a pure function ([Choose]); what it chose is looked at once
// more just before each removal, and nothing is ever forced.
package prune

import "time"

// Kind is a kind of thing that can be removed.
type Kind string

// The kinds, in the order in which they are removed: what costs least comes first, and
// a container goes before the image that it uses.
const (
	Cache     Kind = "build-cache" // a folder of RUN --mount=type=cache
	External  Kind = "external"    // a container that podman did not make, such as buildah's
	Container Kind = "container"
	Image     Kind = "image"
	Volume    Kind = "volume"
)

// What is chosen of images and of volumes; "" is none.
const (
	Dangling  = "dangling"  // images that have no name, and on which no other is built
	Unused    = "unused"    // also those with a name, if no container uses them
	Anonymous = "anonymous" // volumes that podman named itself
	All       = "all"       // volumes that somebody named, too
)

// Rules are what an operator asks for.
type Rules struct {
	Cache      bool          `json:"buildCache,omitempty"`
	External   bool          `json:"external,omitempty"`
	Containers bool          `json:"containers,omitempty"`
	Images     string        `json:"images,omitempty"`   // Dangling or Unused
	Volumes    string        `json:"volumes,omitempty"`  // Anonymous or All
	Older      time.Duration `json:"older"`              // what was used since is kept
	Label      []string      `json:"label,omitempty"`    // only what carries one of these, as [drain.Matches] has it
	LabelNot   []string      `json:"labelNot,omitempty"` // nothing that carries one of these
	KeepLast   int           `json:"keepLast,omitempty"` // images of each repository, the newest
	Keep       []string      `json:"keep,omitempty"`     // names, * for any text
	Floor      uint64        `json:"floor,omitempty"`    // bytes: enough when so much is free; 0: all is removed
}

// Any reports whether anything is to be removed at all.
func (r Rules) Any() bool {
	return r.Cache || r.External || r.Containers || r.Images != "" || r.Volumes != ""
}

// A State is what a store holds and who needs it, as far as it was asked for.
type State struct {
	Now    time.Time
	Driver string
	Free   uint64 // bytes of the store's filesystem that its owner may use
	// TakesParents says that podman removes with an image those that it was built on, if
	// they have no name (before 4.3, that is always so).
	TakesParents bool
	// Uncommitted names the runs whose rollback would bring back containers of before, ""
	// if there is none.
	Uncommitted string
	// Building names a process that builds an image now, "" if none is seen.
	Building string

	Layers     map[string]Layer
	Containers []Ctr
	Externals  []Ctr
	Images     []Img
	Volumes    []Vol
	Caches     []Dir
	// Wanted are names of images, containers and volumes that something may ask for
	// though it does not use them now.
	Wanted []Wanted
}

// Wanted is a name and who has it.
type Wanted struct{ Name, By string }

// Layer is one layer of the store.
type Layer struct {
	Parent   string
	Bytes    uint64 // what goes with it, as far as is known
	ReadOnly bool   // of an additional image store
}

// Ctr is a container.
type Ctr struct {
	ID, Name  string
	Image     string // its id
	Layer     string
	Status    string
	Pod       string
	Labels    map[string]string
	Nomads    bool   // an allocation's
	Engine    bool   // of an external one: podman, or one like it, made it
	Restarts  string // its restart policy
	Used      time.Time
	VolumesOf []string // names of the volumes that it has
}

// Img is an image.
type Img struct {
	ID       string
	Names    []string
	Digests  []string
	Chain    []string // its layers, the top one first
	Tops     []string // of its copies with other ids
	Labels   map[string]string
	Made     time.Time // as the image itself says
	Used     time.Time // when it came into the store or was seen in use, whichever is later
	ReadOnly bool
	Listed   string // a list of images (podman manifest) that has it; "": none
}

// Vol is a volume.
type Vol struct {
	Name      string
	Driver    string
	Options   bool // it is mounted from somewhere
	Anonymous bool
	Labels    map[string]string
	Used      time.Time
	Bytes     uint64
}

// Dir is a folder of the build cache.
type Dir struct {
	Path  string
	Used  time.Time
	Bytes uint64
}

// Thing is something that was judged, and after a removal what came of it.
type Thing struct {
	Kind  Kind      `json:"kind"`
	ID    string    `json:"id"` // a volume's name, a cache's folder
	Name  string    `json:"name"`
	Names []string  `json:"names,omitempty"` // of an image
	Used  time.Time `json:"used,omitzero"`   // last, as far as is known
	// Bytes is what its removal frees, estimated, if all before it are removed.
	Bytes uint64 `json:"bytes"`
	// Verdict is Remove, Spare or Keep; after a removal Removed, Left or Failed.
	Verdict Verdict `json:"verdict"`
	Why     string  `json:"why,omitempty"` // it is kept, spared, left or could not be removed
	// Freed is what went with it, by the store's records after its removal: less than
	// Bytes where somebody has come to need a layer meanwhile.
	Freed uint64 `json:"freed_bytes,omitempty"`
}

// Verdict is what is, or was, done with a thing.
type Verdict string

// The verdicts.
const (
	Remove  Verdict = "remove"
	Spare   Verdict = "spare" // it could go, but enough is free before its turn comes
	Keep    Verdict = "keep"
	Removed Verdict = "removed"
	Left    Verdict = "left"   // it changed since it was chosen, or podman says that it is in use
	Failed  Verdict = "failed" // it is still there
)
