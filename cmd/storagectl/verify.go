package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/verify"
	"github.com/storagectl/storagectl/verify/doctor"
)

// verifyOptions are the flags of verify.
type verifyOptions struct {
	user, sample, against, with, image, write string
	read, docker                              bool
	pull                                      string
}

func newVerify(a *app) *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Prove that a store is whole and works",
		Long: `verify asks podman, looks at the store's records, runs a container from a tiny image
that comes with storagectl and removes both, and looks at networks, volumes and
Quadlet units. With --read-data it reads all files of all images and compares them
with their digests; with --sample a part of them, each time another. --against compares
the store with the manifest that a run took before the stores changed places, or with
a manifest in a file; --with compares that with another file, and looks at no store.
--manifest writes the manifest of the store (docs/manifest.md), and does nothing else.
Without --user, --against takes the store of the owner that the manifest names.

--docker-api makes on podman's socket the calls of a worker of Prefect's, in its order
and with Docker's own client, and tells of each what came back and how long it took.
migrate and relocate make them before the host is given back, with the same flag.

Nothing is pulled (but by --pull), and but for the containers of the tests nothing is
changed.

` + verifyExitHelp,
		Example: `  storagectl verify --user hashi
  storagectl verify --user hashi --read-data   # read everything
  storagectl verify --user hashi --sample 5%   # read one file in twenty
  storagectl verify --against 0003-migrate-9f2c   # is all there that was there before the run?
  storagectl verify --user hashi --manifest before.manifest
  storagectl verify --against before.manifest   # the store of the user whose it was
  storagectl verify --against before.manifest --with after.manifest
  storagectl verify --user hashi --docker-api   # what a worker of Prefect's would see`,
		PreRunE: func(*cobra.Command, []string) error { return o.check() },
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.verify(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.user, "user", "", "the user whose store it is (default: the caller)")
	f.BoolVar(&o.read, "read-data", false, "read all files of all images and compare them with their digests")
	f.StringVar(&o.sample, "sample", "", "read this part of the files of all images, as 5%, and no more")
	f.StringVar(&o.against, "against", "", "compare with the manifest of a run, or of a file")
	f.StringVar(&o.with, "with", "", "compare the manifest of --against with this file, and not with a store")
	f.StringVar(&o.image, "smoke-image", "", "an image of the store to run as a test (default: a tiny one that comes with storagectl)")
	f.BoolVar(&o.docker, "docker-api", false, "instead of the other proofs do on podman's socket what a worker of Prefect's does there, call by call")
	f.StringVar(&o.pull, "pull", "", "with --docker-api: pull this image from its registry, too, as the policies IfNotPresent and Always do; it is removed again if it was not there")
	f.StringVar(&o.write, "manifest", "", "write the manifest of the store to this file")
	return cmd
}

// share reads --sample: a percentage.
func (o verifyOptions) share() (float64, error) {
	switch {
	case o.sample != "" && o.read:
		return 0, usagef("cannot use --read-data with --sample: the one reads all, the other a part")
	case o.read:
		return 1, nil
	case o.sample == "":
		return 0, nil
	}
	text, is := strings.CutSuffix(o.sample, "%")
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || !is || n <= 0 || n > 100 {
		return 0, usagef("cannot use --sample %q: it is a percentage, as 5%%", o.sample)
	}
	return n / 100, nil
}

// check refuses what cannot be asked for together.
func (o verifyOptions) check() error {
	share, err := o.share()
	if err != nil {
		return err
	}
	if o.docker && (share > 0 || o.image != "" || o.against != "" || o.with != "" || o.write != "") || o.pull != "" && !o.docker {
		return usagef("cannot use --docker-api with other proofs, nor --pull without it")
	}
	if o.write != "" && (share > 0 || o.against != "" || o.with != "" || o.image != "") {
		return usagef("cannot use --manifest with a proof: it writes the manifest of the store, and proves nothing")
	}
	return nil
}

func (a *app) verify(ctx context.Context, o verifyOptions) error {
	share, err := o.share()
	if err != nil {
		return err
	}
	if o.with != "" {
		return a.compareFiles(o)
	}
	p := doctor.Proof{Data: share, Image: o.image, Seed: fmt.Sprint(os.Getpid()), Progress: func(q verify.ReadProgress) {
		a.out.progress(migrate.Progress{Step: "verify", Phase: "data", Done: q.Done, Total: q.Total, Unit: "layers", Note: migrate.Bytes(q.Bytes)})
	}}
	strange := false // nobody says whose store the manifest is of
	if o.against != "" {
		m, user, err := a.manifestOf(o.against)
		if err != nil {
			return err
		}
		p.Against = &m
		if strange = o.user == "" && user == ""; o.user == "" {
			o.user = user
		}
	}
	h, err := a.doctorHost(ctx, o.user)
	if err != nil {
		return err
	}
	if strange {
		if err := a.sameStore(ctx, h, *p.Against, o.against); err != nil {
			return err
		}
	}
	if o.write != "" {
		return a.writeManifest(ctx, h, o.write)
	}
	var results []doctor.Result
	if o.docker {
		results = doctor.ReplayDockerAPI(ctx, h, o.pull)
	} else {
		results = doctor.RunInTurn(ctx, h, doctor.Proofs(p))
	}
	if ctx.Err() != nil {
		return engine.ErrInterrupted
	}
	a.tellResults(h, results, true, "verify")
	return outcome(results)
}

// sameStore refuses the store that is meant where nobody was named, if the manifest is
// of another place: most of all root's for that of a user.
func (a *app) sameStore(ctx context.Context, h *doctor.Host, m verify.Manifest, file string) error {
	const hint = "say whose store is to be compared, by --user"
	r, err := h.Store(ctx)
	if err != nil {
		return &hintedError{usagef("cannot use --against %s: it is of the store %s, and where that of %s is cannot be seen: %w", file, oneLine(m.Store.GraphRoot), h.Owner.Name, err), hint}
	}
	if r.GraphRoot != m.Store.GraphRoot {
		return &hintedError{usagef("cannot use --against %s: it is of the store %s, and that of %s is %s", file, oneLine(m.Store.GraphRoot), h.Owner.Name, oneLine(r.GraphRoot)), hint}
	}
	return nil
}

// manifestOf reads a manifest of a file or, where there is none of that name, of a run,
// and tells whose store it is of: "" where the file does not say.
func (a *app) manifestOf(name string) (m verify.Manifest, user string, err error) {
	f, err := os.Open(name)
	if err == nil {
		defer f.Close()
		m, err = verify.DecodeManifest(f)
		if err != nil {
			err = usagef("cannot use --against %s: %w", name, err)
		}
		return m, m.Owner, err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return m, "", usagef("cannot use --against %s: %w", name, err)
	}
	run, err := a.dir().Find(name)
	if errors.Is(err, engine.ErrNoRun) {
		return m, "", fmt.Errorf("cannot use --against %s: there is neither a file nor a run of that name: %w", name, err)
	}
	if err != nil {
		return m, "", err
	}
	m, in, err := migrate.RunManifest(a.dir(), run)
	return m, in.Owner.Name, err
}

// compareFiles compares two manifests, as they lie on the disk.
func (a *app) compareFiles(o verifyOptions) error {
	if o.against == "" || o.user != "" || o.read || o.sample != "" || o.image != "" {
		return usagef("cannot use --with but beside --against alone")
	}
	before, _, err := a.manifestOf(o.against)
	if err != nil {
		return err
	}
	f, err := os.Open(o.with)
	if err != nil {
		return usagef("cannot use --with %s: %w", o.with, err)
	}
	defer f.Close()
	after, err := verify.DecodeManifest(f)
	if err != nil {
		return usagef("cannot use --with %s: %w", o.with, err)
	}
	ds := verify.Diff(before, after)
	var b strings.Builder
	for _, d := range ds {
		b.WriteString(oneLine(d.String()) + "\n")
	}
	if len(ds) == 0 {
		b.WriteString("They hold the same.\n")
	}
	a.out.result("differences", differencesMessage{ds}, b.String())
	if len(ds) > 0 {
		return told(&outcomeError{doctor.Problem})
	}
	return nil
}

// differencesMessage is what --with ends with.
type differencesMessage struct {
	Differences []verify.Difference `json:"differences"`
}

// manifestMessage is what --manifest ends with.
type manifestMessage struct {
	Path    string `json:"path"`
	Images  int    `json:"images"`
	Layers  int    `json:"layers"`
	Objects int    `json:"objects"`
}

func (a *app) writeManifest(ctx context.Context, h *doctor.Host, path string) error {
	r, err := h.Store(ctx)
	if err != nil {
		return err
	}
	m, err := h.Manifest(ctx, r)
	if err != nil {
		return err
	}
	m.Owner = h.Owner.Name
	var b strings.Builder
	if err := m.Encode(&b); err != nil {
		return err
	}
	if err := renameio.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		return &hintedError{fmt.Errorf("cannot write the manifest: %w", err), folderHint(path)}
	}
	msg := manifestMessage{path, len(m.Store.Images), len(m.Store.Layers), len(m.Podman.Objects)}
	a.out.result("manifest", msg, fmt.Sprintf("%s: %s, %s, %s of podman's\n", path, migrate.Count(msg.Images, "image", "images"),
		migrate.Count(msg.Layers, "layer", "layers"), migrate.Count(msg.Objects, "object", "objects")))
	return nil
}

// outcome is the verdict on results as an error that was told, nil if all is well.
func outcome(results []doctor.Result) error {
	if e := (&outcomeError{doctor.Worst(results)}); e.code() != exitOK {
		return told(e)
	}
	return nil
}
