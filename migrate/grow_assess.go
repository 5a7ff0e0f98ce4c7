package migrate

import (
	"context"
	"fmt"
	"os"

	"github.com/storagectl/storagectl/ceph"
	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/rbd"
)

// growth looks whether a relocation to an image is asked for of a store that
// stands on that image: then it is to grow.
func (a *Assessment) growth(ctx context.Context, run *host.Runner) error {
	r := a.Inputs.Request.Relocate
	if r == nil || r.RBD == "" || !a.Look.Mountpoint || os.Getuid() != 0 {
		return nil
	}
	spec, err := rbd.ParseSpec(r.RBD)
	if err != nil {
		return nil // told where the target is judged
	}
	all, err := (&rbd.Host{Run: run}).Mapped(ctx, spec)
	if err != nil || len(all) != 1 || all[0].Dead {
		return err
	}
	live, err := host.OpenDir(a.Inputs.Store.GraphRoot)
	if err != nil {
		return err
	}
	defer live.Close()
	if on, err := standsOn(live, all[0].Device); err != nil || !on {
		return err
	}
	m, err := host.MountOf(live)
	if err != nil {
		return err
	}
	full, err := host.Full(live, all[0].Device)
	if err != nil {
		return err
	}
	size, err := (&rbd.Host{Run: run}).DeviceSize(all[0].Device)
	if err != nil {
		return err
	}
	img := &TargetImage{Spec: spec, Cluster: r.Cluster, Size: r.Size, Mapper: all[0].Mapper, FSID: all[0].FSID, Wait: int(lateCluster.Seconds()), Had: size}
	a.Inputs.Target = &Target{Kind: KindRBD, Where: spec.String(), FSType: m.Type, Image: img}
	return a.grows(ctx, run, full, all[0].FSID)
}

// grows judges whether the image on which the store stands, of the cluster fsid, may
// grow.
func (a *Assessment) grows(ctx context.Context, run *host.Runner, full bool, fsid string) error {
	r, img := a.Inputs.Request.Relocate, a.Inputs.Target.Image
	sectors := r.Size &^ 511 // what a device shows of it
	switch {
	case r.Size == 0:
		a.refuse("image-size", "say --size with more than that, to make it larger", "the store is on image %s already, which has %s", img.Spec, Bytes(img.Had))
		return nil
	case sectors < img.Had:
		a.refuse("image-size", "give a larger --size; nothing is ever made smaller", "image %s has %s, more than %s", img.Spec, Bytes(img.Had), Bytes(r.Size))
		return nil
	case r.Format:
		a.refuse("device-files", "leave --format out", "the store is on image %s already", img.Spec)
		return nil
	case r.Mapper != "" && rbd.Mapper(r.Mapper) != img.Mapper:
		a.refuse("image-mapped", "leave --mapper out", "image %s is mapped by %s", img.Spec, img.Mapper)
		return nil
	}
	err := withCeph(ctx, run, r.Cluster, func(h *rbd.Host) error {
		have, err := h.Look(ctx, img.Spec)
		if err != nil {
			return err
		}
		report, err := ceph.Judge(ctx, h.Link, ceph.Query{Pool: img.Spec.Pool, Namespace: img.Spec.Namespace, DataPool: have.DataPool})
		a.problems(report)
		if err == nil && fsid != "" && fsid != report.FSID {
			a.refuse("image-mapped", "say which cluster it is: --ceph-conf", "the store is on image %s of the cluster %s, and this is the cluster %s", img.Spec, fsid, report.FSID)
			return nil
		}
		if err == nil && have.Size >= r.Size && img.Had >= sectors && full {
			a.refuse("image-size", "give a larger --size", "image %s has %s already, and so has its filesystem", img.Spec, Bytes(have.Size))
		}
		return err
	})
	return a.takeRefusal(cephRefusal(err))
}

// growOffline judges what is to be done around a growth for which podman has to be
// stopped.
func (a *Assessment) growOffline(ctx context.Context, s *Session) error {
	root := a.Inputs.Store.GraphRoot
	if !host.HasSystemd() {
		a.refuse("grow-mount", "stop podman, unmount, unmap, rbd resize, map, mount and xfs_growfs by hand", "image %s cannot grow while it is mapped, and without systemd nothing mounts the store again", a.Inputs.Target.Image.Spec)
		return nil
	}
	err := s.onSystemBus(ctx, func(b *host.Bus) error {
		for _, unit := range []string{host.AutomountUnitName(root), host.MountUnitName(root)} {
			if m, err := b.LookMountUnit(ctx, unit); err != nil || m.Configured() {
				return err
			}
		}
		a.refuse("grow-mount", "give it a line in /etc/fstab", "image %s cannot grow while it is mapped, and systemd knows of no mount of %s", a.Inputs.Target.Image.Spec, root)
		return nil
	})
	if err != nil {
		return err
	}
	if err := a.units(ctx, s); err != nil {
		return err
	}
	if !a.Inputs.Systemd {
		a.noLinger()
		return nil
	}
	if a.Inputs.Request.Containers != Refuse {
		return a.running(ctx, s.cli)
	}
	return nil
}

// growWhat tells what the steps of a growth come to.
func (a *Assessment) growWhat(what map[string]string) {
	in, img := a.Inputs, a.Inputs.Target.Image
	what[stepLetGo] = fmt.Sprintf("%s, and %s: the kernel's client has it exclusively, and does not let it grow", in.Store.GraphRoot, img.Spec)
	what[stepResize] = fmt.Sprintf("%s of %s becomes %s; nothing is copied", img.Spec, Bytes(img.Had), Bytes(img.Size))
	if img.Had >= img.Size&^511 {
		what[stepResize] = fmt.Sprintf("%s has %s already", img.Spec, Bytes(img.Had))
	}
	what[stepTakeBack] = fmt.Sprintf("%s by %s, and nowhere else; systemd mounts it on %s as at any boot", img.Spec, img.Mapper, in.Store.GraphRoot)
	what[StepGrowFS] = fmt.Sprintf("the %s on %s, while podman works; no way back: neither is ever made smaller", in.Target.FSType, in.Store.GraphRoot)
}
