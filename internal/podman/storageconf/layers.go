package storageconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Owner is whose podman is asked about.
type Owner struct {
	Podman   string            // version, "4.3.1"
	Rootless bool              // podman runs as a user other than root
	UID      int               // the user's, outside any user namespace
	Home     string            // the user's home folder
	Env      map[string]string // environment podman runs with, as far as known
	Root     string            // prefix of all files read; "" but in tests
}

// Kind says what a layer is.
type Kind string

// The kinds of layers, in the order in which they win.
const (
	Variable Kind = "variable" // STORAGE_DRIVER in the environment
	Override Kind = "override" // the file CONTAINERS_STORAGE_CONF_OVERRIDE names (podman 6)
	DropIn   Kind = "drop-in"  // a file in a storage.conf.d folder (podman 6)
	EnvFile  Kind = "env"      // the file CONTAINERS_STORAGE_CONF names (podman 3.3)
	User     Kind = "user"     // $XDG_CONFIG_HOME or ~/.config
	Admin    Kind = "admin"    // /etc/containers
	Vendor   Kind = "vendor"   // /usr/share/containers (podman 4.0)
)

// Layer is one place where podman of this version and owner finds settings.
// The settings are as written, not expanded.
type Layer struct {
	Kind   Kind   `json:"kind"`
	Path   string `json:"path"`           // of a variable: its name
	Real   string `json:"real,omitempty"` // where a symbolic link leads
	Exists bool   `json:"exists"`
	Used   bool   `json:"used"`
	Why    string `json:"why"`
	// Reads lists the only settings that podman takes from here; empty: all.
	Reads []string `json:"reads,omitempty"`
	// Problem: the file is there but cannot be read or parsed.
	Problem string `json:"problem,omitempty"`

	Driver                string            `json:"driver,omitempty"`
	GraphRoot             string            `json:"graphroot,omitempty"`
	RunRoot               string            `json:"runroot,omitempty"`
	RootlessStoragePath   string            `json:"rootless_storage_path,omitempty"`
	ImageStore            string            `json:"imagestore,omitempty"`
	AdditionalImageStores []string          `json:"additionalimagestores,omitempty"`
	MountProgram          string            `json:"mount_program,omitempty"`
	IgnoreChownErrors     string            `json:"ignore_chown_errors,omitempty"`
	PullOptions           map[string]string `json:"pull_options,omitempty"`
	OverlayOptions        map[string]string `json:"overlay_options,omitempty"` // all of [storage.options.overlay]
}

// release tells what podman of a version reads. Found in the containers/storage
// that each release carries: 3.0.1, 3.3, 4.0, 4.3.1, 4.9, 5.4.2, 5.8.2 and 6.
type release struct{ major, minor int }

func parseRelease(version string) (release, error) {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) >= 2 {
		major, err1 := strconv.Atoi(parts[0])
		minor, err2 := strconv.Atoi(parts[1])
		if err1 == nil && err2 == nil {
			return release{major, minor}, nil
		}
	}
	return release{}, fmt.Errorf("cannot tell which storage.conf podman reads: version %q", version)
}

func (r release) atLeast(major, minor int) bool {
	return r.major > major || r.major == major && r.minor >= minor
}

func (o Owner) configHome() string {
	if dir := o.Env["XDG_CONFIG_HOME"]; dir != "" {
		return dir
	}
	return filepath.Join(o.Home, ".config")
}

const (
	adminFile  = "/etc/containers/storage.conf"
	vendorFile = "/usr/share/containers/storage.conf"
)

func (o Owner) userFile() string { return filepath.Join(o.configHome(), "containers", "storage.conf") }

// Layers gives every place where podman would look for storage settings, in the
// order in which they win, with what each says and whether it counts. It only
// reads. The user's own files are opened, so for a rootless owner it must run
// with that owner's rights. The libpod database, which outranks all of them, is
// brought in by Effective.
//
// Up to podman 5 one file counts; a rootless podman takes a few settings from
// the system's file besides. Podman 6 reads the first main file and then
// overlays drop-in files in the order of their names.
func Layers(o Owner) ([]Layer, error) {
	r, err := parseRelease(o.Podman)
	if err != nil {
		return nil, err
	}
	var layers []Layer
	if driver := o.Env["STORAGE_DRIVER"]; driver != "" {
		layers = append(layers, Layer{Kind: Variable, Path: "STORAGE_DRIVER", Exists: true, Used: true,
			Why: "the environment wins over every file", Driver: driver, Reads: []string{"driver"}})
	}
	if r.atLeast(6, 0) {
		over, err := o.overlaid()
		if err != nil {
			return nil, err
		}
		layers = append(layers, over...)
	}
	return append(layers, o.mainFiles(r)...), nil
}

// mainFiles gives the files of which the first one counts.
func (o Owner) mainFiles(r release) []Layer {
	var layers []Layer
	envFile := o.Env["CONTAINERS_STORAGE_CONF"]
	if envFile != "" && r.atLeast(3, 3) {
		layers = append(layers, o.read(EnvFile, envFile, "CONTAINERS_STORAGE_CONF names it, so no other main file is read"))
	}
	// A rootful podman has a file of root's own only where XDG_CONFIG_HOME
	// names it (podman 4.3), and from podman 6 as any user has.
	if o.Rootless || r.atLeast(6, 0) || r.atLeast(4, 3) && o.Env["XDG_CONFIG_HOME"] != "" {
		layers = append(layers, o.read(User, o.userFile(), "the owner's own file"))
	}
	layers = append(layers, o.read(Admin, adminFile, "the system's file"))
	if r.atLeast(4, 0) {
		layers = append(layers, o.read(Vendor, vendorFile, "the distribution's file"))
	}
	// CONTAINERS_STORAGE_CONF counts even where the file is missing: podman
	// fails then.
	first := slices.IndexFunc(layers, func(l Layer) bool { return l.Exists || l.Kind == EnvFile })
	var system bool // a rootless podman up to 5 has its system file
	for i := range layers {
		l := &layers[i]
		l.Used = i == first
		isSystem := l.Kind == Admin || l.Kind == Vendor
		switch {
		case !l.Exists && l.Kind != EnvFile:
			l.Why += "; it does not exist"
		case !r.atLeast(6, 0) && o.Rootless && isSystem && layers[max(first, 0)].Kind != EnvFile && !system:
			system = true
			if i == first {
				l.Reads = []string{"rootless_storage_path", "ignore_chown_errors"}
				if r.atLeast(3, 1) {
					l.Reads = append(l.Reads, "driver", "pull_options")
				}
				l.Why += "; a rootless podman without a file of its own takes only some settings from it"
			} else {
				l.Used, l.Reads = true, []string{"rootless_storage_path"}
				l.Why += "; beside the owner's file only its rootless_storage_path counts"
			}
		case i != first:
			l.Why += "; a file before it hides it"
		}
	}
	return layers
}

// overlaid gives podman 6's drop-in files and override file, the winning one
// first. Of two drop-ins of one name only that in the nearer folder is read.
func (o Owner) overlaid() ([]Layer, error) {
	var layers []Layer
	if path := o.Env["CONTAINERS_STORAGE_CONF_OVERRIDE"]; path != "" {
		l := o.read(Override, path, "CONTAINERS_STORAGE_CONF_OVERRIDE names it: it is read last")
		l.Used = true
		layers = append(layers, l)
	}
	hidden := o.Env["CONTAINERS_STORAGE_CONF"] != ""
	var drops []Layer
	seen := map[string]bool{}
	for _, dir := range o.dropInDirs() {
		entries, err := os.ReadDir(filepath.Join(o.Root, dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot list drop-in files: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() || !strings.HasSuffix(e.Name(), ".conf") {
				continue
			}
			l := o.read(DropIn, filepath.Join(dir, e.Name()), "a drop-in file is laid over the main file")
			switch {
			case hidden:
				l.Why = "CONTAINERS_STORAGE_CONF is set, so no drop-in file is read"
			case seen[e.Name()]:
				l.Why = "a drop-in of the same name in a nearer folder replaces it"
			default:
				l.Used = true
			}
			seen[e.Name()] = true
			drops = append(drops, l)
		}
	}
	// They are read in the order of their names, so the last name wins.
	sort.SliceStable(drops, func(i, j int) bool { return filepath.Base(drops[i].Path) > filepath.Base(drops[j].Path) })
	return append(layers, drops...), nil
}

// dropInDirs gives podman 6's folders, the nearest first.
func (o Owner) dropInDirs() []string {
	dirs := []string{o.userFile() + ".d"}
	for _, main := range []string{adminFile, vendorFile} {
		base := strings.TrimSuffix(main, ".conf")
		if o.Rootless {
			dirs = append(dirs, filepath.Join(base+".rootless.conf.d", strconv.Itoa(o.UID)), base+".rootless.conf.d")
		} else {
			dirs = append(dirs, base+".rootful.conf.d")
		}
		dirs = append(dirs, main+".d")
	}
	return dirs
}

// read gives one file as a layer. What is wrong with it is told in Problem: the
// plan shows it, and podman judges for itself.
func (o Owner) read(kind Kind, path, why string) Layer {
	l := Layer{Kind: kind, Path: path, Why: why}
	full := filepath.Join(o.Root, path)
	data, err := ReadFile(full)
	if errors.Is(err, fs.ErrNotExist) {
		return l
	}
	l.Exists = true
	if err != nil {
		l.Problem = err.Error()
		return l
	}
	if real, err := filepath.EvalSymlinks(full); err == nil {
		if real = strings.TrimPrefix(real, o.Root); real != path {
			l.Real = real
		}
	}
	doc, err := decode([]byte(strings.TrimPrefix(string(data), utf8BOM)))
	if err != nil {
		l.Problem = err.Error()
		return l
	}
	l.take(doc)
	return l
}

// take fills in the settings; names are compared without case, as podman does.
func (l *Layer) take(doc map[string]any) {
	storage := child(doc, "storage")
	options := child(storage, "options")
	overlay := child(options, "overlay")
	l.Driver = text(storage, "driver")
	l.GraphRoot = text(storage, "graphroot")
	l.RunRoot = text(storage, "runroot")
	l.RootlessStoragePath = text(storage, "rootless_storage_path")
	l.ImageStore = text(storage, "imagestore")
	l.MountProgram = firstOf(text(overlay, "mount_program"), text(options, "mount_program"))
	l.IgnoreChownErrors = firstOf(text(overlay, "ignore_chown_errors"), text(options, "ignore_chown_errors"))
	if stores, ok := value(options, "additionalimagestores").([]any); ok {
		for _, s := range stores {
			if s, ok := s.(string); ok {
				l.AdditionalImageStores = append(l.AdditionalImageStores, s)
			}
		}
	}
	l.PullOptions = texts(child(options, "pull_options"))
	l.OverlayOptions = texts(overlay)
}

// texts gives a table's non-empty strings.
func texts(table map[string]any) map[string]string {
	var out map[string]string
	for k, v := range table {
		if v, ok := v.(string); ok && v != "" {
			if out == nil {
				out = map[string]string{}
			}
			out[strings.ToLower(k)] = v
		}
	}
	return out
}

func value(table map[string]any, name string) any {
	if v, ok := table[name]; ok {
		return v
	}
	for k, v := range table {
		if strings.EqualFold(k, name) {
			return v
		}
	}
	return nil
}

func child(table map[string]any, name string) map[string]any {
	sub, _ := value(table, name).(map[string]any)
	return sub
}

func text(table map[string]any, name string) string {
	s, _ := value(table, name).(string)
	return s
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
