package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/storagectl/storagectl/internal/host"
	"github.com/storagectl/storagectl/internal/podman"
)

// Podman runs podman as the store's owner with args and stdin (nil for none).
// It returns what podman wrote to stdout, also when it fails. When podman ran
// and exited with another status than 0, the error wraps something that has
// ExitCode() int, as *exec.ExitError does. It must heed ctx.
type Podman func(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error)

// callDeadline bounds each call of podman. The slowest known, an API service
// in a restart loop, hangs for ever; everything else ends in a few seconds.
const callDeadline = 60 * time.Second

// call runs podman with a deadline of its own.
func (p Podman) call(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callDeadline)
	defer cancel()
	return p(ctx, stdin, args...)
}

// list runs podman and decodes a JSON list of objects; no output is an empty
// list, which is how older releases say it.
func (p Podman) list(ctx context.Context, args ...string) ([]map[string]any, error) {
	out, err := p.call(ctx, nil, args...)
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(out)) == 0 {
		return nil, nil
	}
	var v []map[string]any
	if err := json.Unmarshal(out, &v); err != nil {
		return nil, fmt.Errorf("podman %s: %w", strings.Join(args, " "), err)
	}
	return v, nil
}

// exitCode is the status with which podman exited; ok is false when err does
// not come from such an exit.
func exitCode(err error) (code int, ok bool) {
	var e *host.ExitError
	if errors.As(err, &e) && e.Code >= 0 {
		return e.Code, true
	}
	return 0, false
}

// listing is one podman command whose objects belong in a manifest. Fields
// that change while nobody touches the object (state, mount and lock counts,
// the creation time of the built-in network, which is always "now") are not in
// keep. Names differ by case between releases and network back ends (CNI,
// netavark): all spellings are listed, those that are missing are left out.
type listing struct {
	kind     string
	args     []string
	id, name []string
	keep     []string
}

func listings() []listing {
	return []listing{
		{kind: "image", args: []string{"images", "-a", "--no-trunc", "--format", "json"},
			id: []string{"Id", "ID"}, keep: []string{"Names", "Digest"}},
		{kind: "container", args: []string{"ps", "-a", "--no-trunc", "--format", "json"},
			id: []string{"Id", "ID"}, keep: []string{"Names", "ImageID", "Pod", "IsInfra", "Labels"}},
		{kind: "pod", args: []string{"pod", "ps", "--no-trunc", "--format", "json"},
			id: []string{"Id", "ID"}, name: []string{"Name"}, keep: []string{"InfraId", "Labels", "Created"}},
		{kind: "volume", args: []string{"volume", "ls", "--format", "json"},
			id: []string{"Name"}, name: []string{"Name"},
			keep: []string{"Driver", "Mountpoint", "CreatedAt", "Labels", "Scope", "Options", "UID", "GID", "Anonymous", "StorageID"}},
		{kind: "network", args: []string{"network", "ls", "--format", "json"},
			id: []string{"id", "name", "Name"}, name: []string{"name", "Name"},
			keep: []string{"driver", "network_interface", "subnets", "routes", "ipv6_enabled", "internal", "dns_enabled",
				"network_dns_servers", "labels", "options", "ipam_options", "CNIVersion", "Plugins", "Labels"}},
	}
}

// secretsSince is the release that brought podman secret.
func secretsSince() [2]int { return [2]int{3, 1} }

// PodmanManifest lists what podman knows. The first call of podman runs alone,
// since it may set up or migrate podman's database; the others run two at a
// time.
func PodmanManifest(ctx context.Context, podman Podman) (PodmanPart, error) {
	info, err := podman.info(ctx)
	if err != nil {
		return PodmanPart{}, fmt.Errorf("cannot list podman's objects: %w", err)
	}
	p := PodmanPart{Version: info.Version.Version, Driver: info.Store.GraphDriverName}
	all := listings()
	results := make([][]Object, len(all)+1)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for i, l := range all {
		g.Go(func() error {
			items, err := podman.list(gctx, l.args...)
			if err != nil {
				return err
			}
			for _, item := range items {
				results[i] = append(results[i], l.object(item))
			}
			return nil
		})
	}
	if !olderThan(p.Version, secretsSince()) {
		g.Go(func() (err error) {
			results[len(all)], err = podman.secrets(gctx)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return PodmanPart{}, fmt.Errorf("cannot list podman's objects: %w", err)
	}
	for _, r := range results {
		p.Objects = append(p.Objects, r...)
	}
	p.Objects = mergeObjects(p.Objects)
	return p, nil
}

// Take lists what podman knows and joins it with what the store holds.
func Take(ctx context.Context, podman Podman, store StorePart) (Manifest, error) {
	p, err := PodmanManifest(ctx, podman)
	if err != nil {
		return Manifest{}, err
	}
	return Manifest{Store: store, Podman: p}, nil
}

func (l listing) object(item map[string]any) Object {
	o := Object{Kind: l.kind, ID: firstString(item, l.id), Name: firstString(item, l.name), Fields: map[string]any{}}
	for _, k := range l.keep {
		if v, ok := item[k]; ok && !isEmpty(v) {
			o.Fields[k] = orderless(v)
		}
	}
	if l.kind == "pod" {
		o.Fields["Containers"] = podMembers(item["Containers"])
	}
	return o
}

func podMembers(v any) []any {
	var ids []any
	members, _ := v.([]any)
	for _, m := range members {
		if m, ok := m.(map[string]any); ok {
			ids = append(ids, firstString(m, []string{"Id", "ID"}))
		}
	}
	s, _ := orderless(ids).([]any)
	return s
}

// secrets asks by template: "secret ls --format json" is younger than the
// command. Each line is id, name and driver.
func (p Podman) secrets(ctx context.Context) ([]Object, error) {
	out, err := p.call(ctx, nil, "secret", "ls", "--format", `{{.ID}}\t{{.Name}}\t{{.Driver}}`)
	if err != nil {
		return nil, err
	}
	var list []Object
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) < 3 || f[0] == "ID" { // some releases print a heading
			continue
		}
		list = append(list, Object{Kind: "secret", ID: f[0], Name: f[1], Fields: map[string]any{"Driver": f[2]}})
	}
	return list, nil
}

// mergeObjects sorts and joins objects with one kind and id: older releases
// print one line for each name of an image.
func mergeObjects(objects []Object) []Object {
	sortBy(objects, Object.key)
	return slices.CompactFunc(objects, func(a, b Object) bool { return a.key() == b.key() })
}

// podmanInfo is what podman says of itself and its store.
type podmanInfo = podman.Info

func (p Podman) info(ctx context.Context) (podmanInfo, error) {
	out, err := p.call(ctx, nil, podman.InfoArgs()...)
	if err != nil {
		return podmanInfo{}, err
	}
	return podman.DecodeInfo(out)
}

// olderThan compares a podman version such as "4.3.1+ds1" by its first two
// numbers. One that cannot be read counts as new.
func olderThan(version string, than [2]int) bool {
	f := strings.SplitN(version, ".", 3)
	if len(f) < 2 {
		return false
	}
	major, err1 := strconv.Atoi(f[0])
	minor, err2 := strconv.Atoi(f[1])
	if err1 != nil || err2 != nil {
		return false
	}
	return major < than[0] || (major == than[0] && minor < than[1])
}

func firstString(m map[string]any, keys []string) string {
	for _, k := range keys {
		if s, ok := m[k].(string); ok && s != "" {
			return s
		}
	}
	return ""
}

func isEmpty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

// orderless sorts a list of strings, whose order podman does not promise, and
// leaves everything else as it is.
func orderless(v any) any {
	list, ok := v.([]any)
	if !ok {
		return v
	}
	out := slices.Clone(list)
	for _, e := range out {
		if _, ok := e.(string); !ok {
			return v
		}
	}
	slices.SortFunc(out, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
	return out
}
