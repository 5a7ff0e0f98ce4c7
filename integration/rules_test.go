package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/storagectl/storagectl/"

// mayImport lists for each room which other rooms its packages may import
// directly; its own are always allowed. Rooms not listed import none of ours.
func mayImport() map[string][]string {
	low := []string{"internal/podman", "internal/host", "internal/cephlink", "internal/brief"}
	told := []string{"internal/engine", "internal/report", "internal/window"}
	verbs := []string{"drain", "ceph", "rbd", "verify", "migrate/convert", "migrate/treecopy"}
	top := slices.Concat([]string{"migrate", "internal/tell"}, told, verbs, low)
	return map[string][]string{
		"cmd/storagectl":      append([]string{"runbooks", "internal/sdnotify"}, top...),
		"cmd/storagectl-ceph": append([]string{"ceph", "rbd"}, low...),
		"runbooks":            top,
		"migrate":             slices.Concat(told, verbs, low),
		"internal/tell":       {"internal/host", "internal/brief"},
		"internal/window":     {"internal/brief"},
		"migrate/convert":     low,
		"migrate/treecopy":    low,
		"drain":               low,
		"ceph":                low,
		"rbd":                 low,
		"verify":              low,
		"internal/podman":     {"internal/host", "internal/brief"},
		"internal/cephlink":   {"internal/host"},
		// The lab judges the program from outside: it may import none of it.
		"integration": nil,
		// It measures a part of it, on disks that another part makes.
		"integration/cmd/benchrelocate": {"integration", "rbd", "internal/cephlink", "internal/host"},
	}
}

// room is the longest listed prefix of a package's path in the module.
func room(pkg string) string {
	best := ""
	for name := range mayImport() {
		if (pkg == name || strings.HasPrefix(pkg, name+"/")) && len(name) > len(best) {
			best = name
		}
	}
	if best == "" {
		return pkg
	}
	return best
}

type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "-tags="+tags+",pacific", "./...")
	cmd.Dir = root(t)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1") // with what only the helper links
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []goPackage
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// TestArrows: imports run downward only, as docs/architecture.md draws them, and
// containers/storage is confined to two rooms.
func TestArrows(t *testing.T) {
	t.Parallel()
	rules := mayImport()
	for _, p := range packages(t) {
		from, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours {
			continue
		}
		// Whose tests need it may import what there is for tests.
		imports := slices.DeleteFunc(slices.Concat(p.TestImports, p.XTestImports), func(imp string) bool { return imp == module+"internal/nomadtest" })
		for _, imp := range append(imports, p.Imports...) {
			if to, ours := strings.CutPrefix(imp, module); ours {
				if a, b := room(from), room(to); a != b && !slices.Contains(rules[a], b) {
					t.Errorf("%s imports %s", from, to)
				}
			}
		}
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, "github.com/ceph/go-ceph") && !strings.HasSuffix(from, "/native") {
				t.Errorf("%s imports %s", from, imp)
			}
			if strings.HasSuffix(imp, "/native") && !strings.HasSuffix(from, "/native") && from != "cmd/storagectl-ceph" {
				t.Errorf("%s imports %s", from, imp)
			}
			storage := strings.HasPrefix(imp, "github.com/containers/storage") || strings.HasPrefix(imp, "go.podman.io/storage")
			// reexec is what a program that links it must call first in main.
			if r := room(from); storage && r != "migrate/convert" && r != "verify" &&
				(r != "cmd/storagectl" || !strings.HasSuffix(imp, "/pkg/reexec")) {
				t.Errorf("%s imports %s", from, imp)
			}
		}
	}
}
