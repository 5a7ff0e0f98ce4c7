package doctor

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
	"strings"
	"time"
)

const groupNetwork = "networks"

func networkChecks() []Check {
	return []Check{
		{
			ID: "network-backend", Group: groupNetwork, Title: "The network backend is there",
			Why:   "Podman 4 makes networks by netavark or by CNI's plugins, and keeps to what it found first. Where the programs are gone no container with a network starts.",
			Mends: "Install netavark and aardvark-dns, or containernetworking-plugins.",
			Look:  lookBackend,
		},
		{
			ID: "cni-version", Group: groupNetwork, Title: "CNI's configuration and plugins understand each other",
			Why:   "Podman 3.4 and 4 write cniVersion 1.0.0, which plugins before 1.0 (Debian 11) refuse: every container with a network fails to start.",
			Mends: "Let the file say 0.4.0, or install newer plugins.",
			Fixes: "puts cniVersion 0.4.0 into the file. Taken back by putting the old text back.",
			Look:  lookCNI,
		},
		{
			ID: "resolv-conf", Group: groupNetwork, Title: "/etc/resolv.conf can be read",
			Why:   "Podman copies it into each container with a network, and starts none without it.",
			Mends: "Make the file, or what the link leads to.",
			Look: func(_ context.Context, h *Host) Finding {
				const path = "/etc/resolv.conf"
				b, err := os.ReadFile(path)
				if p := h.place(); err != nil && p.inside() {
					return problem(fmt.Sprintf("%s: %s", path, reason(err)), p.outer("start the container with --dns ADDRESS", "dnsPolicy and dnsConfig of the pod")+", or write a line nameserver ADDRESS into "+path)
				}
				if err != nil {
					return problem(fmt.Sprintf("%s: %s", path, reason(err)), "echo nameserver ADDRESS >>"+path+"  # or systemctl enable --now systemd-resolved")
				}
				return ok("nameservers: %d", strings.Count("\n"+string(b), "\nnameserver"))
			},
		},
		{
			ID: "netavark", Group: groupNetwork, Title: "netavark and aardvark-dns are of one release",
			Why:   "They share a format on disk; names of containers are not resolved where one is newer.",
			Mends: "Install both from one source.",
			Look:  withInfo(lookNetavark),
		},
	}
}

// helperDirs are where podman looks for its network programs.
func helperDirs() []string {
	return []string{"/usr/local/libexec/podman", "/usr/local/lib/podman", "/usr/libexec/podman", "/usr/lib/podman"}
}

func helper(name string) string {
	for _, d := range helperDirs() {
		if fi, err := os.Stat(filepath.Join(d, name)); err == nil && fi.Mode().IsRegular() {
			return filepath.Join(d, name)
		}
	}
	return ""
}

// pluginDirs are where CNI's plugins lie.
func pluginDirs() []string {
	return []string{"/usr/local/libexec/cni", "/usr/libexec/cni", "/usr/local/lib/cni", "/usr/lib/cni", "/opt/cni/bin"}
}

func plugin(name string) string {
	if filepath.Base(name) != name {
		return ""
	}
	for _, d := range pluginDirs() {
		if fi, err := os.Stat(filepath.Join(d, name)); err == nil && fi.Mode().IsRegular() {
			return filepath.Join(d, name)
		}
	}
	return ""
}

// backend is what podman makes networks by.
func (h *Host) backend(i infoSeen) string {
	if b := i.More.Host.NetworkBackend; b != "" {
		return b
	}
	return "cni" // before podman 4 there is no other
}

func lookBackend(_ context.Context, h *Host) Finding {
	i, err := h.info()
	if err != nil {
		// Podman may say nothing at all because of this.
		if v, verr := h.version(); verr == nil && helper("netavark") == "" && plugin("bridge") == "" {
			if major, _ := majorMinor(v); major >= 4 {
				return problem("neither netavark nor CNI's plugins are installed", "apt-get install netavark aardvark-dns")
			}
		}
		return notSeen(err)
	}
	switch b := h.backend(i); b {
	case "netavark":
		if helper("netavark") == "" {
			return problem("podman uses netavark, which is not installed", "apt-get install netavark aardvark-dns")
		}
		if helper("aardvark-dns") == "" {
			return warning("netavark, without aardvark-dns: containers do not find each other by name", "apt-get install aardvark-dns")
		}
		return ok("netavark")
	default:
		if plugin("bridge") == "" {
			return problem("podman uses CNI, and its plugins are not installed", "apt-get install containernetworking-plugins")
		}
		return ok("CNI, the plugins in %s", filepath.Dir(plugin("bridge")))
	}
}

func lookNetavark(ctx context.Context, h *Host, i infoSeen) Finding {
	if h.backend(i) != "netavark" {
		return absent("podman does not use it")
	}
	versions := map[string]string{}
	for _, name := range []string{"netavark", "aardvark-dns"} {
		path := helper(name)
		if path == "" {
			return absent("%s is not installed", name)
		}
		out, err := output(ctx, nil, path, "--version")
		if err != nil {
			return unknown(err)
		}
		f := strings.Fields(out)
		if len(f) < 2 {
			return Finding{Outcome: Unknown, Saw: path + " does not tell its version"}
		}
		versions[name] = f[1]
	}
	n, a := versions["netavark"], versions["aardvark-dns"]
	nMajor, nMinor := majorMinor(n)
	aMajor, aMinor := majorMinor(a)
	if nMajor != aMajor || nMajor > 0 && max(nMinor, aMinor)-min(nMinor, aMinor) > 1 {
		return warning(fmt.Sprintf("netavark is %s, aardvark-dns %s", n, a), "apt-get install netavark aardvark-dns")
	}
	return ok("netavark %s, aardvark-dns %s", n, a)
}

// output runs a program of the system's with an environment of ours.
func output(ctx context.Context, env []string, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.WaitDelay = append(env, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"), time.Second
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return string(out), nil
}

// cniSeen is a network's configuration, and what its plugins understand.
type cniSeen struct {
	Path    string   `json:"path"`
	Version string   `json:"version"`
	Problem string   `json:"problem,omitempty"`
	Plugins []string `json:"plugins,omitempty"`
	Missing []string `json:"missing,omitempty"` // plugins that are not there
	Refuse  []string `json:"refuse,omitempty"`  // plugins that do not know the version
	Knows   []string `json:"knows,omitempty"`   // versions that all of them know
}

// seeCNI reads the networks in a folder of CNI, and asks each plugin which
// versions it knows; it has a command for that.
func seeCNI(ctx context.Context, dir string) ([]cniSeen, error) {
	es, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	knows := map[string][]string{}
	var all []cniSeen
	for _, e := range es {
		if ext := filepath.Ext(e.Name()); ext != ".conflist" && ext != ".conf" {
			continue
		}
		c := cniSeen{Path: filepath.Join(dir, e.Name())}
		if err := c.read(ctx, knows); err != nil {
			c.Problem = err.Error()
		}
		all = append(all, c)
	}
	return all, nil
}

func (c *cniSeen) read(ctx context.Context, knows map[string][]string) error {
	f, err := readSmall(c.Path)
	if err != nil {
		return err
	}
	var conf struct {
		CNIVersion string `json:"cniVersion"`
		Type       string `json:"type"`
		Plugins    []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal(f.Content, &conf); err != nil {
		return err
	}
	c.Version = conf.CNIVersion
	if conf.Type != "" {
		c.Plugins = append(c.Plugins, conf.Type)
	}
	for _, p := range conf.Plugins {
		c.Plugins = append(c.Plugins, p.Type)
	}
	for i, name := range c.Plugins {
		path := plugin(name)
		if path == "" {
			c.Missing = append(c.Missing, name)
			continue
		}
		if _, asked := knows[name]; !asked {
			out, err := output(ctx, []string{"CNI_COMMAND=VERSION"}, path)
			var v struct {
				SupportedVersions []string `json:"supportedVersions"`
			}
			if err == nil {
				err = json.Unmarshal([]byte(out), &v)
			}
			if err != nil {
				return fmt.Errorf("the plugin %s does not tell which versions it knows: %w", path, err)
			}
			knows[name] = v.SupportedVersions
		}
		if !slices.Contains(knows[name], c.Version) {
			c.Refuse = append(c.Refuse, name)
		}
		if i == 0 {
			c.Knows = slices.Clone(knows[name])
		}
		c.Knows = slices.DeleteFunc(c.Knows, func(v string) bool { return !slices.Contains(knows[name], v) })
	}
	return nil
}

func lookCNI(ctx context.Context, h *Host) Finding {
	i, asked := h.info()
	if asked == nil && h.backend(i) != "cni" {
		return absent("podman uses %s", h.backend(i))
	}
	dir := "/etc/cni/net.d"
	if !h.Owner.Rootful() {
		dir = filepath.Join(h.Owner.Home, ".config/cni/net.d")
	}
	all, err := askOwner[[]cniSeen](ctx, h, opCNI, dir)
	if err != nil {
		return unknown(err)
	}
	if len(all) == 0 {
		return absent("there is no network in %s", dir)
	}
	if asked != nil && notSeen(asked).Outcome == Unknown { // it may use netavark
		return unknown(asked)
	}
	for _, c := range all {
		switch {
		case c.Problem != "":
			return problem(c.Path+": "+c.Problem, "mend or remove "+c.Path)
		case len(c.Missing) > 0:
			return problem(fmt.Sprintf("%s wants the plugin %s, which is not installed", c.Path, strings.Join(c.Missing, ", ")), "apt-get install containernetworking-plugins")
		case len(c.Refuse) > 0:
			f := problem(fmt.Sprintf("%s has cniVersion %s, which the plugin %s does not know", c.Path, c.Version, strings.Join(c.Refuse, ", ")))
			const older = "0.4.0"
			if !slices.Contains(c.Knows, older) {
				return f
			}
			f.Mend = []string{"sed -i " + word(fmt.Sprintf(`s/"cniVersion": *"[^"]*"/"cniVersion": "%s"/`, older)) + " -- " + word(c.Path)}
			return f.by(Change{Kind: changeCNI, Path: c.Path, Before: c.Version, After: older,
				Text: fmt.Sprintf("let %s say cniVersion %s instead of %s", c.Path, older, c.Version)})
		}
	}
	return ok("%d networks, and all their plugins know their version", len(all))
}
