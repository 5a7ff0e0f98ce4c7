package rbd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/host"
)

// Mapper is what makes a block device of an image.
type Mapper string

// The mappers.
const (
	Krbd Mapper = "krbd" // the kernel's own client
	NBD  Mapper = "nbd"  // rbd-nbd
	// Fuse is the helper itself: librbd behind a file of a private FUSE mount, and a
	// loop device on it. It needs no kernel module, and like the other two it holds
	// the exclusive lock for as long as the device is there, which rbd-fuse cannot.
	Fuse Mapper = "fuse"
)

// Mapping is an image that is a device of this host.
type Mapping struct {
	Spec   Spec   `json:"spec"`
	Mapper Mapper `json:"mapper"`
	Device string `json:"device"`           // /dev/rbd0, /dev/nbd0, /dev/loop7
	FSID   string `json:"fsid,omitempty"`   // of the cluster, where the mapper tells
	Client int64  `json:"client,omitempty"` // its number in the cluster, where the mapper tells
	Number string `json:"number,omitempty"` // of krbd
	Shared bool   `json:"shared,omitempty"` // of krbd: it gives the exclusive lock to who asks for it, or does not tell

	// Of mapper fuse, or of the service of nbd:
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"` // when it started, in clock ticks since boot: a pid comes back
	Boot  string `json:"boot,omitempty"`  // the boot it belongs to
	Dir   string `json:"dir,omitempty"`   // where its file is mounted
	File  string `json:"file,omitempty"`
	Dead  bool   `json:"-"` // the process is gone; its device gives but errors
}

// Of reports whether it can be of a cluster. One whose mapper does not tell can be of
// any, and so can all where fsid is "".
func (m Mapping) Of(fsid string) bool { return m.FSID == "" || fsid == "" || m.FSID == fsid }

// Mapped lists the devices that an image has on this host, as the kernel and
// the processes are now. More than one is possible: nothing keeps others from
// mapping without the exclusive lock. An image of the same name in another cluster
// is among them ([Mapping.Of]).
func (h *Host) Mapped(ctx context.Context, spec Spec) ([]Mapping, error) {
	all, err := h.Devices(ctx)
	return slices.DeleteFunc(all, func(m Mapping) bool { return m.Spec != spec }), err
}

// Devices lists all devices of this host that are images, likewise. It asks no
// cluster.
func (h *Host) Devices(ctx context.Context) ([]Mapping, error) {
	all, err := h.krbd()
	if err != nil {
		return nil, err
	}
	nbd, err := h.nbd(ctx)
	if err != nil {
		return nil, err
	}
	served, err := h.served()
	if err != nil {
		return nil, err
	}
	for _, m := range served {
		if m.Mapper != NBD {
			all = append(all, m)
			continue
		}
		for i := range nbd { // rbd-nbd does not tell of which cluster
			if nbd[i].Device == m.Device && nbd[i].Spec == m.Spec && !m.Dead {
				nbd[i].FSID = m.FSID
			}
		}
	}
	return append(all, nbd...), nil
}

func (h *Host) sys(path string) string {
	if h.Sys != "" {
		return filepath.Join(h.Sys, path)
	}
	return filepath.Join("/sys", path)
}

// krbd reads what the kernel says in /sys/bus/rbd/devices/N
// (Documentation/ABI/testing/sysfs-bus-rbd).
func (h *Host) krbd() ([]Mapping, error) {
	entries, err := os.ReadDir(h.sys("bus/rbd/devices"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list the kernel's images: %w", err)
	}
	var out []Mapping
	for _, e := range entries {
		read := func(name string) string {
			b, rerr := os.ReadFile(filepath.Join(h.sys("bus/rbd/devices"), e.Name(), name))
			if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) { // older kernels lack some
				err = errors.Join(err, rerr)
			}
			return strings.TrimSpace(string(b))
		}
		m := Mapping{Mapper: Krbd, Number: e.Name(), Device: "/dev/rbd" + e.Name(), FSID: read("cluster_fsid"),
			Spec: Spec{Pool: read("pool"), Namespace: read("pool_ns"), Image: read("name")}}
		m.Client, _ = strconv.ParseInt(strings.TrimPrefix(read("client_id"), "client"), 10, 64)
		// MON NAME-AND-OPTIONS POOL IMAGE SNAPSHOT
		info := strings.Fields(read("config_info"))
		m.Shared = len(info) < 2 || !slices.Contains(strings.Split(info[1], ","), "exclusive")
		if snap := read("current_snap"); snap != "" && snap != "-" {
			continue // a snapshot is read-only
		}
		if m.Spec.Image != "" { // else it was unmapped meanwhile
			out = append(out, m)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look at the kernel's images: %w", err)
	}
	return out, nil
}

// nbd asks rbd, where the kernel has nbd and rbd-nbd is installed.
func (h *Host) nbd(ctx context.Context) ([]Mapping, error) {
	if _, err := os.Stat(h.sys("block/nbd0")); err != nil {
		return nil, nil //nolint:nilerr // no nbd, no such device
	}
	if _, err := exec.LookPath("rbd-nbd"); err != nil {
		return nil, nil //nolint:nilerr // likewise
	}
	out, err := h.Run.Run(ctx, host.Cmd{Argv: []string{"rbd", "--conf", "/dev/null", "device", "list", "--device-type", "nbd", "--format", "json"}, Env: toolEnv(), Timeout: 20 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("cannot list the images behind nbd: %w", err)
	}
	return parseNBD(out)
}

func parseNBD(out []byte) ([]Mapping, error) {
	var list []struct {
		Pool, Namespace, Image, Snap, Device string
		ID                                   json.RawMessage // its pid, as number or text
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("cannot read the list of images behind nbd: %w", err)
	}
	var ms []Mapping
	for _, l := range list {
		if l.Snap == "" || l.Snap == "-" {
			pid, _ := strconv.Atoi(strings.Trim(string(l.ID), `"`))
			ms = append(ms, Mapping{Mapper: NBD, Device: l.Device, PID: pid, Spec: Spec{Pool: l.Pool, Namespace: l.Namespace, Image: l.Image}})
		}
	}
	return ms, nil
}

// served reads what the helper serves, by mapper fuse or nbd, and leaves out what is
// gone with its process and its mount.
func (h *Host) served() ([]Mapping, error) {
	files, err := filepath.Glob(filepath.Join(h.runDir(), "*.json"))
	var out []Mapping
	for _, f := range files {
		b, rerr := os.ReadFile(f)
		if errors.Is(rerr, fs.ErrNotExist) {
			continue // unmapped meanwhile
		}
		var m Mapping
		if rerr == nil {
			rerr = json.Unmarshal(b, &m)
		}
		if rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		if m.Boot != bootID() {
			continue // its process went with that boot
		}
		if start, lerr := startOf(m.PID); lerr != nil || start != m.Start {
			m.Dead = true
		}
		out = append(out, m)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look at the images that the helper serves: %w", err)
	}
	return out, nil
}

func (h *Host) runDir() string {
	if h.RunDir != "" {
		return h.RunDir
	}
	return "/run/storagectl/rbd"
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // always there
	return strings.TrimSpace(string(b))
}

// startOf is when a process started: the 22nd field of /proc/PID/stat (proc(5)).
func startOf(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(b[max(0, strings.LastIndexByte(string(b), ')')):]), ") ")
	w := strings.Fields(rest)
	if !ok || len(w) < 20 {
		return 0, fmt.Errorf("cannot read /proc/%d/stat", pid)
	}
	if w[0] == "Z" || w[0] == "X" {
		return 0, fs.ErrNotExist // it is over, though nobody has waited for it
	}
	return strconv.ParseUint(w[19], 10, 64)
}

// toolEnv is the environment of Ceph's programs: nothing of the caller's, where
// CEPH_ARGS or CEPH_CONF could lead to another cluster.
func toolEnv() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
}

// Process records which process serves a mapping.
func (m *Mapping) Process(pid int) error {
	start, err := startOf(pid)
	m.PID, m.Start, m.Boot = pid, start, bootID()
	return err
}
