package integration

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
)

// homeward is the arguments of the relocation that makes a plain folder of the
// store again.
func (w *world) homeward(more ...string) []string {
	args := w.relocate(more...)
	args[2] = filepath.Dir(w.graphroot())
	return args
}

// booted is what a boot is told of the world's store, and what is mounted there.
func (w *world) booted() string {
	w.t.Helper()
	return w.script("root", `cat /etc/fstab
cd /etc/systemd/system
for f in $(find . -name '*storage.*mount' -o -name '50-storagectl-*' | sort); do echo "== $f $(readlink $f)"; cat $f; done
ls `+w.graphroot()+` >/dev/null
findmnt -nro SOURCE,FSTYPE,OPTIONS,FSROOT `+w.graphroot()+` | sed "s/fd=[0-9]*,.*pipe_ino=[0-9]*//; s/loop[0-9]*/loop/" || true
mkdir /run/look; mount --bind $(dirname `+w.graphroot()+`) /run/look; lsattr -d /run/look/storage; umount /run/look; rmdir /run/look`)
}

// isHome asserts that the store is a plain folder, whole, and that nothing is told
// of a mount.
func (w *world) isHome(before inventory) {
	w.t.Helper()
	w.same("the store", before, w.manifest())
	if out := w.script("root", "findmnt -nR "+w.graphroot()+" | grep -v '/storage/overlay ' || true; grep -v '^#' /etc/fstab | grep "+w.graphroot()+` || true
ls /etc/systemd/system/*.d/50-storagectl-* /etc/systemd/system/*storage.*mount /etc/systemd/system/*.wants/*storage.*mount 2>/dev/null || true
systemctl list-units --all --no-legend '*containers-storage.automount'`); out != "" {
		w.t.Errorf("the store is not a plain folder: %s", out)
	}
	if w.user != "root" {
		if s := strings.TrimSpace(w.script(w.user, "systemctl --user is-active podman.socket || true")); s != "active" {
			w.t.Errorf("podman.socket is %s", s)
		}
	}
}

// tidy asserts that a run, and all before it, left nothing beside the store.
func (w *world) tidy() {
	w.t.Helper()
	if out := w.script("root", "ls -d "+w.graphroot()+".storagectl-* $(dirname "+w.graphroot()+")/.storagectl-* 2>/dev/null || true; ls /run/storagectl/mounts; grep storagectl /etc/fstab || true"); out != "" {
		w.t.Errorf("left: %s", out)
	}
}

func (w *world) powerCut() {
	w.t.Helper()
	if err := w.node.Kill(w.ctx); err != nil {
		w.t.Fatal(err)
	}
	if err := w.node.Start(w.ctx); err != nil {
		w.t.Fatal(err)
	}
}

// killedAt runs storagectl, and wants it killed at a named point.
func (w *world) killedAt(point string, args ...string) {
	w.t.Helper()
	r := w.exec("root", append([]string{"env", "STORAGECTL_SWEEP_KILL_AT=" + point, "storagectl-sweep"}, args...)...)
	if r.code != -1 {
		w.t.Fatalf("not killed at %s: %s", point, r)
	}
}

// TestRelocateHome: a store that a run has moved comes home from its mount, can go
// back to it, and comes home for good.
func TestRelocateHome(t *testing.T) {
	for _, user := range []string{lab.Owner, "root"} {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			w := newWorldWith(t, user, images.Small, lab.Options{Release: "bookworm", Udev: true})
			dev := strings.TrimSpace(w.script("root", "truncate -s 2G "+w.diskImage()+"; losetup -f --show "+w.diskImage()))
			t.Cleanup(func() { _, _ = w.node.Run(w.ctx, "root", "losetup", "-d", dev) })
			args := w.relocate()
			args[1], args[2] = "--device", dev
			before, fstab := w.manifest(), w.script("root", "cat /etc/fstab")
			w.must(args...)
			w.refused("uncommitted", w.homeward()...)
			w.must("commit")
			w.same("the store", before, w.manifest())
			away := w.booted()

			w.must(w.homeward()...)
			w.isHome(before)
			if out := w.script("root", "findmnt -nro SOURCE /run/storagectl/mounts/*-old/store"); strings.TrimSpace(out) != dev {
				t.Errorf("the old store is not reached: %q", out)
			}
			w.must("rollback")
			w.same("the store", before, w.manifest())
			if now := w.booted(); now != away {
				t.Errorf("a boot is told otherwise than before:\n%s\n--- before\n%s", now, away)
			}
			w.script("root", "rm -r "+w.graphroot()+".storagectl-*-new") // it was in use, and is kept

			w.must(w.homeward()...)
			w.powerCut()
			// A power cut takes the loop device: the disk comes back under another name.
			dev = strings.TrimSpace(w.script("root", "losetup -f --show "+w.diskImage()+"; udevadm settle"))
			w.isHome(before)
			r := w.must("commit")
			if !strings.Contains(r.stdout+r.stderr, "wipefs") {
				t.Errorf("what stays is not told: %s", r)
			}
			w.isHome(before)
			w.tidy()
			if now := w.script("root", "cat /etc/fstab"); now != fstab {
				t.Errorf("fstab: %q, %q before", now, fstab)
			}
			if out := w.script("root", "mount "+dev+" /mnt; ls -A /mnt; umount /mnt"); out != "" {
				t.Errorf("on the disk is left: %s", out)
			}
		})
	}
}

// refused wants a refusal of this id.
func (w *world) refused(id string, args ...string) {
	w.t.Helper()
	if r := w.ctl(append(args, "--json")...); r.code != exitRefused || !strings.Contains(r.stdout, `"`+id+`"`) {
		w.t.Errorf("want refusal %s: %s", id, r)
	}
}

// handMade puts the world's store on a mount as an operator would: the files are
// copied there by prepare, which knows the store as $old and the copy as $new, and
// tell has every boot mount it.
func (w *world) handMade(prepare, tell string) {
	w.t.Helper()
	stop, start := "systemctl stop podman.socket podman.service", "true"
	if w.user != "root" {
		own := "runuser -u " + w.user + " -- env XDG_RUNTIME_DIR=/run/user/2000 systemctl --user "
		stop, start = own+"stop podman.socket podman.service; pkill -u "+w.user+" -f 'podman pause' || true", own+"start podman.socket"
	}
	w.script("root", stop+"; umount "+w.graphroot()+"/overlay 2>/dev/null || true; old="+w.graphroot()+"; "+prepare+`
rm -rf $old; mkdir $old
`+tell+`
systemctl daemon-reload; systemctl start "$(systemd-escape -p --suffix=mount $old)"; `+start)
	w.podman("ps")
}

// TestRelocateFromMount: a store that an operator has put on a mount goes
// elsewhere. The power is cut where no boot mounts anything, and where the next one
// still mounts the old store; runs go on and go back from there.
func TestRelocateFromMount(t *testing.T) {
	t.Run("fstab", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, "bookworm", lab.Owner, images.Small)
		w.disk("xfs", "2G")
		w.handMade("mkdir /opt/own; cp -a $old /opt/own/store", `printf '# of mine\n/opt/own/store\t%s  none  bind 0 0\n# below\n' $old >>/etc/fstab`)
		before, away := w.manifest(), w.booted()
		w.killedAt("after-old-parked", w.relocate()...)
		w.powerCut()
		if r := w.exec(w.user, "podman", "images"); r.code == 0 {
			t.Errorf("podman made itself a new store: %s", r)
		}
		w.must("resume")
		w.moved(before)

		w.killedAt("after-old-left", "rollback")
		w.powerCut()
		w.must("resume")
		w.same("the store", before, w.manifest())
		if now := w.booted(); now != away {
			t.Errorf("a boot is told otherwise than before:\n%s\n--- before\n%s", now, away)
		}

		w.script("root", "rm -r /srv/disk/storage-hashi")
		w.must(w.relocate()...)
		w.moved(before)
		// Nor those of the owner's group, should the store be open to all.
		w.script("root", "chmod 755 /opt/own/store")
		if r := w.exec("root", "sh", "-c", "setpriv --reuid=nobody --regid=hashi --clear-groups ls /run/storagectl/mounts/*-old/store"); r.code == 0 || !strings.Contains(r.stderr, "denied") {
			t.Errorf("the owner's group looks into the old store: %s", r)
		}
		w.script("root", "chmod 700 /opt/own/store; echo x >/opt/own/store/mine")
		if r := w.exec("nobody", "ls", "/opt/own/store"); r.code == 0 {
			t.Errorf("others look into the old store: %s", r)
		}
		if r := w.must("commit"); !strings.Contains(r.stdout+r.stderr, `not podman's: "mine"`) {
			t.Errorf("what stays is not told: %s", r)
		}
		w.moved(before)
		if out := w.script("root", "ls -A /opt/own/store; ls /run/storagectl/mounts; grep -c own /etc/fstab || true"); out != "mine\n0\n" {
			t.Errorf("left: %q", out)
		}
		w.powerCut()
		w.moved(before)
	})
	t.Run("unit", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, "bookworm", "root", images.Small)
		w.disk("ext4", "2G")
		own := strings.ReplaceAll(w.diskImage(), "disk", "own")
		w.handMade("truncate -s 2G "+own+"; mkfs.xfs -q "+own+"; mount -o loop "+own+" /mnt; cp -a $old/. /mnt; chmod 700 /mnt; umount /mnt",
			`printf '[Mount]\nWhat=`+own+`\nWhere=%s\nType=xfs\nOptions=loop,noatime\n[Install]\nWantedBy=local-fs.target\n' $old >/etc/systemd/system/var-lib-containers-storage.mount
systemctl enable var-lib-containers-storage.mount`)
		before, away := w.manifest(), w.booted()
		w.killedAt("after-old-down", w.relocate()...)
		w.powerCut()
		w.same("the store", before, w.manifest())
		// Podman works on the old store again, after the manifest was taken.
		w.podman("rmi", "localhost/lab/base:1")
		before = w.manifest()
		w.must("resume")
		w.moved(before)
		w.script("root", "sed -i s/loop,noatime/loop,nofail/ /etc/fstab; mv "+w.diskImage()+" /opt/lost.img; sync")
		w.powerCut()
		w.must("rollback") // without the target
		w.same("the store", before, w.manifest())
		w.script("root", "mv /opt/lost.img "+w.diskImage()+"; sed -i s/loop,nofail/loop,noatime/ /etc/fstab")
		if now := w.booted(); now != away {
			t.Errorf("a boot is told otherwise than before:\n%s\n--- before\n%s", now, away)
		}
		w.killedAt("after-old-reached", w.homeward()...)
		w.must("rollback")
		w.same("the store", before, w.manifest())
		if now := w.booted(); now != away {
			t.Errorf("a boot is told otherwise than before:\n%s\n--- before\n%s", now, away)
		}
		w.must(w.homeward("--commit")...)
		w.isHome(before)
		w.tidy()
	})
}

// TestRelocateOldLost: the disk that a store was moved away from dies, and the host
// boots. The run can be ended on the operator's word, and only then.
func TestRelocateOldLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.disk("xfs", "2G")
	own := strings.ReplaceAll(w.diskImage(), "disk", "own")
	w.handMade("truncate -s 2G "+own+"; mkfs.xfs -q "+own+"; mount -o loop "+own+" /mnt; cp -a $old/. /mnt; chown --reference=$old /mnt; chmod 700 /mnt; umount /mnt",
		"echo '"+own+"' $old xfs loop,nofail,noatime 0 0 >>/etc/fstab")
	before := w.manifest()
	w.must(w.relocate()...)
	w.moved(before)
	if r := w.ctl("commit", "--old-lost"); r.code != exitRefused || !strings.Contains(r.stderr, "is not lost") {
		t.Errorf("want a refusal: %s", r)
	}
	w.script("root", "mv "+own+" /opt/lost.img; sync -f /opt")
	w.powerCut()
	w.moved(before)
	w.refused("store-gone", "rollback")
	if r := w.ctl("commit"); r.code != exitRefused || !strings.Contains(r.stderr, "commit --old-lost") {
		t.Errorf("want a refusal: %s", r)
	}
	if r := w.must("commit", "--old-lost"); !strings.Contains(r.stdout+r.stderr, "could not be reached") || strings.Contains(r.stdout+r.stderr, "wipefs") {
		t.Errorf("it is not told, or what is not known: %s", r)
	}
	w.moved(before)
	if out := w.script("root", "ls /run/storagectl/mounts; grep -e parked -e "+own+" /etc/fstab || true"); out != "" {
		t.Errorf("left: %s", out)
	}
}

// TestRelocateMountRefused: a mount that could not be put back as it was is not
// taken down.
func TestRelocateMountRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "bookworm", lab.Owner, images.Small)
	w.onDisk()
	if r := w.ctl(w.homeward()...); r.code != exitRefused || !strings.Contains(r.stderr, "no boot") || !strings.Contains(r.stderr, "/etc/fstab") {
		t.Errorf("want a refusal: %s", r)
	}
	root, disk := lab.GraphRoot, filepath.Dir(lab.GraphRoot)+"/.disk"
	w.script("root", "echo '"+disk+" "+root+" none bind,nofail 0 0' >>/etc/fstab")
	w.refused("graphroot-mount", w.homeward()...) // who can change the folder that is bound
	w.script("root", "umount "+root+"; mkdir /opt/own; mv "+disk+" /opt/own/store; sed -i s#"+disk+"#/opt/own/store# /etc/fstab; touch "+root+"/hidden; mount "+root)
	w.refused("graphroot-mount", w.homeward()...)
	w.script("root", "umount "+root+"; rm "+root+"/hidden; mount "+root+"; mount --bind /opt/own/store "+root)
	w.refused("graphroot-mount", w.homeward()...)
	w.script("root", "umount "+root+"; chown root "+root+"; chmod 777 "+root)
	w.refused("graphroot-mount", w.homeward()...) // somebody else's, where podman may write
	w.script("root", "chown "+w.user+" "+root+"; chmod 700 "+root)
	before := w.untouched()
	w.must(w.homeward("--dry-run")...)
	w.same("the node", before, w.untouched())
}

// TestRelocateHomeFromRBD: what a run had made for a store on an image of Ceph goes
// with its commit; the image itself stays.
func TestRelocateHomeFromRBD(t *testing.T) {
	t.Parallel()
	c := newCeph(t)
	w := joined(t, c, lab.Owner)
	before := w.manifest()
	w.must(w.toImage("--size", "1G", "--commit")...)
	w.onImage(before)
	w.must(w.homeward()...)
	w.isHome(before)
	w.powerCut()
	w.isHome(before)
	// The commit is cut off, and the cluster away: what it had not got to yet goes all
	// the same.
	w.killedAt("after-old-unmounted", "commit")
	w.script("root", "systemctl stop 'storagectl-rbd-*'; mv /etc/ceph/ceph.conf /root")
	w.must("resume")
	w.isHome(before)
	w.tidy()
	w.script("root", "mv /root/ceph.conf /etc/ceph")
	if out := w.script("root", "ls /etc/systemd/system | grep storagectl-rbd || true; ls /etc/storagectl/rbd; losetup -nlO BACK-FILE | grep "+strings.Replace(w.image(), "/", ":", 1)+"/ || true"); out != "" {
		t.Errorf("left of the image: %s", out)
	}
	if out := w.script("root", "rbd --id store ls rbd"); "rbd/"+strings.TrimSpace(out) != w.image() {
		t.Errorf("images: %q", out)
	}
}
