package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/verify"
	"github.com/storagectl/storagectl/verify/smoke"
)

// Proof says what of a store is proven.
type Proof struct {
	// Data is which part of the files of images is read; 0: none.
	Data float64
	Seed string
	// Against is a manifest that the store is compared with; nil: none.
	Against *verify.Manifest
	// Image is what is run as a test, if not what comes with the program.
	Image    string
	Progress func(verify.ReadProgress)
}

const groupProof = "store"

// Proofs are the checks that prove a store, to be done in their order with
// [RunInTurn]. All but the container of the test only look.
func Proofs(p Proof) []Check {
	checks := []Check{
		{
			ID: "podman", Group: groupProof, Title: "Podman answers", Why: "Nothing works without.", Limit: time.Minute,
			Look: func(_ context.Context, h *Host) Finding {
				i, err := h.info()
				switch {
				case errors.Is(err, errNoStore): // all that follows is absent, and nothing of it proven
					f := unknown(err)
					f.Mend = []string{"storagectl verify --user NAME  # if it is another user's store that is meant"}
					return f
				case err != nil:
					return notSeen(err)
				}
				return ok("podman %s, driver %s, graphroot %s", i.Version.Version, i.Store.GraphDriverName, i.Store.GraphRoot)
			},
		},
		{ID: "records", Group: groupProof, Title: "The store's records are whole", Why: "An image whose layer or manifest is gone cannot be run, saved or converted.", Limit: time.Minute, Look: lookRecords},
		{
			ID: "storage-check", Group: groupProof, Title: "containers/storage finds nothing wrong", Why: "It is the library by which podman reads the store.", Limit: 2 * time.Minute,
			Look: rooted(proveCheck),
		},
		{
			ID: "container", Group: groupProof, Title: "A container runs", Why: "It is what the store is for.", Limit: 5 * time.Minute,
			Look: withInfo(func(ctx context.Context, h *Host, i infoSeen) Finding {
				cli := h.cli()
				cli.Limit = 2 * time.Minute
				r, err := verify.Smoke(ctx, cli.Run, verify.SmokeOptions{Driver: i.Store.GraphDriverName, Run: "verify", Image: p.Image})
				if errors.Is(err, smoke.ErrNotBuilt) { // that tells nothing of the store
					return unknown(err)
				}
				if err != nil {
					return problem(err.Error(), h.as("podman info"))
				}
				return ok("%s in %.1f s, its root on %s", r.Image, r.Took.Seconds(), r.RootFS)
			}),
		},
		{ID: "networks", Group: groupProof, Title: "Podman can read its networks", Why: "A container whose network cannot be read does not start.", Limit: time.Minute, Look: withInfo(proveNetworks)},
		{ID: "volumes", Group: groupProof, Title: "Volumes are there and can be written", Why: "Containers that write to them fail.", Limit: time.Minute, Look: withInfo(proveVolumes)},
		{ID: "quadlets", Group: groupProof, Title: "Quadlet units are valid", Why: "systemd leaves one out that is not, and its container does not start.", Limit: time.Minute, Look: proveQuadlets},
	}
	if p.Against != nil {
		checks = append(checks, Check{
			ID: "manifest", Group: groupProof, Title: "The store holds what the manifest says", Why: "What is missing was lost.", Limit: 10 * time.Minute,
			Look: rooted(func(ctx context.Context, h *Host, g, r, d string) Finding {
				return proveManifest(ctx, h, ref(g, r, d), *p.Against)
			}),
		})
	}
	if p.Data > 0 {
		checks = append(checks, Check{
			ID: "data", Group: groupProof, Title: "The files of images have the right content", Why: "A disk can lose what it held without a word.", Limit: 24 * time.Hour,
			Look: rooted(func(ctx context.Context, h *Host, g, r, d string) Finding { return proveData(ctx, h, ref(g, r, d), p) }),
		})
	}
	return checks
}

// RunInTurn does checks one after the other.
func RunInTurn(ctx context.Context, h *Host, checks []Check) []Result {
	ctx, cancel := context.WithCancel(ctx)
	var looks sync.WaitGroup
	defer leave(h, cancel, &looks)
	h.share(ctx)
	var results []Result
	for _, c := range checks {
		results = append(results, one(ctx, h, c, &looks))
	}
	return results
}

func proveNetworks(ctx context.Context, h *Host, _ infoSeen) Finding {
	out, err := h.cli().Run(ctx, nil, "network", "ls", "--format", "{{.Name}}")
	if err != nil {
		return problem(err.Error(), h.as("podman network ls"))
	}
	names := strings.Fields(string(out))
	if len(names) > 0 {
		if _, err := h.cli().Run(ctx, nil, append([]string{"network", "inspect"}, names...)...); err != nil {
			return problem(err.Error(), h.as("podman network inspect "+strings.Join(names, " ")))
		}
	}
	return ok("%s", few(names))
}

func proveVolumes(ctx context.Context, h *Host, _ infoSeen) Finding {
	out, err := h.cli().Run(ctx, nil, "volume", "ls", "--format", "{{.Name}}")
	if err != nil {
		return problem(err.Error(), h.as("podman volume ls"))
	}
	names := strings.Fields(string(out))
	if len(names) == 0 {
		return absent("there is none")
	}
	if out, err = h.cli().Run(ctx, nil, append([]string{"volume", "inspect"}, names...)...); err != nil {
		return problem(err.Error(), h.as("podman volume inspect --all"))
	}
	var volumes []struct {
		Name, Driver, Mountpoint string
		Options                  map[string]string
	}
	if err := json.Unmarshal(out, &volumes); err != nil {
		return unknown(fmt.Errorf("cannot read podman volume inspect: %w", err))
	}
	var paths []string
	for _, v := range volumes {
		if v.Driver == "local" && v.Options["type"] == "" { // others are mounted when they are used
			paths = append(paths, v.Mountpoint)
		}
	}
	bad, err := askOwner[[]string](ctx, h, opVolumes, paths)
	switch {
	case err != nil:
		return unknown(err)
	case len(bad) > 0:
		return problem(few(bad), "see the filesystem of the store: mount, df")
	}
	return ok("%d, of which %d are folders of the store, all writable", len(volumes), len(paths))
}

func proveCheck(ctx context.Context, h *Host, g, r, d string) Finding {
	if d != "vfs" && d != "overlay" {
		return absent("not for stores on %s", d)
	}
	got, err := askOwner[verify.CheckReport](ctx, h, opCheck, ref(g, r, d))
	if err != nil {
		return unknown(err)
	}
	f := ok("%d images, %d layers", got.Images, got.Layers)
	if len(got.Damage) > 0 {
		f = problem(strings.Join(got.Damage, "; "), damageMends(h, nil)...)
	}
	f.Checked = &got
	return f
}

// checkStore opens another store in memory to see the owner's through.
func checkStore(ctx context.Context, r verify.StoreRef) (verify.CheckReport, error) {
	// The mount namespace is this worker's alone: what is mounted goes with it.
	// It must not hide the store.
	places := slices.DeleteFunc([]string{"/tmp", "/var/tmp", "/mnt"}, func(at string) bool {
		return slices.ContainsFunc(append([]string{r.GraphRoot}, r.ImageStores...), func(root string) bool { return strings.HasPrefix(root, at+"/") })
	})
	if len(places) == 0 {
		return verify.CheckReport{}, errors.New("the store's folders leave no place to work on")
	}
	at := places[0]
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=64m"); err != nil {
		return verify.CheckReport{}, fmt.Errorf("a tmpfs cannot be mounted to work on: %s", reason(err))
	}
	return verify.Check(ctx, r, at)
}

// seeVolumes names the folders that are gone or cannot be written to.
func seeVolumes(paths []string) []string {
	var bad []string
	for _, p := range paths {
		var sf unix.Statfs_t
		err := unix.Statfs(p, &sf)
		if err == nil && sf.Flags&unix.ST_RDONLY != 0 {
			err = unix.EROFS
		}
		if err == nil {
			err = unix.Access(p, unix.W_OK|unix.X_OK)
		}
		if err != nil {
			bad = append(bad, fmt.Sprintf("%s: %s", p, reason(err)))
		}
	}
	return bad
}

func proveQuadlets(ctx context.Context, h *Host) Finding {
	generator, args := "/usr/lib/systemd/system-generators/podman-system-generator", []string{"-dryrun"}
	if !h.Owner.Rootful() {
		generator, args = "/usr/lib/systemd/user-generators/podman-user-generator", []string{"-user", "-dryrun"}
	}
	if _, err := os.Stat(generator); err != nil {
		return absent("this podman has no Quadlet")
	}
	cmd := host.Cmd{Argv: append([]string{generator}, args...), Env: h.Owner.Env(), Timeout: 30 * time.Second}
	if !h.self() {
		cmd.As = &host.User{UID: h.Owner.UID, GID: h.Owner.GID}
	}
	out, err := h.Runner.Run(ctx, cmd)
	var exit *host.ExitError
	switch {
	case errors.As(err, &exit):
		return problem("the generator says: "+strings.Join(strings.Fields(exit.Stderr), " "), strings.Join(append([]string{generator}, args...), " "))
	case errors.Is(err, exec.ErrNotFound):
		return absent("this podman has no Quadlet")
	case err != nil:
		return unknown(err)
	}
	n := strings.Count(string(out), "[Service]")
	if n == 0 {
		return absent("there is none")
	}
	return ok("%d, all valid", n)
}

func proveManifest(ctx context.Context, h *Host, r verify.StoreRef, before verify.Manifest) Finding {
	after, err := h.Manifest(ctx, r)
	if err != nil {
		return problem(err.Error(), h.as("podman info"))
	}
	ds := verify.Diff(before, after)
	added := len(ds)
	ds = slices.DeleteFunc(ds, verify.Difference.Added)
	added -= len(ds)
	if len(ds) == 0 {
		return ok("%d images, %d layers, %d objects of podman's are as they were; %d are new", len(before.Store.Images), len(before.Store.Layers), len(before.Podman.Objects), added)
	}
	var lines []string
	for _, d := range ds {
		lines = append(lines, d.String())
	}
	return problem(fmt.Sprintf("%d differences: %s", len(ds), strings.Join(lines[:min(10, len(lines))], "; ")), "see what became of each; before a commit storagectl rollback returns to the old store")
}

// Manifest takes a manifest of the store.
func (h *Host) Manifest(ctx context.Context, r verify.StoreRef) (verify.Manifest, error) {
	part, err := askOwner[verify.StorePart](ctx, h, opManifest, r)
	if err != nil {
		return verify.Manifest{}, err
	}
	cli := h.cli()
	cli.Limit = 2 * time.Minute
	return verify.Take(ctx, cli.Run, part)
}

// Store says where podman's store is. It asks podman.
func (h *Host) Store(ctx context.Context) (verify.StoreRef, error) {
	h.share(ctx)
	if _, err := h.info(); err != nil {
		return verify.StoreRef{}, err
	}
	g, r, d, err := h.root()
	return ref(g, r, d), err
}

type dataArgs struct {
	Store   verify.StoreRef    `json:"store"`
	Options verify.ReadOptions `json:"options"`
}

func proveData(ctx context.Context, h *Host, r verify.StoreRef, p Proof) Finding {
	w, err := podman.StartWorker(ctx, h.Owner, nil, h.ConfEnv...)
	if err != nil {
		return unknown(err)
	}
	defer w.Close()
	var got verify.ReadReport
	err = w.Call(ctx, opData, dataArgs{r, verify.ReadOptions{Share: p.Data, Seed: p.Seed}}, &got, func(raw json.RawMessage) {
		var q verify.ReadProgress
		if json.Unmarshal(raw, &q) == nil && p.Progress != nil {
			p.Progress(q)
		}
	})
	if err != nil {
		return unknown(err)
	}
	saw := fmt.Sprintf("%d files of %d layers, %s, in %.1f s", got.Files, got.Layers, size(uint64(got.Bytes)), got.Seconds)
	if got.Without > 0 {
		saw += fmt.Sprintf("; %d layers cannot be judged, since the store does not know their digest", got.Without)
	}
	f := ok("%s", saw)
	if len(got.Damage) > 0 {
		f = problem(fmt.Sprintf("%s; %s", strings.Join(got.Damage, "; "), saw), damageMends(h, nil)...)
	}
	f.Read = &got
	return f
}
