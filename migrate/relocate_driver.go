package migrate

import (
	"context"
	"fmt"
	"strings"

	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/verify"
)

// This file is about targets that cannot hold overlay natively.

// What a store can be on, on such a target ([Relocation.Driver]).
const (
	DriverVFS  = "vfs"
	DriverFuse = "fuse-overlayfs"
)

// drive judges how the store is to be on the target: as it is, or as the operator
// says.
func (a *Assessment) drive() {
	r, st, t := a.Inputs.Request.Relocate, a.Inputs.Store, a.Inputs.Target
	if a.Inputs.Converting() {
		return // to overlay as the kernel mounts it, or to vfs, and that needs no program
	}
	if st.Driver == "overlay" {
		t.Program = mountProgram(a.Info)
	}
	switch {
	case r.Driver == DriverVFS && st.Driver != DriverVFS:
		a.refuse("driver", "give a target that holds it as it is (--rbd, --device, --path)",
			"the store is on %s, and only overlay can be made into vfs", st.Driver)
	case r.Driver != DriverFuse || t.Program != "":
	case st.Driver != "overlay":
		a.refuse("driver", "leave --driver out: vfs needs nothing special of a filesystem; or first: storagectl migrate --to overlay",
			"the store is on %s, and fuse-overlayfs mounts overlay", st.Driver)
	case a.Inputs.Owner.Rootful():
		a.refuse("driver", "give a target that holds overlay as it is (--rbd, --device, --path)",
			"fuse-overlayfs is for the store of a user: root's storage.conf would set it for all users that have none of their own")
	default:
		program := findFuse()
		if program == "" {
			a.refuse("driver", "apt install fuse-overlayfs", "there is no fuse-overlayfs here")
			return
		}
		t.Program, t.SetProgram = program, true
		a.Notes = append(a.Notes, fmt.Sprintf("%s mounts the containers' files from then on: each access goes through it, which is slower", t.Program))
	}
}

// mountProgram is what mounts overlays in the kernel's place, "" where the kernel does.
func mountProgram(info podman.Info) string {
	switch p := info.Store.GraphOptions["overlay.mount_program"].(type) {
	case string:
		return p
	case map[string]any: // podman looked at it
		path, _ := p["Executable"].(string)
		return path
	}
	return ""
}

// probe has the owner's worker try the target.
func (s *Session) probe(ctx context.Context) error {
	r, err := ask[verify.TargetReport](ctx, s, opProbe, probeArgs{Path: s.targetFolder(), Program: s.Inputs.Target.Program})
	if err != nil {
		return err
	}
	return judgeTarget(r, s.Inputs)
}

// judgeTarget refuses a target that cannot hold a store of its driver.
func judgeTarget(r verify.TargetReport, in Inputs) error {
	driver := in.Request.To
	ok, missing := r.Store()
	hint := "give a target on ext4 or XFS, or a Ceph RBD image"
	switch {
	case driver == "overlay" && in.Target.Program != "":
		ok, missing = r.ByProgram()
	case driver == "overlay":
		if ok {
			hint = otherWays(in)
		}
		ok, missing = r.Native()
	}
	if ok {
		return nil
	}
	return &Refusal{ID: "target-features", Hint: hint,
		Text: fmt.Sprintf("the filesystem of %s cannot hold a store on %s: %s", in.Target.Where, driver, strings.Join(missing, "; "))}
}

// otherWays tells what an operator can do whose target holds a store, but not
// overlay as the kernel mounts it.
func otherWays(in Inputs) string {
	ways := []string{"--rbd (a Ceph image), --device or --path with ext4 or XFS: overlay as it is"}
	if in.Converting() {
		return ways[0] + "; or leave --to out: vfs works here"
	}
	if !in.Owner.Rootful() {
		ways = append(ways, "--driver fuse-overlayfs: works here, but each access to a container's files goes through a program, which is slower")
	}
	return strings.Join(append(ways, "--driver vfs: works here, and the store is converted on its way, but each image layer and each container becomes a whole copy: many times the room"), "; ")
}

type probeArgs struct {
	Path    string `json:"path"`
	Program string `json:"program,omitempty"` // to be tried, too
}

func probeTarget(ctx context.Context, a probeArgs, _ func(any)) (verify.TargetReport, error) {
	dir, err := openFolder(a.Path)
	if err != nil {
		return verify.TargetReport{}, err
	}
	defer dir.Close()
	r, err := verify.ProbeTarget(ctx, dir)
	if ok, _ := r.Store(); err != nil || !ok || a.Program == "" {
		return r, err
	}
	f, err := verify.ProbeProgram(ctx, dir, a.Program)
	r.Features = append(r.Features, f)
	return r, err
}
