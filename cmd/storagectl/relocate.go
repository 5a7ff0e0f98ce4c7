package main

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/rbd"
)

func newRelocate(a *app) *cobra.Command {
	req := migrate.Request{Images: migrate.Keep, Relocate: &migrate.Relocation{}}
	var dryRun bool
	var rate, size string
	cmd := &cobra.Command{
		Use:   "relocate --path DIR | --device DEVICE | --rbd POOL/IMAGE | --cephfs FS:/PATH",
		Short: "Move a container store to another filesystem, at the same path",
		Long: `relocate copies a container store to another filesystem while podman works on it,
reads the copy back, stops podman, copies what changed since, and mounts the copy at
the path where the store was: podman's database has that path in every record. Until
you commit, the old store lies beside it, or, where it stood on a mount of its own, it
stays on that, unmounted: "storagectl rollback" returns to it. What was written to the
store since podman was started again is on the target only, and stays there.

With --path DIR the store gets a folder of its own in DIR, storage-USER, on a
filesystem that is mounted already; several stores can share it. With --device the
store gets a block device for itself: a filesystem is made where nothing is, an empty
one is used, and one that holds files is never touched. With --rbd that device is an
image of Ceph, made if --size is given, and mapped here alone: it is refused while
any other host has it. If the store is on that image already, and --size is larger,
image and filesystem grow; nothing is copied then, and podman works on, but with
mapper krbd it is stopped for some seconds. With --cephfs the store gets a folder of
its own in a folder of CephFS; that cannot hold overlay natively, so it is for stores
on vfs, or with --driver fuse-overlayfs or --driver vfs. A subvolume of CephFS,
FS:@GROUP/NAME, is made where it is not there only with --make-subvolume.

With --to overlay a store on vfs is converted on its way, and needs only the room that
overlay needs. With --driver vfs a store on overlay is, to any target, and needs many
times the room that it has: the plan says how much.

After a boot a line in /etc/fstab mounts the store; units of systemd's do where others
than root can change the path, and always for ceph-fuse. It is mounted when it is first
used, or with --mount boot at boot; without systemd always at boot.

A store that stands on a mount of its own is moved likewise, and the mount goes. With
--path and the folder that the graphroot lies in it comes home: a plain folder again.
(Not from a mount of NFS or FUSE, nor of CephFS that storagectl has not made; and not
converted on the way.)

--window says when the host may be out of service: the copy begins at once, podman is
stopped only while the window is open and long enough. Else the run stops before
that with exit 5, and resume goes on in the next window.

Sizes are in units of 1000: 100G is 100 000 000 000 bytes. (rbd's own are of 1024.)

Only root can mount, so relocate runs as root; --user names whose store it is,
without it the rootful store. It shows the plan and asks, unless you say --yes.

Containers are kept: what runs is stopped, by its unit or by podman, and started
again. Ctrl-C stops at the next safe point; where podman is stopped then, it stays
so until the run is resumed or rolled back.

` + exitHelp,
		Example: `  storagectl relocate --rbd pool/img --size 100G --user hashi --dry-run   # onto an image of Ceph
  storagectl relocate --rbd pool/img --size 200G --user hashi   # make the image larger that the store is on
  storagectl relocate --cephfs cephfs:/stores --user hashi --dry-run   # into a folder of CephFS
  storagectl relocate --cephfs cephfs:@stores/hashi --make-subvolume --make-group --size 100G --user hashi --dry-run   # a subvolume for it
  storagectl relocate --cephfs cephfs:/stores --driver vfs --user hashi --yes   # from overlay to vfs on the way
  storagectl relocate --device /dev/sdb --user hashi --dry-run   # a disk for the store alone
  storagectl relocate --device /dev/sdb --to overlay --user hashi --yes   # from vfs to overlay on the way
  storagectl relocate --path /srv/disk --user hashi --dry-run   # show the plan, change nothing
  storagectl relocate --path /srv/disk --user hashi --yes   # do it; the old store stays for a rollback
  storagectl relocate --path /srv/disk --yes --commit   # the rootful store; remove the old one at the end
  storagectl relocate --path /var/lib/containers --dry-run   # the rootful store home again from its mount
  storagectl relocate --path /home/hashi/.local/share/containers --user hashi --dry-run   # a user's store home again
  storagectl relocate --path /srv/disk --yes --rate 50M   # copy 50 MB a second at most beside live work`,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.Relocate.Rate, err = bytesOf(rate); err != nil {
				return usagef("cannot use --rate %q: it is a number of bytes a second, with k, M or G (of 1000) if you like", rate)
			}
			if req.Relocate.Size, err = bytesOf(size); err != nil {
				return usagef("cannot use --size %q: it is a number of bytes, with k, M, G or T (of 1000) if you like", size)
			}
			return errors.Join(checkRelocation(req, cmd.Flags().Changed("fs")), checkOutage(&req.Outage), checkWindow(req))
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return a.job(cmd.Context(), req, dryRun) },
	}
	f := cmd.Flags()
	f.StringVar(&req.Relocate.Path, "path", "", "a folder of root's on the filesystem that the store is to go to; or the folder that a mounted graphroot lies in")
	f.StringVar(&req.Relocate.Device, "device", "", "a block device for the store alone: a path, UUID=… or LABEL=… of an empty filesystem, PARTUUID=… or PARTLABEL=…")
	f.StringVar(&req.Relocate.RBD, "rbd", "", "an image of Ceph for the store alone: POOL/IMAGE or POOL/NAMESPACE/IMAGE")
	f.StringVar(&size, "size", "0", "size of an image to make, or to make the store's own image (100G); with --make-subvolume: its quota")
	f.BoolVar(&req.Relocate.TakeOver, "take-over", false, "take the image from a dead holder: shut that client out of the cluster, and break its lock")
	f.StringVar(&req.Relocate.CephFS, "cephfs", "", "a folder of CephFS, FS:/PATH, or a subvolume, FS:@GROUP/NAME, in which the store gets a folder of its own")
	f.BoolVar(&req.Relocate.MakeSubvolume, "make-subvolume", false, "make the subvolume of --cephfs FS:@GROUP/NAME where it is not there; --size, if given, is its quota")
	f.BoolVar(&req.Relocate.MakeGroup, "make-group", false, "with --make-subvolume: make its group, too")
	f.StringVar(&req.Relocate.Mounter, "mounter", "", "kernel or fuse, what mounts CephFS (default: kernel where it has the client)")
	f.StringVar(&req.Relocate.DataPool, "data-pool", "", "a pool for the data of an image that is made (erasure coding)")
	f.StringSliceVar(&req.Relocate.Features, "features", nil, "the features of an image that is made, with commas between, as in rbd create; exclusive-lock is always one (default: as the cluster has it)")
	f.BoolVar(&req.Relocate.MakeNamespace, "make-namespace", false, "make the namespace of --rbd POOL/NAMESPACE/IMAGE where it is not there")
	f.StringVar(&req.Relocate.Mapper, "mapper", "", "krbd, nbd or fuse, what makes the image a device (default: krbd where the kernel has it, else fuse)")
	f.StringVar(&req.Relocate.Cluster.Conf, "ceph-conf", "", "the cluster's ceph.conf (default /etc/ceph/ceph.conf)")
	f.StringVar(&req.Relocate.Cluster.User, "ceph-user", "", "the cluster's user, without \"client.\" (default admin)")
	f.StringVar(&req.Relocate.Cluster.Keyring, "ceph-keyring", "", "the user's keyring (default: where ceph.conf says, or where Ceph looks by itself, /etc/ceph/ceph.client.USER.keyring)")
	f.StringSliceVar(&req.Relocate.Cluster.Mons, "ceph-mon", nil, "the cluster's monitors, by name or address (HOST or HOST:PORT, with commas between; what mon_host is there), instead of a ceph.conf")
	f.StringVar(&req.Relocate.Cluster.KeyFile, "ceph-keyfile", "", "a file with nothing but the user's key, instead of a keyring")
	f.StringVar(&req.Relocate.FS, "fs", "xfs", "the filesystem to make on the device or image: xfs or ext4")
	f.BoolVar(&req.Relocate.Format, "format", false, "make the filesystem anew where one is that holds no files, or where a device is not blank")
	f.StringVar(&req.To, "to", "", "the driver to convert to on the way: overlay (default: the store's own)")
	f.BoolVar(&req.KeepDamaged, "keep-damaged", false, "with --to or --driver vfs: carry damaged images over as they are")
	f.StringVar(&req.Relocate.Driver, "driver", "", "on a target that cannot hold overlay natively: fuse-overlayfs; or vfs, to which a store on overlay is converted on its way, and takes many times the room")
	f.StringVar(&req.User, "user", "", "the user whose store it is (default: the rootful store)")
	f.StringVar(&req.Containers, "containers", migrate.Keep, "keep them (what ran is stopped, and started again), or refuse to go on while there are any")
	f.StringVar(&req.Relocate.Mount, "mount", migrate.MountAuto, "automount (when it is first used) or boot")
	f.StringVar(&rate, "rate", "0", "bytes a second that the copy beside the live store reads at most (50M); 0: no limit")
	f.StringVar(&req.SmokeImage, "smoke-image", "", "an image of the store to run as a test (default: a tiny one that comes with storagectl)")
	f.BoolVar(&req.Commit, "commit", false, "remove the old store at the end; there is no rollback then")
	outageFlags(f, &req.Outage)
	windowFlags(f, &req)
	f.BoolVar(&dryRun, "dry-run", false, "show the plan and write nothing at all")
	return cmd
}

func checkRelocation(r migrate.Request, fsSaid bool) error {
	targets := 0
	for _, t := range []string{r.Relocate.Path, r.Relocate.Device, r.Relocate.RBD, r.Relocate.CephFS} {
		if t != "" {
			targets++
		}
	}
	switch {
	case targets != 1:
		return usagef("cannot relocate to %d targets: say one of --path DIR, --device DEVICE, --rbd POOL/IMAGE or --cephfs FS:/PATH", targets)
	case r.To != "" && r.To != "overlay":
		return usagef("cannot convert to %q with --to: it is overlay; --driver vfs converts to vfs", r.To)
	case r.KeepDamaged && r.To == "" && r.Relocate.Driver != migrate.DriverVFS:
		return usagef("cannot use --keep-damaged without --to or --driver vfs: what is only copied is copied as it is")
	case r.Relocate.Mounter != "" && r.Relocate.CephFS == "":
		return usagef("cannot use --mounter without --cephfs")
	case r.Relocate.Mounter != "" && r.Relocate.Mounter != "kernel" && r.Relocate.Mounter != "fuse":
		return usagef("cannot use --mounter %q: it is kernel or fuse", r.Relocate.Mounter)
	case r.Relocate.Mapper != "" && !slices.Contains([]string{"krbd", "nbd", "fuse"}, r.Relocate.Mapper):
		return usagef("cannot use --mapper %q: it is krbd, nbd or fuse", r.Relocate.Mapper)
	case r.Relocate.FS != "xfs" && r.Relocate.FS != "ext4":
		return usagef("cannot use --fs %q: it is xfs or ext4", r.Relocate.FS)
	case r.Relocate.Driver != "" && r.To != "":
		return usagef("cannot use --driver with --to: what is converted is overlay as the kernel mounts it")
	case r.Relocate.Driver != "" && r.Relocate.Driver != migrate.DriverVFS && r.Relocate.Driver != migrate.DriverFuse:
		return usagef("cannot use --driver %q: it is fuse-overlayfs or vfs", r.Relocate.Driver)
	case r.Relocate.Format && r.Relocate.Path+r.Relocate.CephFS != "":
		return usagef("cannot use --format with --path or --cephfs: nothing is formatted there")
	case fsSaid && r.Relocate.Path+r.Relocate.CephFS != "":
		return usagef("cannot use --fs with --path or --cephfs: no filesystem is made there")
	case r.Relocate.MakeSubvolume && !strings.Contains(r.Relocate.CephFS, ":@"):
		return usagef("cannot use --make-subvolume without --cephfs FS:@GROUP/NAME")
	case r.Relocate.MakeGroup && (!r.Relocate.MakeSubvolume || !strings.Contains(r.Relocate.CephFS, "/")):
		return usagef("cannot use --make-group without --make-subvolume and --cephfs FS:@GROUP/NAME")
	case r.Relocate.RBD == "" && r.Relocate.Size > 0 && !r.Relocate.MakeSubvolume:
		return usagef("cannot use --size without --rbd or --make-subvolume")
	case r.Relocate.RBD == "" && (r.Relocate.DataPool != "" || r.Relocate.TakeOver || r.Relocate.Mapper != "" || len(r.Relocate.Features) > 0):
		return usagef("cannot use --data-pool, --features, --mapper or --take-over without --rbd")
	case rbd.CheckFeatures(r.Relocate.Features) != nil:
		return usagef("%v", rbd.CheckFeatures(r.Relocate.Features))
	case r.Relocate.MakeNamespace && strings.Count(r.Relocate.RBD, "/") != 2:
		return usagef("cannot use --make-namespace without --rbd POOL/NAMESPACE/IMAGE")
	case r.Relocate.RBD+r.Relocate.CephFS == "" && !reflect.ValueOf(r.Relocate.Cluster).IsZero():
		return usagef("cannot use --ceph-… without --rbd or --cephfs")
	case r.Relocate.Cluster.Check() != nil:
		return usagef("%v", r.Relocate.Cluster.Check())
	case r.Relocate.Mount != migrate.MountAuto && r.Relocate.Mount != migrate.MountBoot:
		return usagef("cannot use --mount %q: it is automount or boot", r.Relocate.Mount)
	case r.Containers != migrate.Keep && r.Containers != migrate.Refuse:
		return usagef("cannot use --containers %q: it is keep or refuse", r.Containers)
	}
	return nil
}

// bytesOf reads a number of bytes as disks are sold: 50M is 50 000 000.
func bytesOf(text string) (int64, error) {
	factor := int64(1)
	for i, unit := range []string{"k", "M", "G", "T"} {
		if rest, ok := strings.CutSuffix(strings.TrimSuffix(text, "B"), unit); ok { // 50MB, as runbooks have it
			text = rest
			for range i + 1 {
				factor *= 1000
			}
		}
	}
	var n int64
	if _, err := fmt.Sscanf(text+" ", "%d ", &n); err != nil || n < 0 || fmt.Sprint(n) != text || n > (1<<62)/factor {
		return 0, errors.New("not a number of bytes")
	}
	return n * factor, nil
}
