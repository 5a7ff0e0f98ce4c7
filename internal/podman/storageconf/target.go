package storageconf

import (
	"bytes"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// Target is the file to write so that podman's configuration names a driver.
type Target struct {
	Path    string   `json:"path"`   // links followed: a linked file is changed where it lies
	Create  bool     `json:"create"` // the file is not there yet
	Changes []Change `json:"changes"`
	// Content is the whole new file; nil where nothing has to be written.
	Content  []byte      `json:"-"`
	FileMode fs.FileMode `json:"file_mode"` // for a new file
	DirMode  fs.FileMode `json:"dir_mode"`  // for folders that are not there yet
	Why      string      `json:"why"`
	Warnings []string    `json:"warnings,omitempty"`
}

// dropInName is the drop-in file that storagectl makes for podman 6; drop-ins
// are read in the order of their names.
const dropInName = "zz-storagectl.conf"

// For finds the file of this owner that has to say the driver, and its new
// content. It writes nothing. Settings that hold now hold after: where a file
// must be made that hides another, it takes over what the other gave.
//
//   - CONTAINERS_STORAGE_CONF: that file.
//   - Rootful: the file in use; a file of the distribution in /usr/share is
//     copied to /etc and changed there; else a new one in /etc.
//   - Rootless: the owner's file, made where absent.
//   - Podman 6: the drop-in or override that sets the driver now; where that is
//     not the owner's, or no file of the owner's exists, a drop-in of one's own,
//     which hides nothing.
//
// settings are those of Effective: a new rootful file must name both roots,
// without which podman before 5 does not start.
func For(o Owner, layers []Layer, settings []Setting, to string) (Target, error) {
	t, err := o.target(layers, settings, wanted{driver: to})
	if err != nil {
		return Target{}, fmt.Errorf("cannot find the storage.conf to change: %w", err)
	}
	if v := layerOf(layers, Variable); v != nil && v.Driver != to {
		t.Warnings = append(t.Warnings, fmt.Sprintf("STORAGE_DRIVER=%s in the environment outranks every file", v.Driver))
	}
	return t, nil
}

// ForProgram finds the file of this owner that has to name the program that mounts
// overlays in the kernel's place, and its new content, as [For] does for the driver,
// which is overlay already.
func ForProgram(o Owner, layers []Layer, settings []Setting, program string) (Target, error) {
	t, err := o.target(layers, settings, wanted{driver: "overlay", program: program})
	if err != nil {
		return Target{}, fmt.Errorf("cannot find the storage.conf to change: %w", err)
	}
	return t, nil
}

// wanted is what a file has to say.
type wanted struct {
	driver  string
	program string // of overlay; "": native
}

func (w wanted) edit(src []byte) ([]byte, []Change, error) {
	if w.program != "" {
		return EditProgram(src, w.program)
	}
	return Edit(src, w.driver)
}

// create gives a new file, with more lines of [storage.options.overlay].
func (w wanted) create(storage, overlay string) []byte {
	b := bytes.NewBuffer(Create(w.driver))
	b.WriteString(storage)
	if w.program != "" {
		overlay = "mount_program = " + quoted(w.program) + "\n" + overlay
	}
	if overlay != "" {
		b.WriteString("\n[storage.options.overlay]\n" + overlay)
	}
	return b.Bytes()
}

func (w wanted) created() []Change {
	if w.program != "" {
		return []Change{{Line: 1, Key: programKey, New: quoted(w.program), Why: whyProgram}}
	}
	return []Change{{Line: 1, Key: "storage.driver", New: `"` + w.driver + `"`, Why: "the store's driver changes"}}
}

func (o Owner) target(layers []Layer, settings []Setting, to wanted) (Target, error) {
	r, err := parseRelease(o.Podman)
	if err != nil {
		return Target{}, err
	}
	for _, l := range layers {
		if l.Used && l.Problem != "" {
			return Target{}, fmt.Errorf("%w: %s: %s", ErrInvalid, l.Path, l.Problem)
		}
		if l.Used && !l.Exists {
			return Target{}, fmt.Errorf("%w: %s: %s, but it does not exist", ErrInvalid, l.Path, l.Why)
		}
	}
	if r.atLeast(6, 0) {
		return o.targetOverlaid(layers, to)
	}
	used := usedFile(layers)
	switch {
	case used != nil && used.Kind == EnvFile, used != nil && used.Kind == User, used != nil && used.Kind == Admin && !o.Rootless:
		return o.change(*used, to)
	case o.Rootless:
		content := o.minimal(layers, to)
		return Target{Path: o.userFile(), Create: true, Content: content, FileMode: 0o644, DirMode: 0o700, Changes: to.created(),
			Why: "the owner has no storage.conf; the new one takes over what a rootless podman read from the system's"}, nil
	case used != nil: // the distribution's
		src, err := ReadFile(filepath.Join(o.Root, used.Path))
		if err != nil {
			return Target{}, err
		}
		content, changes, err := to.edit(src)
		if err != nil {
			return Target{}, err
		}
		return Target{Path: adminFile, Create: true, Content: content, FileMode: 0o644, DirMode: 0o755, Changes: changes,
			Why: "a file in /etc replaces " + used.Path + " as a whole, so it starts as a copy of it"}, nil
	}
	return Target{Path: adminFile, Create: true, Content: rootful(settings, to), FileMode: 0o644, DirMode: 0o755, Changes: to.created(),
		Why: "there is no storage.conf; a new one has to name both roots"}, nil
}

// targetOverlaid is target for podman 6.
func (o Owner) targetOverlaid(layers []Layer, to wanted) (Target, error) {
	own := func(l Layer) bool {
		if o.Rootless {
			return l.Kind == Override || l.Kind == EnvFile || l.Kind == User || l.Kind == DropIn && filepath.Dir(l.Path) == o.userFile()+".d"
		}
		return l.Kind != Vendor && !strings.HasPrefix(l.Path, "/usr/")
	}
	used := usedFile(layers)
	for _, l := range layers {
		// The first that names a driver is the one that counts.
		if l.Kind != Variable && l.Used && l.Driver != "" {
			if own(l) {
				return o.change(l, to)
			}
			break
		}
	}
	if used != nil && used.Kind == EnvFile { // no drop-in is read
		return o.change(*used, to)
	}
	dir := adminFile + ".d"
	t := Target{Create: true, FileMode: 0o644, DirMode: 0o755, Changes: to.created(), Why: "a drop-in file hides no other setting"}
	if o.Rootless {
		dir, t.DirMode = o.userFile()+".d", 0o700
	}
	t.Path = filepath.Join(dir, dropInName)
	for _, l := range layers {
		if l.Kind == DropIn && l.Used && filepath.Base(l.Path) >= dropInName && l.Driver != "" {
			return Target{}, fmt.Errorf("%w: %s sets the driver and is read after any drop-in of ours", ErrManual, l.Path)
		}
		if l.Path == t.Path { // there already, without a driver
			return o.change(l, to)
		}
	}
	t.Content = to.create("", "")
	return t, nil
}

// change gives the edit of an existing file.
func (o Owner) change(l Layer, to wanted) (Target, error) {
	t := Target{Path: firstOf(l.Real, l.Path), FileMode: 0o644, DirMode: 0o755, Why: l.Why}
	src, err := ReadFile(filepath.Join(o.Root, t.Path))
	if err != nil {
		return Target{}, err
	}
	content, changes, err := to.edit(src)
	if err != nil {
		return Target{}, fmt.Errorf("%s: %w", t.Path, err)
	}
	t.Changes = changes
	if len(changes) > 0 {
		t.Content = content
	}
	t.Warnings = awakened(l, to.driver)
	return t, nil
}

// awakened tells which options of a file begin to count with the new driver:
// those of [storage.options.overlay] had no effect while another driver was in
// use.
func awakened(l Layer, to string) []string {
	if to != "overlay" || strings.HasPrefix(l.Driver, "overlay") {
		return nil
	}
	var warnings []string
	for _, name := range sortedKeys(l.OverlayOptions) {
		switch name {
		case "mount_program", "force_mask": // commented out by Edit
		case "size", "inodes":
			warnings = append(warnings, fmt.Sprintf("%s = %s in %s begins to count: overlay refuses to start with it on a filesystem without project quotas", name, l.OverlayOptions[name], l.Path))
		default:
			warnings = append(warnings, fmt.Sprintf("%s = %s in %s begins to count", name, l.OverlayOptions[name], l.Path))
		}
	}
	return warnings
}

// Create gives a new storage.conf that says nothing but the driver: enough for a
// rootless owner, and for a drop-in file.
func Create(to string) []byte {
	return []byte(header + "[storage]\ndriver = \"" + to + "\"\n")
}

const header = "# Made by storagectl; see containers-storage.conf(5).\n"

// rootful is a new file for root.
func rootful(settings []Setting, to wanted) []byte {
	roots := ""
	for _, name := range []string{"runroot", "graphroot"} {
		for _, s := range settings {
			if s.Name == name && s.Value != "" {
				roots += fmt.Sprintf("%s = %s\n", name, quoted(s.Value))
			}
		}
	}
	return to.create(roots, "")
}

// minimal is a new file for a rootless owner of podman up to 5: it repeats what
// podman read from the system's file as long as the owner had none
// (getRootlessStorageOpts of containers/storage).
func (o Owner) minimal(layers []Layer, to wanted) []byte {
	var storage, overlay string
	for _, l := range layers {
		if !l.Used || l.Kind != Admin && l.Kind != Vendor {
			continue
		}
		if l.RootlessStoragePath != "" {
			storage += fmt.Sprintf("rootless_storage_path = %s\n", quoted(l.RootlessStoragePath))
		}
		if len(l.PullOptions) > 0 && slices.Contains(l.Reads, "pull_options") {
			storage += "\n[storage.options.pull_options]\n"
			for _, k := range sortedKeys(l.PullOptions) {
				storage += fmt.Sprintf("%s = %s\n", quoted(k), quoted(l.PullOptions[k]))
			}
		}
		if l.IgnoreChownErrors != "" && to.driver == "overlay" {
			overlay += fmt.Sprintf("ignore_chown_errors = %s\n", quoted(l.IgnoreChownErrors))
		}
	}
	return to.create(storage, overlay)
}

// quoted gives s as a TOML basic string.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func layerOf(layers []Layer, kind Kind) *Layer {
	i := slices.IndexFunc(layers, func(l Layer) bool { return l.Kind == kind })
	if i < 0 {
		return nil
	}
	return &layers[i]
}

// usedFile is the main file in use, if any.
func usedFile(layers []Layer) *Layer {
	for i, l := range layers {
		if l.Used && slices.Contains([]Kind{EnvFile, User, Admin, Vendor}, l.Kind) {
			return &layers[i]
		}
	}
	return nil
}
