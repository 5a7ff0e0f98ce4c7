package host

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMkfs(t *testing.T) {
	for _, kind := range []string{"xfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dev, img := loopDevice(t, large)
			var r Runner
			if found, err := r.Signatures(t.Context(), dev); err != nil || found != nil {
				t.Fatalf("%v %v", found, err)
			}
			if blank, err := Blank(dev); err != nil || !blank {
				t.Errorf("%v %v", blank, err)
			}
			f, err := r.Mkfs(t.Context(), dev, MkfsOptions{Type: kind, Label: "store"})
			if err != nil {
				t.Fatal(err)
			}
			if f.Type != kind || f.Label != "store" || len(f.UUID) != 36 || f.BlockSize < 1024 {
				t.Errorf("%+v", f)
			}
			if blank, err := Blank(dev); err != nil || blank {
				t.Errorf("%v %v", blank, err)
			}
			found, err := r.Signatures(t.Context(), dev)
			if err != nil || len(found) != 1 || found[0].Type != kind || found[0].UUID != f.UUID || found[0].Table {
				t.Errorf("%+v %v", found, err)
			}
			d, err := r.FindDevice(t.Context(), "UUID="+f.UUID)
			if err != nil || d.Path != dev || d.Size != large || d.ReadOnly || d.InUse || d.Mounts != nil {
				t.Errorf("%+v %v", d, err)
			}
			// What is there is not made again, nor replaced while it holds something.
			var occupied *OccupiedError
			if _, err := r.Mkfs(t.Context(), dev, MkfsOptions{Type: kind}); !errors.As(err, &occupied) || len(occupied.Found) != 1 {
				t.Errorf("%v", err)
			}
			at := t.TempDir()
			mountAt(t, dev, at, kind, 0, "")
			if d, err := LookDevice(dev); err != nil || !d.InUse || len(d.Mounts) != 1 || d.Mounts[0].Path != at {
				t.Errorf("%+v %v", d, err)
			}
			if _, err := r.Mkfs(t.Context(), dev, MkfsOptions{Type: kind, Replace: true}); !errors.As(err, &occupied) || !occupied.InUse {
				t.Errorf("%v", err)
			}
			must(t, os.WriteFile(filepath.Join(at, ".marker"), nil, 0o600), os.WriteFile(filepath.Join(at, "precious"), nil, 0o600), Unmount(t.Context(), at))
			if names, err := FilesOn(dev, kind, ".marker"); err != nil || !slices.Equal(names, []string{"precious"}) {
				t.Errorf("%q %v", names, err)
			}
			_, err = r.Mkfs(t.Context(), dev, MkfsOptions{Type: kind, Replace: true, Marker: ".marker"})
			if !errors.As(err, &occupied) || !slices.Equal(occupied.Files, []string{"precious"}) || !strings.Contains(err.Error(), "precious") {
				t.Errorf("%v", err)
			}
			// Nothing was written by looking, and nothing is left mounted.
			before := sum(t, img)
			if _, err := FilesOn(dev, kind, ""); err != nil {
				t.Error(err)
			}
			if after := sum(t, img); after != before {
				t.Errorf("%s became %s", before, after)
			}
			mountAt(t, dev, at, kind, 0, "")
			must(t, os.Remove(filepath.Join(at, "precious")), Unmount(t.Context(), at))
			again, err := r.Mkfs(t.Context(), dev, MkfsOptions{Type: kind, Replace: true, Marker: ".marker", NoDiscard: true})
			if err != nil || again.UUID == f.UUID {
				t.Errorf("%+v %v", again, err)
			}
		})
	}
}

// A stripe that the device does not tell of, and one that it does, and that has no room.
func TestMkfsStripe(t *testing.T) {
	const stripe = 64 << 10
	for _, size := range []int64{large, stripeFrom} {
		for _, kind := range []string{"xfs", "ext4"} {
			dev, _ := loopDevice(t, size)
			var r Runner
			f, err := r.Mkfs(t.Context(), dev, MkfsOptions{Type: kind, Stripe: stripe})
			if err != nil {
				t.Errorf("%s, %d bytes: %v", kind, size, err)
				continue
			}
			if kind == "ext4" {
				out := strings.Join(strings.Fields(command(t, "dumpe2fs", "-h", dev)), " ")
				if f.BlockSize != ext4Block || !strings.Contains(out, "RAID stride: 16") || !strings.Contains(out, "RAID stripe width: 16") {
					t.Errorf("%d bytes: %+v\n%s", size, f, out)
				}
				continue
			}
			want := int64(stripe)
			if size < stripeFrom {
				want = 0
			}
			if f.StripeUnit != want || f.StripeWidth != want {
				t.Errorf("%d bytes: %+v, want %d", size, f, want)
			}
		}
	}
}

// A filesystem that was cut off in mid-work is looked at without its journal being
// written back, as long as it does not look empty so.
func TestFilesOnOfOneThatWasCutOff(t *testing.T) {
	for _, kind := range []string{"xfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dev, img := loopDevice(t, large)
			command(t, "mkfs."+kind, "-q", dev)
			at := t.TempDir()
			cutOff := func(name string) (cut, torn string) {
				mountAt(t, dev, at, kind, 0, "")
				must(t, os.WriteFile(filepath.Join(at, name), []byte("x"), 0o600))
				command(t, "sync", "-f", at)
				torn = filepath.Join(t.TempDir(), "torn")
				command(t, "cp", "--sparse=always", img, torn) // as after a power cut
				must(t, Unmount(t.Context(), at))
				return attachLoop(t, torn), torn
			}
			var r Runner
			cut, _ := cutOff("first")
			if names, err := FilesOn(cut, kind, ""); err != nil || !slices.Equal(names, []string{"first"}) {
				t.Errorf("%q %v", names, err)
			}
			cut, torn := cutOff("second")
			before := sum(t, torn)
			var occupied *OccupiedError
			if _, err := r.Mkfs(t.Context(), cut, MkfsOptions{Type: kind, Replace: true}); !errors.As(err, &occupied) || !slices.Contains(occupied.Files, "first") {
				t.Errorf("%v", err)
			}
			command(t, "sync", "-f", torn)
			if after := sum(t, torn); after != before {
				t.Errorf("written to: %s became %s", before, after)
			}
		})
	}
}

// sum is a checksum of what a sparse file holds.
func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	h := sha256.New()
	for at := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return fmt.Sprintf("%x", h.Sum(nil))
		}
		to, err2 := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		must(t, err, err2)
		fmt.Fprintln(h, from, to)
		_, err = io.Copy(h, io.NewSectionReader(f, from, to-from))
		must(t, err)
		at = to
	}
}

// A run was killed while mkfs worked: what it left cannot be mounted, and only who
// knows that the device was free before may begin again.
func TestMkfsAgain(t *testing.T) {
	var r Runner
	for kind, torso := range map[string]map[int64][]byte{
		"xfs":  {126: {1}, 4096: make([]byte, 1<<20)},            // sb_inprogress
		"ext4": {1024 + 0x63: {0x40}, 4096: make([]byte, 1<<20)}, // a feature that is not known
	} {
		t.Run(kind, func(t *testing.T) {
			dev, _ := loopDevice(t, large)
			command(t, "mkfs."+kind, "-q", dev)
			writeTo(t, dev, torso)
			var occupied *OccupiedError
			for _, o := range []MkfsOptions{{Type: kind}, {Type: kind, Replace: true}, {Type: map[string]string{"xfs": "ext4", "ext4": "xfs"}[kind], Again: true}} {
				if found, err := r.Signatures(t.Context(), dev); err != nil || len(found) == 0 {
					t.Fatalf("%v %v: the test shows nothing", found, err)
				}
				if _, err := r.Mkfs(t.Context(), dev, o); !errors.As(err, &occupied) {
					t.Errorf("%+v: %v", o, err)
				}
			}
			if f, err := r.Mkfs(t.Context(), dev, MkfsOptions{Type: kind, Again: true}); err != nil || f.Type != kind {
				t.Errorf("%+v %v", f, err)
			}
			// One that is whole and holds something is safe even so.
			at := t.TempDir()
			mountAt(t, dev, at, kind, 0, "")
			must(t, os.WriteFile(filepath.Join(at, "precious"), nil, 0o600), Unmount(t.Context(), at))
			if _, err := r.Mkfs(t.Context(), dev, MkfsOptions{Type: kind, Again: true}); !errors.As(err, &occupied) || len(occupied.Files) != 1 {
				t.Errorf("%v", err)
			}
		})
	}
}

func writeTo(t *testing.T, dev string, parts map[int64][]byte) {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	must(t, err)
	for at, b := range parts {
		_, err := f.WriteAt(b, at)
		must(t, err)
	}
	must(t, f.Sync(), f.Close())
}

// mbr is a boot record with one partition of a type.
func mbr(kind byte) []byte {
	b := make([]byte, 512)
	b[450] = kind
	binary.LittleEndian.PutUint32(b[454:], 1)
	binary.LittleEndian.PutUint32(b[458:], large/512-1)
	copy(b[510:], "\x55\xaa")
	return b
}

// gpt is a header without partitions, for the second sector.
func gpt() []byte {
	b := make([]byte, 512)
	copy(b, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
	le := binary.LittleEndian
	le.PutUint64(b[24:], 1)
	le.PutUint64(b[32:], large/512-1)
	le.PutUint64(b[40:], 34)
	le.PutUint64(b[48:], large/512-34)
	copy(b[56:], "0123456789abcdef")
	le.PutUint64(b[72:], 2)
	le.PutUint32(b[80:], 128)
	le.PutUint32(b[84:], 128)
	le.PutUint32(b[88:], crc32.ChecksumIEEE(make([]byte, 128*128)))
	le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:92]))
	return b
}

func TestMkfsLeavesOthersAlone(t *testing.T) {
	var r Runner
	for name, spoil := range map[string]func(dev string){
		"gpt partition table": func(dev string) { writeTo(t, dev, map[int64][]byte{0: mbr(0xee), 512: gpt()}) },
		"dos partition table": func(dev string) { writeTo(t, dev, map[int64][]byte{0: mbr(0x83)}) },
		"swap":                func(dev string) { command(t, "mkswap", dev) },
		"LVM2_member": func(dev string) { // as far as it is recognised
			label := make([]byte, 512)
			copy(label, "LABELONE\x01")
			copy(label[20:], " \x00\x00\x00LVM2 0010123456789abcdef0123456789abcdef")
			writeTo(t, dev, map[int64][]byte{512: label})
		},
	} {
		t.Run(name, func(t *testing.T) {
			dev, img := loopDevice(t, large)
			spoil(dev)
			command(t, "blockdev", "--flushbufs", dev)
			before := sum(t, img)
			for _, replace := range []bool{false, true} {
				var occupied *OccupiedError
				_, err := r.Mkfs(t.Context(), dev, MkfsOptions{Type: "xfs", Replace: replace})
				if !errors.As(err, &occupied) || !strings.Contains(err.Error(), name) {
					t.Errorf("%v", err)
				}
			}
			if after := sum(t, img); after != before {
				t.Errorf("%s became %s", before, after)
			}
		})
	}
	dev, _ := loopDevice(t, large)
	if _, err := r.Mkfs(t.Context(), dev, MkfsOptions{Type: "vfat"}); err == nil {
		t.Error("made vfat")
	}
	if _, err := r.Mkfs(t.Context(), dev, MkfsOptions{Type: "xfs", Label: "much too long a label"}); err == nil {
		t.Error("made with a label that XFS has no room for")
	}
	if found, err := r.Signatures(t.Context(), dev); err != nil || found != nil {
		t.Errorf("%v %v", found, err)
	}
}

func TestFindDevice(t *testing.T) {
	var r Runner
	dev, img := loopDevice(t, large)
	f, err := r.Mkfs(t.Context(), dev, MkfsOptions{Type: "xfs"})
	must(t, err)
	command(t, "sync", "-f", img)
	clone := filepath.Join(t.TempDir(), "clone")
	command(t, "cp", "--sparse=always", img, clone)
	attachLoop(t, clone)
	var many *ManyDevicesError
	if _, err := r.FindDevice(t.Context(), "UUID="+f.UUID); !errors.As(err, &many) || len(many.Paths) != 2 {
		t.Errorf("%v", err)
	}
	if _, err := r.FindDevice(t.Context(), "UUID=00000000-1111-2222-3333-444444444444"); !errors.Is(err, ErrNoDevice) {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{"UUID=x -o all", "LABEL=", "SIZE=1", f.UUID, `LABEL=a"b`} {
		if _, err := r.FindDevice(t.Context(), bad); err == nil || errors.Is(err, ErrNoDevice) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	labelled, _ := loopDevice(t, large)
	label := fmt.Sprintf("of %d", os.Getpid())
	_, err = r.Mkfs(t.Context(), labelled, MkfsOptions{Type: "ext4", Label: label})
	must(t, err)
	if d, err := r.FindDevice(t.Context(), `LABEL="`+label+`"`); err != nil || d.Path != labelled {
		t.Errorf("%+v %v", d, err)
	}
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(dev, link))
	if d, err := LookDevice(link); err != nil || d.Path != dev {
		t.Errorf("%+v %v", d, err)
	}
	for _, path := range []string{img, "/dev/null", "/dev/none", t.TempDir()} {
		if d, err := LookDevice(path); err == nil {
			t.Errorf("%s: %+v", path, d)
		}
	}
	users := mkdir(t, t.TempDir(), "users")
	node := filepath.Join(users, "dev")
	must(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))), os.Chown(users, 2000, 2000))
	if d, err := LookDevice(node); err == nil {
		t.Errorf("a device in a user's folder: %+v", d)
	}
}

func has(t *testing.T, capability uint) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	must(t, err)
	_, rest, _ := strings.Cut(string(b), "CapEff:")
	set, err := strconv.ParseUint(strings.Fields(rest)[0], 16, 64)
	must(t, err)
	return set>>capability&1 == 1
}

func TestGrow(t *testing.T) {
	for _, kind := range []string{"xfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dev, img := loopDevice(t, large)
			command(t, "mkfs."+kind, "-q", dev)
			at := t.TempDir()
			mountAt(t, dev, at, kind, 0, "")
			must(t, os.WriteFile(filepath.Join(at, "file"), []byte("stays"), 0o600))
			dir := openDir(t, at)
			before, after, err := Grow(dir)
			if err != nil && kind == "xfs" || before != after || before > large || before < large*8/10 {
				t.Errorf("%d %d %v", before, after, err)
			}
			full := func(want bool) {
				t.Helper()
				if is, err := Full(dir, dev); err != nil || is != want {
					t.Errorf("full: %v, %v; want %v", is, err, want)
				}
			}
			full(true)
			must(t, os.Truncate(img, 2*large))
			command(t, "losetup", "-c", dev)
			full(false)
			before, after, err = Grow(dir)
			if kind == "ext4" && !has(t, unix.CAP_SYS_RESOURCE) { // a lab machine may forbid it even to root
				if !errors.Is(err, unix.EPERM) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || after < 2*large*9/10 || before > large {
				t.Errorf("%d %d %v", before, after, err)
			}
			if b, a, err := Grow(dir); err != nil || b != after || a != after {
				t.Errorf("%d %d %v", b, a, err)
			}
			full(true)
			dir.Close()
			must(t, Unmount(t.Context(), at))
			check := map[string][]string{"xfs": {"xfs_repair", "-n", dev}, "ext4": {"e2fsck", "-fn", dev}}
			command(t, check[kind]...)
			mountAt(t, dev, at, kind, 0, "")
			if b, err := os.ReadFile(filepath.Join(at, "file")); err != nil || string(b) != "stays" {
				t.Errorf("%q %v", b, err)
			}
			must(t, Unmount(t.Context(), at))
		})
	}
	at := t.TempDir()
	mountAt(t, "none", at, "tmpfs", 0, "size=1m")
	if _, _, err := Grow(openDir(t, at)); err == nil {
		t.Error("grew a tmpfs")
	}
}

func TestToolIsNamedWhereItIsMissing(t *testing.T) {
	var r Runner
	_, err := r.tool(t.Context(), 0, "mkfs.none-such")
	var none *NoToolError
	if !errors.As(err, &none) || none.Name != "mkfs.none-such" {
		t.Errorf("%v", err)
	}
	t.Setenv("PATH", "/nowhere") // of somebody who became root by su
	if _, err := r.tool(t.Context(), 0, "blkid", "-V"); err != nil {
		t.Error(err)
	}
}
