package migrate

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/podman"
)

// program finds out what mounts the store's overlays. Where no configuration names a
// program, podman goes by a mark in the store, which it left when it first had to
// take one, and then looks for fuse-overlayfs itself (containers/storage,
// drivers/overlay, Init).
func (a *Assessment) program() {
	if a.Inputs.Store.Driver != overlay {
		return
	}
	a.Inputs.Store.Program = mountProgram(a.Info)
	if a.Inputs.Store.Program == "" && a.Look.Marked {
		a.Inputs.Store.Program = findFuse()
	}
}

// findFuse is where fuse-overlayfs is, "" where it is not installed.
func findFuse() string {
	for _, dir := range []string{"/usr/local/bin", "/usr/bin", "/bin"} {
		path := filepath.Join(dir, DriverFuse)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// ownMount tells the mounts that podman's overlay driver makes: its folder on itself,
// and the roots of containers, which go when these are stopped.
func (a *Assessment) ownMount(m string) bool {
	rel := strings.TrimPrefix(m, a.Look.RealPath+"/")
	return rel == overlay || strings.HasSuffix(rel, "/merged")
}

// programOptions are the driver's options with which podman opens the store as it is.
func programOptions(st Store) []string {
	if st.Program == "" {
		return nil
	}
	options := []string{"overlay.mount_program=" + st.Program}
	for _, o := range st.Options {
		if strings.HasPrefix(o, "overlay.force_mask=") {
			options = append(options, o)
		}
	}
	return options
}

// oldOverlay refuses a podman that mounts the overlays of a user wrongly: before 3.2 it does
// so without userxattr, so that what lies below an opaque folder shows (seen with 3.0.1 on
// Linux 6).
func (a *Assessment) oldOverlay() {
	if a.Inputs.Request.To != overlay || a.Inputs.Store.Driver == overlay || a.Inputs.Owner.Rootful() {
		return
	}
	if v := a.Inputs.Podman; strings.HasPrefix(v, "3.0") || strings.HasPrefix(v, "3.1") {
		a.refuse("old-podman", "upgrade podman", "podman %s does not heed deletions of folders on a user's native overlay", v)
	}
}

// fromOverlay judges what a conversion from overlay cannot do beside what holds for
// every conversion.
func (a *Assessment) fromOverlay(ctx context.Context, cli podman.CLI) error {
	if a.Inputs.Store.Driver != overlay || a.Inputs.Request.Images == Discard {
		return nil
	}
	if !a.knownProgram() {
		return nil
	}
	if major, _, _ := strings.Cut(a.Inputs.Podman, "."); a.Inputs.Unfusing() && major == "3" && !a.Inputs.Owner.Rootful() {
		a.refuse("old-podman", "upgrade podman", "podman %s takes fuse-overlayfs for the store of a user by itself", a.Inputs.Podman)
	}
	if a.Inputs.Unfusing() {
		if v := slices.IndexFunc(a.Inputs.ConfEnv, func(kv string) bool {
			return strings.HasPrefix(kv, "STORAGE_OPTS=") && strings.Contains(kv, "mount_program")
		}); v >= 0 {
			a.refuse("storage-conf", "unset it, everywhere where podman is started", "%s outranks every file", a.Inputs.ConfEnv[v])
		}
	}
	return a.mountedByHand(ctx, cli)
}

// knownProgram refuses a store whose overlays are mounted by a program that cannot be
// asked for what they show.
func (a *Assessment) knownProgram() bool {
	p := a.Inputs.Store.Program
	if p == "" || filepath.Base(p) == DriverFuse {
		return true
	}
	a.refuse("driver", "set mount_program to fuse-overlayfs", "the store's overlays are mounted by %s, which storagectl does not know", p)
	return false
}

// copyTime is about how long it takes to copy bytes twice: to write them, and to read
// them and what they were copied from once more. A disk that does 100 MB a second is
// reckoned with; the plan says so.
func copyTime[N int64 | uint64](bytes N) string {
	const perSecond = 100e6 / 2
	return fmt.Sprintf("about %s at 100 MB/s", brief.Time((time.Duration(float64(bytes)/perSecond)*time.Second + time.Second).Round(time.Second)))
}

// marked reports whether a store's mark says that a mount program is used. Before
// podman 4.0 the mark was an empty file.
func marked(graphRoot string) (bool, error) {
	path := filepath.Join(graphRoot, overlay, markName)
	if there, err := exists(path); err != nil || !there {
		return false, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("cannot read the store's mark: %w", err)
	}
	return strings.TrimSpace(string(b)) != "false", nil
}

// markName is the file by which a store says whether a mount program is used.
const markName = ".has-mount-program"

// seeOverlay has an overlay store's folder be seen as it is: podman mounts it on
// itself, which hard links do not cross. It is done in this worker's mount namespace.
func seeOverlay(driver, graphRoot string) error {
	path := filepath.Join(graphRoot, overlay)
	if there, err := exists(path); driver != overlay || err != nil || !there {
		return err
	}
	return detachSelf(path)
}
