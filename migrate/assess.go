package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
	"github.com/storagectl/storagectl/migrate/convert"
	"github.com/storagectl/storagectl/verify/smoke"
)

// Assessment is a job judged before it begins: what is there, what would be
// done, and whether it may. Nothing was changed to make it.
type Assessment struct {
	Inputs   Inputs           `json:"inputs"`
	Info     podman.Info      `json:"-"`
	Look     storeLook        `json:"store"`
	Estimate convert.Estimate `json:"estimate"`
	Database libpoddb.Facts   `json:"database"`
	Conf     ConfPlan         `json:"conf"`
	Units    units            `json:"units"`
	Running  []Ran            `json:"running,omitempty"` // are stopped, and with --containers keep started again
	Busy     []string         `json:"busy,omitempty"`    // are at work now, and would be waited for
	Reset    *resetLook       `json:"reset,omitempty"`   // with --images discard
	Plan     []PlannedStep    `json:"plan"`
	Notes    []string         `json:"notes,omitempty"`
	Refusals []Refusal        `json:"refusals,omitempty"`
	Need     uint64           `json:"need,omitempty"` // relocate: bytes that the store has
	Room     uint64           `json:"room,omitempty"` // relocate to another driver: bytes that it will need, as far as can be told
	Window   *WindowPlan      `json:"window,omitempty"`
	Already  bool             `json:"already"` // the store is on the wanted driver: nothing to do
}

// PlannedStep is a step as a plan shows it.
type PlannedStep struct {
	Name  string `json:"name"`
	Title string `json:"title"`
	Down  bool   `json:"down"` // podman is stopped meanwhile
	Final bool   `json:"final,omitempty"`
	What  string `json:"what"` // what it comes to on this host
}

// Assess judges a request. A problem of the host is a [Refusal] in the answer;
// an error means that the host could not be looked at.
func Assess(ctx context.Context, env Env, req Request) (*Assessment, error) {
	a := &Assessment{Inputs: Inputs{Request: req}}
	owner, ok, err := a.owner(ctx, env.Runner)
	if err != nil || !ok {
		return a, err
	}
	a.Inputs.Owner = owner
	a.Inputs.ConfEnv = ConfEnv(owner)
	// First of all, before podman itself is run: in the middle of a cutover it
	// would make itself a new store.
	known, err := a.unfinished(env.Dir)
	if err != nil || len(a.Refusals) > 0 {
		return a, err
	}
	cli := podman.CLI{Owner: owner, Runner: env.Runner, Extra: a.Inputs.ConfEnv}
	if ok, err := a.version(ctx, cli); err != nil || !ok {
		return a, err
	}
	w, err := podman.StartWorker(ctx, owner, env.Point, a.Inputs.ConfEnv...)
	if err != nil {
		return a, err
	}
	defer w.Close()
	s := &Session{Inputs: a.Inputs, env: env, cli: cli, worker: w, ID: "dry-run"}
	if ok, err := a.readable(ctx, *s); err != nil || !ok {
		return a, err
	}
	if ok, err := a.podman(ctx, cli); err != nil || !ok {
		return a, err
	}
	a.program()
	if req.Relocate != nil && req.To == "" { // the driver stays
		req.To = a.Inputs.Store.Driver
		if req.Relocate.Driver == DriverVFS && req.To == overlay { // or becomes one that any target holds
			req.To = DriverVFS
		}
		a.Inputs.Request.To = req.To
	}
	s.Inputs = a.Inputs
	if a.Look, err = ask[storeLook](ctx, s, opLook, pathArg{a.Inputs.Store.GraphRoot}); err != nil {
		return a, err
	}
	a.Inputs.HadTo = slices.Contains(a.Look.Drivers, req.To)
	a.Inputs.Store.MountedOn = a.Look.MountedOn
	if err := a.growth(ctx, env.Runner); err != nil || len(a.Refusals) > 0 {
		return a, err
	}
	if a.Inputs.Growing() && req.To != a.Inputs.Store.Driver {
		a.refuse("driver", "make it larger without --to and --driver; storagectl migrate --to "+req.To+" converts it where it is", "the store is on that image already, and is only made larger")
		return a, nil
	}
	if a.Inputs.Growing() { // what lies in the store does not matter
		a.gate()
	} else {
		a.leftovers(known)
	}
	if len(a.Refusals) == 0 {
		a.roots(env.Dir.Path)
	}
	if len(a.Refusals) > 0 {
		return a, nil
	}
	if a.Inputs.Growing() && a.Inputs.Target.Image.online() {
		a.plan(s)
		return a, nil
	}
	if !a.Inputs.There() || req.Relocate != nil || req.MigrateDB {
		if err := a.nomad(ctx, cli); err != nil || len(a.Refusals) > 0 {
			return a, err
		}
	}
	if err := a.database(ctx, s); err != nil {
		return a, err
	}
	a.migrateDB()
	s.Inputs = a.Inputs
	if err := a.atWork(ctx, cli); err != nil {
		return a, err
	}
	if a.Inputs.Growing() {
		if err := a.growOffline(ctx, s); err != nil || len(a.Refusals) > 0 {
			return a, err
		}
		a.plan(s)
		return a, nil
	}
	if a.Info.Store.GraphDriverName != req.To || req.Relocate != nil || req.MigrateDB {
		_, err := smoke.ProgramBytes()
		a.testable(err)
	}
	if same := a.Info.Store.GraphDriverName == req.To; same && req.Relocate != nil {
		return a, a.relocation(ctx, s)
	} else if same && a.Inputs.Request.MigrateDB {
		return a, a.databaseOnly(ctx, s)
	} else if a.Already = a.Inputs.There(); a.Already {
		return a, nil
	}
	if d := a.Info.Store.GraphDriverName; d != DriverVFS && d != overlay {
		a.refuse("driver", "re-create the store, or wait for a release that converts from it",
			"the store is on the driver %q; only vfs and overlay can be converted", d)
		return a, nil
	}
	if req.Relocate != nil {
		return a, a.relocation(ctx, s)
	}
	if req.Images == Discard {
		if err := a.resetting(ctx, s); err != nil {
			return a, err
		}
	}
	if img := req.SmokeImage; img != "" && req.Images == Keep {
		if _, err := cli.Run(ctx, nil, "image", "inspect", img); err != nil {
			a.refuse("smoke-image", "give an image of the store, or leave --smoke-image out", "the smoke image %s is not in the store: %v", img, err)
		}
	}
	if err := a.units(ctx, s); err != nil {
		return a, err
	}
	if req.Containers != Refuse {
		if err := a.running(ctx, cli); err != nil {
			return a, err
		}
	}
	a.oldOverlay()
	if err := a.fromOverlay(ctx, cli); err != nil {
		return a, err
	}
	if err := a.conf(ctx, s); err != nil {
		return a, err
	}
	if err := a.content(ctx, s); err != nil {
		return a, err
	}
	a.plan(s)
	return a, nil
}

// testable refuses a run that would find out only with podman down that there is
// nothing to test the new store with; missing is why this binary has no test image.
func (a *Assessment) testable(missing error) {
	if req := a.Inputs.Request; missing != nil && (req.SmokeImage == "" || req.Outage.DockerAPI) {
		a.refuse("smoke-image", "use one that make build made, or give an image of the store: --smoke-image NAME", "there is nothing to test the new store with: %v", missing)
	}
}

func (a *Assessment) refuse(id, hint, format string, args ...any) {
	a.Refusals = append(a.Refusals, Refusal{ID: id, Text: fmt.Sprintf(format, args...), Hint: hint})
}

// Allowed names who may work on a store.
func Allowed(o podman.Owner) string {
	if o.Rootful() {
		return "root"
	}
	return "root and by " + o.Name
}

func (a *Assessment) owner(ctx context.Context, r *host.Runner) (podman.Owner, bool, error) {
	name := a.Inputs.Request.User
	if name == "" {
		name = fmt.Sprint(os.Getuid())
	}
	o, err := podman.LookupOwner(ctx, r, name)
	if errors.Is(err, podman.ErrNoUser) {
		a.refuse("no-user", "give the name of the user whose store it is", "there is no user %q", name)
		return o, false, nil
	}
	if err != nil {
		return o, false, err
	}
	if self := os.Getuid(); self != 0 && uint32(self) != o.UID {
		a.refuse("not-root", "run it as root, or as that user", "the store of %s can be worked on by %s alone", o.Name, Allowed(o))
		return o, false, nil
	}
	if !o.Rootful() && (len(o.SubUIDs) == 0 || len(o.SubGIDs) == 0) {
		a.refuse("no-subids", fmt.Sprintf("usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST %s, with 65536 ids that /etc/subuid and /etc/subgid give to nobody yet", o.Name),
			"user %s has no subordinate ids in /etc/subuid and /etc/subgid, so podman cannot run for them", o.Name)
		return o, false, nil
	}
	return o, true, nil
}

// ConfEnv are the variables of the caller that decide which configuration
// podman reads, where the caller is the owner. Another user's are unknown.
func ConfEnv(o podman.Owner) []string {
	if uint32(os.Getuid()) != o.UID {
		return nil
	}
	var env []string
	for _, k := range []string{"CONTAINERS_STORAGE_CONF", "CONTAINERS_STORAGE_CONF_OVERRIDE", "STORAGE_DRIVER", "STORAGE_OPTS",
		"CONTAINERS_CONF", "CONTAINERS_CONF_OVERRIDE", "XDG_CONFIG_HOME", "XDG_DATA_HOME"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return env
}

func (a *Assessment) version(ctx context.Context, cli podman.CLI) (bool, error) {
	major, _, version, err := cli.Version(ctx)
	if errors.Is(err, podman.ErrNoPodman) {
		a.refuse("no-podman", "install podman", "podman is not installed")
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if major < 3 {
		a.refuse("old-podman", "upgrade podman", "podman %s is too old: 3.0 is the oldest known", version)
		return false, nil
	}
	a.Inputs.Podman = version
	return true, nil
}

// readable refuses a storage.conf that podman cannot read, before podman is
// asked anything: it would complain, go on with its defaults, and make itself
// another store where these say.
func (a *Assessment) readable(ctx context.Context, s Session) (bool, error) {
	s.Inputs.Request.To = "vfs" // no word on whether it can be edited: that is for a store to be migrated
	var f *podman.Fault
	if _, err := s.confPlan(ctx, libpoddb.Facts{}); errors.As(err, &f) {
		a.refuse("storage-conf", "mend that file; podman leaves it aside as long as it cannot read it", "podman's configuration is broken: %v", err)
		return false, nil
	} else if err != nil {
		return false, err
	}
	return true, nil
}

// podman asks podman what it uses.
func (a *Assessment) podman(ctx context.Context, cli podman.CLI) (bool, error) {
	var err error
	if a.Info, err = cli.Info(ctx); err != nil {
		o := cli.Owner
		if o.Rootful() || o.RuntimeDir != "" || !host.HasSystemd() {
			return false, fmt.Errorf("cannot learn from podman what it uses: %w", err)
		}
		a.refuse("no-linger", fmt.Sprintf("loginctl enable-linger %s, then try again", o.Name),
			"podman cannot run for %s, who has no /run/user/%d: not logged in, and no linger", o.Name, o.UID)
		return false, nil
	}
	st := a.Info.Store
	a.Inputs.Store = Store{GraphRoot: filepath.Clean(st.GraphRoot), RunRoot: filepath.Clean(st.RunRoot), Driver: st.GraphDriverName, VolumePath: st.VolumePath}
	for k, v := range st.GraphOptions {
		switch text := v.(type) {
		case string:
			if strings.HasSuffix(k, ".imagestore") {
				a.Inputs.Store.ImageStores = append(a.Inputs.Store.ImageStores, strings.Split(text, ",")...)
			} else {
				a.Inputs.Store.Options = append(a.Inputs.Store.Options, k+"="+text)
			}
		}
	}
	slices.Sort(a.Inputs.Store.Options)
	return true, nil
}

func (a *Assessment) database(ctx context.Context, s *Session) error {
	found, err := ask[[]libpoddb.Facts](ctx, s, opDBFind, dbFindArgs{a.Inputs.Store.GraphRoot})
	if err == nil {
		a.Database, err = libpoddb.Choose(found, a.Inputs.Podman, a.Info.Host.DatabaseBackend)
	}
	switch {
	case faultKind(err) == faultSchema, errors.Is(err, libpoddb.ErrSchema):
		a.refuse("database", "this podman is newer or older than this release of storagectl knows", "podman %s: %v", a.Inputs.Podman, err)
	case errors.Is(err, libpoddb.ErrBoth), errors.Is(err, libpoddb.ErrBackend):
		a.refuse("database", "find out which of them podman uses (podman info --format '{{.Host.DatabaseBackend}}') and move the other away", "%v", err)
	case err != nil:
		return err
	case a.Database.Kind == libpoddb.None:
		// podman info has just opened, and so made, one: it is somewhere else.
		a.refuse("database", "see where podman keeps it (static_dir in containers.conf)", "podman's database is not in the graphroot %s", a.Inputs.Store.GraphRoot)
	}
	a.Inputs.Store.Database, a.Inputs.Store.DBKind = a.Database.Path, a.Database.Kind
	if a.Inputs.Request.Containers == Refuse {
		stay, err := a.staying(ctx, s.cli, a.Database.Containers)
		if err != nil {
			return err
		}
		var r *Refusal
		if errors.As(refuseContainers(stay), &r) {
			a.Refusals = append(a.Refusals, *r)
		}
	}
	return nil
}

func (a *Assessment) units(ctx context.Context, s *Session) error {
	err := a.findUnits(ctx, s)
	if err == nil && len(a.Refusals) == 0 {
		a.gate()
	}
	return err
}

func (a *Assessment) findUnits(ctx context.Context, s *Session) error {
	if !host.HasSystemd() {
		a.Notes = append(a.Notes, "no systemd here: steps on units are left out")
		return a.pidFiles(ctx, s)
	}
	if !a.Inputs.Owner.Rootful() && a.Inputs.Owner.RuntimeDir == "" {
		a.Notes = append(a.Notes, fmt.Sprintf("%s has no systemd running (no linger, not logged in): steps on units are left out", a.Inputs.Owner.Name))
		return a.pidFiles(ctx, s)
	}
	u, err := s.activeUnits(ctx)
	if err != nil {
		a.refuse("bus", "loginctl enable-linger "+a.Inputs.Owner.Name+"; check that the user's dbus and systemd answer (systemctl --user status)",
			"the systemd of %s does not answer: %v", a.Inputs.Owner.Name, err)
		return nil
	}
	a.Inputs.Systemd, a.Units = true, u
	return a.pidFiles(ctx, s)
}

// conf finds out which storage.conf decides, and what podman goes by now.
func (a *Assessment) conf(ctx context.Context, s *Session) error {
	s.Inputs = a.Inputs
	p, err := s.confPlan(ctx, a.Database)
	if err != nil {
		var f *podman.Fault
		if !errors.As(err, &f) {
			return err
		}
		a.refuse("storage-conf", "mend that file by hand, or set its driver yourself", "%v", err)
		return nil
	}
	a.Conf = p
	if p.Dangling != "" {
		a.refuse("storage-conf", "put a file where the link leads to, or remove the link", "%v", errDangling(p.Dangling))
	}
	if p.ImageStore != "" {
		a.refuse("imagestore", "storagectl converts and resets what lies in the graphroot alone: unset imagestore and pull the images anew, or wait for a release that knows such stores",
			"the images lie in a store of their own, %s (storage.imagestore)", p.ImageStore)
	}
	a.Notes = append(a.Notes, p.Warnings...)
	return nil
}

// Bytes writes a number of bytes for people, in units of 1000 as disks are sold.
func Bytes[N int64 | uint64](n N) string {
	f, units := float64(n), []string{"B", "kB", "MB", "GB", "TB", "PB"}
	for f >= 1000 && len(units) > 1 {
		f, units = f/1000, units[1:]
	}
	if units[0] == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[0])
}
