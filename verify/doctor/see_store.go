package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/verify"
)

// This file is what the owner's worker does in the store: it only reads.

type storeArgs struct {
	GraphRoot string `json:"graphRoot"`
	RunRoot   string `json:"runRoot"`
	Driver    string `json:"driver"`
}

// storeSeen is what a graphroot looks like.
type storeSeen struct {
	FSType          string   `json:"fsType"`
	MountedOn       string   `json:"mountedOn"`
	Root            string   `json:"root"`   // the graphroot, without symbolic links
	Source          string   `json:"source"` // of the mount
	Options         []string `json:"options"`
	Size            uint64   `json:"size"` // bytes
	Free            uint64   `json:"free"`
	Inodes          uint64   `json:"inodes"`
	InodesFree      uint64   `json:"inodesFree"`
	Mounts          []string `json:"mounts,omitempty"` // below it
	OwnOverlay      bool     `json:"ownOverlay"`       // what is mounted at overlay/ is itself
	NoDType         bool     `json:"noDType"`
	HasMountProgram bool     `json:"hasMountProgram"`
	Leftover        []string `json:"leftover,omitempty"` // of runs
	Staging         []string `json:"staging,omitempty"`  // of pulls
}

const mountProgramFlag = ".has-mount-program"

func seeStore(a storeArgs) (storeSeen, error) {
	var s storeSeen
	root, err := filepath.EvalSymlinks(a.GraphRoot)
	if err != nil {
		return s, err
	}
	var sf unix.Statfs_t
	if err := unix.Statfs(root, &sf); err != nil {
		return s, err
	}
	s.Size, s.Free, s.Inodes, s.InodesFree = sf.Blocks*uint64(sf.Bsize), sf.Bavail*uint64(sf.Bsize), sf.Files, sf.Ffree
	table, err := host.Mounts()
	if err != nil {
		return s, err
	}
	if m, is := table.Over(root); is {
		s.FSType, s.MountedOn, s.Root, s.Source = m.Type, m.Path, root, m.Source
		if strings.HasPrefix(m.Type, "fuse.") {
			s.FSType = "fuse"
		}
		if strings.HasPrefix(m.Type, "nfs") {
			s.FSType = "nfs"
		}
		s.Options = append(strings.Split(m.Options, ","), strings.Split(m.FSOptions, ",")...)
	}
	for _, m := range table.Below(root) {
		s.Mounts = append(s.Mounts, m.Path)
		if m.Path == filepath.Join(root, "overlay") && strings.HasSuffix(m.Root, "/overlay") {
			s.OwnOverlay = true // podman binds it onto itself
		}
	}
	s.NoDType = noDType(root)
	// Podman writes "false" into it where it found no sign of a mount program, and
	// minds nothing but "true".
	if f, err := readSmall(filepath.Join(root, "overlay", mountProgramFlag)); err == nil {
		s.HasMountProgram = strings.TrimSpace(string(f.Content)) == "true"
	}
	for _, pattern := range []string{filepath.Join(root, ".storagectl-*"), a.GraphRoot + ".storagectl-*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			continue // a path with brackets: nothing is found by a pattern
		}
		for _, f := range found {
			if fi, err := os.Lstat(f); err == nil && fi.IsDir() {
				s.Leftover = append(s.Leftover, f)
			}
		}
	}
	es, err := os.ReadDir(filepath.Join(root, "overlay", "staging"))
	if err != nil {
		return s, nil //nolint:nilerr // most stores have none
	}
	for _, e := range es {
		if fi, err := e.Info(); err == nil && fi.IsDir() && time.Since(fi.ModTime()) > 24*time.Hour {
			s.Staging = append(s.Staging, filepath.Join(root, "overlay", "staging", e.Name()))
		}
	}
	return s, nil
}

// noDType reports whether the filesystem does not tell what kind an entry is.
func noDType(dir string) bool {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		return false
	}
	// linux_dirent64: 8 bytes inode, 8 offset, 2 length, 1 type, the name.
	for at := 0; at+19 < n; {
		reclen := int(buf[at+16]) | int(buf[at+17])<<8
		if reclen <= 0 {
			return false
		}
		if buf[at+18] != unix.DT_UNKNOWN {
			return false
		}
		at += reclen
	}
	return n > 0
}

// recordsSeen is what the store's records say of its state.
type recordsSeen struct {
	Images     int             `json:"images"`
	Layers     int             `json:"layers"`
	Dangling   int             `json:"dangling"` // images without a name that no container and no other image needs
	Containers []containerSeen `json:"containers"`
	Damage     []string        `json:"damage,omitempty"`
	Broken     []string        `json:"broken,omitempty"` // names or ids of damaged images
}

type containerSeen struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
}

func seeRecords(ctx context.Context, ref verify.StoreRef) (recordsSeen, error) {
	p, err := verify.StoreManifest(ctx, ref)
	if errors.Is(err, fs.ErrNotExist) { // podman has made the store and nothing in it
		return recordsSeen{}, nil
	}
	if err != nil {
		return recordsSeen{}, err
	}
	r := recordsSeen{Images: len(p.Images), Layers: len(p.Layers)}
	layers := map[string]verify.Layer{}
	for _, l := range p.Layers {
		layers[l.ID] = l
	}
	used := map[string]bool{}
	for _, c := range p.Containers {
		used[c.Image] = true
		name := fmt.Sprintf("%.12s", c.ID)
		if len(c.Names) > 0 {
			name = c.Names[0]
		}
		r.Containers = append(r.Containers, containerSeen{c.ID, name, c.Created})
		if l, is := layers[c.Layer]; c.Layer != "" && (!is || !l.Tree) {
			r.Damage = append(r.Damage, fmt.Sprintf("container %s has no layer", name))
		}
	}
	below := map[string]bool{} // layers that another image stands on
	for _, i := range p.Images {
		for _, id := range i.Chain[min(1, len(i.Chain)):] {
			below[id] = true
		}
	}
	for _, i := range p.Images {
		name := fmt.Sprintf("%.12s", i.ID)
		if len(i.Names) > 0 {
			name = i.Names[0]
		} else if !used[i.ID] && (len(i.Chain) == 0 || !below[i.Chain[0]]) {
			r.Dangling++
		}
		if why := imageDamage(i, layers); why != "" {
			r.Damage, r.Broken = append(r.Damage, fmt.Sprintf("image %s: %s", name, why)), append(r.Broken, name)
		}
	}
	return r, nil
}

func imageDamage(i verify.Image, layers map[string]verify.Layer) string {
	for _, id := range i.Chain {
		l, is := layers[id]
		switch {
		case !is:
			return fmt.Sprintf("layer %.12s has no record", id)
		case !l.Tree:
			return fmt.Sprintf("layer %.12s has no files", id)
		}
	}
	for _, b := range i.BigData {
		if b.Size < 0 {
			return b.Name + " is missing"
		}
	}
	return ""
}

// lockFiles gives the store's lock files by inode number.
func lockFiles(graphRoot, runRoot string) map[string]string {
	files := map[string]string{}
	for _, pattern := range []string{graphRoot + "/*.lock", graphRoot + "/*/*.lock", graphRoot + "/libpod/bolt_state.db", graphRoot + "/db.sql", runRoot + "/*.lock", runRoot + "/*/*.lock"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			continue // a path with brackets: nothing is found by a pattern
		}
		for _, f := range found {
			if fi, err := os.Lstat(f); err == nil {
				if st, is := fi.Sys().(*syscall.Stat_t); is {
					files[strconv.FormatUint(st.Ino, 10)] = f
				}
			}
		}
	}
	return files
}

// lockHeld is a lock of the store that a process holds.
type lockHeld struct {
	path  string
	pid   int
	name  string
	state string // as in proc_pid_stat(5)
}

// locksHeld finds who holds locks on files (proc_locks(5)).
func locksHeld(files map[string]string) ([]lockHeld, error) {
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		return nil, err
	}
	var held []lockHeld
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l) // 1: FLOCK ADVISORY WRITE 123 08:01:4711 0 EOF
		if len(f) < 6 || f[1] == "->" {
			continue
		}
		ids := strings.Split(f[5], ":")
		path, is := files[ids[len(ids)-1]]
		pid, err := strconv.Atoi(f[4])
		if !is || err != nil || pid <= 0 { // 0: in another namespace
			continue
		}
		// The device number in the list is of no use on btrfs and overlay: whether
		// the process has the very file open is the proof.
		if !hasOpen(pid, path) {
			continue
		}
		name, state := processState(pid)
		held = append(held, lockHeld{path, pid, name, state})
	}
	return held, nil
}

func hasOpen(pid int, path string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	es, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range es {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && to == path {
			return true
		}
	}
	return false
}

func processState(pid int) (name, state string) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", ""
	}
	text := string(b)
	begin, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if begin < 0 || end < begin {
		return "", ""
	}
	f := strings.Fields(text[end+1:])
	if len(f) == 0 {
		return "", ""
	}
	return text[begin+1 : end], f[0]
}

// madeByFuse names a file that only fuse-overlayfs makes in a layer, "" if there
// is none. It gives up, with an error, where that takes too long.
func madeByFuse(graphRoot string) (string, error) {
	until := time.Now().Add(2 * time.Second)
	found := ""
	layers, err := filepath.Glob(filepath.Join(graphRoot, "overlay", "*", "diff"))
	if err != nil {
		return "", err
	}
	for _, dir := range layers {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case time.Now().After(until):
				return errors.New("the store is too large to be looked through")
			case strings.HasPrefix(d.Name(), ".wh."):
				found = path
				return fs.SkipAll
			}
			return nil
		})
		if err != nil || found != "" {
			return found, err
		}
	}
	return "", nil
}

// fileIs is a small file of the owner's.
type fileIs struct {
	There   bool   `json:"there"`
	Content []byte `json:"content,omitempty"`
	Mode    uint32 `json:"mode"`
}

const smallFile = 1 << 20

// readSmall reads a regular file of at most 1 MiB. It waits for no pipe.
func readSmall(path string) (fileIs, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fileIs{}, nil
	}
	if err != nil {
		return fileIs{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return fileIs{}, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > smallFile {
		return fileIs{}, fmt.Errorf("%s is no small file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, smallFile))
	return fileIs{There: true, Content: b, Mode: uint32(fi.Mode().Perm())}, err
}
