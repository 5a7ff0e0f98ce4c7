package convert

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	graphdriver "github.com/containers/storage/drivers"
	overlaydriver "github.com/containers/storage/drivers/overlay"
	"github.com/containers/storage/pkg/archive"
	"github.com/containers/storage/pkg/idtools"
	"golang.org/x/sys/unix"
)

// stagedDriver is containers/storage's overlay driver on the staged store. It
// makes the layers' folders, names and links, so that their layout is its own.
type stagedDriver struct {
	graphdriver.DriverWithDiffer
	home string
}

const mountProgramFlag = ".has-mount-program"

// openDriver opens the staged store's driver, or tells ErrNoNativeOverlay.
//
// skip_mount_home: the driver would bind-mount its home onto itself, and
// link(2) does not cross mounts even on one filesystem.
//
// The flag file says that no mount program is used. Left out, the driver looks
// through the whole store for an answer and writes the file itself; closing
// removes it, because older releases take it for a yes whatever it says.
func openDriver(o *Options) (*stagedDriver, error) {
	home, run := o.overlayHome(), filepath.Join(o.tmp(), "run")
	for _, dir := range []string{o.newRoot(), home, run, filepath.Join(run, "overlay")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	flag := filepath.Join(home, mountProgramFlag)
	if err := os.WriteFile(flag, []byte("false"), 0o600); err != nil {
		return nil, err
	}
	d := &stagedDriver{home: home}
	native, err := overlaydriver.SupportsNativeOverlay(home, filepath.Join(run, "overlay"))
	if err != nil || !native {
		return nil, errors.Join(ErrNoNativeOverlay, err, d.Close())
	}
	driver, err := graphdriver.GetDriver("overlay", graphdriver.Options{
		Root: o.newRoot(), RunRoot: run, DriverOptions: []string{"overlay.skip_mount_home=true"},
	})
	if errors.Is(err, graphdriver.ErrIncompatibleFS) || errors.Is(err, graphdriver.ErrNotSupported) || errors.Is(err, graphdriver.ErrPrerequisites) {
		return nil, errors.Join(ErrNoNativeOverlay, err, d.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the overlay driver: %w", err), d.Close())
	}
	differ, ok := driver.(graphdriver.DriverWithDiffer)
	if !ok {
		return nil, errors.Join(errors.New("this overlay driver takes no differ"), d.Close())
	}
	d.DriverWithDiffer = differ
	return d, nil
}

// Close removes what only a store in use has.
func (d *stagedDriver) Close() error {
	err := os.Remove(filepath.Join(d.home, mountProgramFlag))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, d.clearStaging())
}

// clearStaging removes the folders in which layers were filled.
func (d *stagedDriver) clearStaging() error { return os.RemoveAll(filepath.Join(d.home, "staging")) }

// layerDiffer hands one layer's fill to the driver, which gives it an empty
// folder and takes the filled one.
type layerDiffer struct {
	fill func(dest string) error
}

func (d *layerDiffer) Close() error { return nil }

func (d *layerDiffer) ApplyDiff(dest string, _ *archive.TarOptions, _ *graphdriver.DifferOptions) (graphdriver.DriverWithDifferOutput, error) {
	if err := d.fill(dest); err != nil {
		return graphdriver.DriverWithDifferOutput{}, err
	}
	fi, err := os.Lstat(dest)
	if err != nil {
		return graphdriver.DriverWithDifferOutput{}, err
	}
	mode := fi.Mode() // else the driver would give the folder the parent's mode
	return graphdriver.DriverWithDifferOutput{RootDirMode: &mode}, nil
}

// create makes the layer's folder.
func (d *stagedDriver) create(l *layer, parent string) error {
	opts := &graphdriver.CreateOpts{
		MountLabel: l.MountLabel,
		IDMappings: idtools.NewIDMappingsFromMaps(l.UIDMap, l.GIDMap),
	}
	if l.container {
		return d.CreateReadWrite(l.ID, parent, opts)
	}
	return d.Create(l.ID, parent, opts)
}

// put has the layer's diff filled in the driver's staging folder and takes it over.
func (d *stagedDriver) put(l *layer, fill func(dest string) error) error {
	out, err := d.ApplyDiffWithDiffer(nil, &layerDiffer{fill})
	if err != nil {
		if out.Target != "" {
			err = errors.Join(err, d.CleanupStagingDirectory(out.Target))
		}
		return err
	}
	return d.ApplyDiffFromStagingDirectory(l.ID, l.Parent, &out, nil)
}

// remove takes a layer's folder away, mounted or not. Its short link is left to
// sweep: the driver would remove l/ and what the layer's link file names, and
// that is empty when a run was killed between making the file and writing it.
func (d *stagedDriver) remove(id string) error {
	merged := filepath.Join(d.home, id, "merged")
	err := unix.Unmount(merged, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return &pathError{"unmount", merged, err}
	}
	if err := os.Remove(filepath.Join(d.home, id, "link")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.DriverWithDiffer.Remove(id) //nolint:staticcheck // not this type's own remove
}

// whole reports whether a layer's folder has what the driver needs of it.
func (d *stagedDriver) whole(id string) bool { return wholeLayer(d.home, id) }

func wholeLayer(home, id string) bool {
	link, err := os.ReadFile(filepath.Join(home, id, "link"))
	if err != nil || len(link) == 0 || !exists(filepath.Join(home, id, "diff")) {
		return false
	}
	target, err := os.Readlink(filepath.Join(home, "l", string(link)))
	return err == nil && target == filepath.Join("..", id, "diff")
}

// sweep removes every layer that keep does not name, links that lead nowhere,
// and what an interrupted run was filling. It tells the layers removed.
func (d *stagedDriver) sweep(keep map[string]bool) ([]string, error) {
	if err := d.clearStaging(); err != nil {
		return nil, err
	}
	names, err := os.ReadDir(d.home)
	if err != nil {
		return nil, err
	}
	var dropped []string
	for _, n := range names {
		if !n.IsDir() || n.Name() == "l" || keep[n.Name()] {
			continue
		}
		if err := d.remove(n.Name()); err != nil {
			return nil, err
		}
		dropped = append(dropped, n.Name())
	}
	links, err := os.ReadDir(filepath.Join(d.home, "l"))
	if err != nil {
		return nil, err
	}
	for _, n := range links {
		path := filepath.Join(d.home, "l", n.Name())
		target, err := os.Readlink(path)
		if err != nil {
			return nil, err
		}
		id := filepath.Base(filepath.Dir(target))
		link, err := os.ReadFile(filepath.Join(d.home, id, "link"))
		if err == nil && string(link) == n.Name() && keep[id] {
			continue
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	return dropped, nil
}
