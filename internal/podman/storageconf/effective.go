package storageconf

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/storagectl/storagectl/internal/podman/libpoddb"
)

// Setting is one thing podman goes by, and why.
type Setting struct {
	Name   string `json:"name"`   // as storage.conf calls it
	Value  string `json:"value"`  // empty: nothing sets it, podman decides
	Source string `json:"source"` // a path, a variable, "default" or "podman"
	Why    string `json:"why"`
}

// Effective gives what podman will use for each setting that matters to a
// store: the libpod database where it names one (it outranks every file and the
// environment, but for flags on podman's command line), else the layers, else
// podman's defaults.
func Effective(o Owner, layers []Layer, db libpoddb.Facts) []Setting {
	settings := []Setting{
		withDatabase(o.fromLayers("driver", layers, func(l Layer) string { return l.Driver }), db, db.GraphDriver),
		withDatabase(o.graphRoot(layers), db, db.GraphRoot),
		withDatabase(o.runRoot(layers), db, db.RunRoot),
		o.fromLayers("imagestore", layers, func(l Layer) string { return l.ImageStore }),
		o.fromLayers("additionalimagestores", layers, func(l Layer) string { return strings.Join(l.AdditionalImageStores, ",") }),
		o.fromLayers("mount_program", layers, func(l Layer) string { return l.MountProgram }),
		o.fromLayers("ignore_chown_errors", layers, func(l Layer) string { return l.IgnoreChownErrors }),
	}
	return slices.DeleteFunc(settings, func(s Setting) bool {
		return s.Value == "" && !slices.Contains([]string{"driver", "graphroot", "runroot"}, s.Name)
	})
}

func withDatabase(s Setting, db libpoddb.Facts, recorded string) Setting {
	if recorded == "" {
		return s
	}
	why := "the libpod database outranks the configuration"
	if s.Value != recorded && s.Value != "" {
		why = fmt.Sprintf("the libpod database outranks %q from %s", s.Value, s.Source)
	}
	return Setting{s.Name, recorded, db.Path, why}
}

// fromLayers gives a setting by the first layer that counts for it.
func (o Owner) fromLayers(name string, layers []Layer, get func(Layer) string) Setting {
	for _, l := range layers {
		if !l.Used || len(l.Reads) > 0 && !slices.Contains(l.Reads, name) {
			continue
		}
		if v := get(l); v != "" {
			if name == "driver" && v == "overlay2" {
				v = "overlay"
			}
			return Setting{name, v, l.Path, l.Why}
		}
	}
	return Setting{name, "", "podman", "nothing sets it"}
}

func (o Owner) graphRoot(layers []Layer) Setting {
	path := o.fromLayers("graphroot", layers, func(l Layer) string { return l.GraphRoot })
	if path.Value == "" && o.Rootless {
		path = o.fromLayers("rootless_storage_path", layers, func(l Layer) string { return l.RootlessStoragePath })
		path.Name = "graphroot"
	}
	if path.Value != "" {
		path.Value = o.expand(path.Value)
		return path
	}
	if !o.Rootless {
		return Setting{"graphroot", "/var/lib/containers/storage", "default", "nothing sets it"}
	}
	data := firstOf(o.Env["XDG_DATA_HOME"], filepath.Join(o.Home, ".local", "share"))
	return Setting{"graphroot", filepath.Join(data, "containers", "storage"), "default", "nothing sets it"}
}

func (o Owner) runRoot(layers []Layer) Setting {
	path := o.fromLayers("runroot", layers, func(l Layer) string { return l.RunRoot })
	if path.Value != "" {
		path.Value = o.expand(path.Value)
		return path
	}
	if !o.Rootless {
		return Setting{"runroot", "/run/containers/storage", "default", "nothing sets it"}
	}
	if dir := o.Env["XDG_RUNTIME_DIR"]; dir != "" {
		return Setting{"runroot", filepath.Join(dir, "containers"), "default", "nothing sets it; below XDG_RUNTIME_DIR"}
	}
	return Setting{"runroot", "", "podman", "nothing sets it and XDG_RUNTIME_DIR is not known: podman finds a folder of its own"}
}

// expand puts in $UID and the environment, as expandEnvPath of
// containers/storage does; it does not follow symbolic links.
func (o Owner) expand(path string) string {
	path = strings.ReplaceAll(path, "$UID", strconv.Itoa(o.UID))
	path = os.Expand(path, func(name string) string {
		if name == "HOME" && o.Env["HOME"] == "" {
			return o.Home
		}
		return o.Env[name]
	})
	return filepath.Clean(path)
}
