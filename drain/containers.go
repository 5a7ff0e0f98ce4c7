package drain

import (
	"context"
	"slices"

	"github.com/hashicorp/nomad/api"
)

// IsNomads says whether a container was started by Nomad: by the labels that
// newer drivers set, or by the driver's way to name it, task-allocation (all
// that nomad-driver-podman 0.4 sets). alloc is "" where only a label tells.
func IsNomads(names []string, labels map[string]string) (alloc string, is bool) {
	for k, v := range labels {
		if k == labelAlloc {
			return v, true
		}
		is = is || (len(k) > len(labelPrefix) && k[:len(labelPrefix)] == labelPrefix)
	}
	for _, name := range names {
		if len(name) > uuidLen+1 && name[len(name)-uuidLen-1] == '-' && isUUID(name[len(name)-uuidLen:]) {
			return name[len(name)-uuidLen:], true
		}
	}
	return "", is
}

// Dead are those of these allocations that do not live on any of the nodes: no
// drain ends what is left of them.
func (c *Client) Dead(ctx context.Context, nodes []Node, ids []string) ([]string, error) {
	dead := slices.Clone(ids)
	for _, n := range nodes {
		allocs, err := c.allocs(ctx, n.ID)
		if err != nil {
			return nil, err
		}
		dead = slices.DeleteFunc(dead, func(id string) bool {
			return slices.ContainsFunc(allocs, func(a *api.Allocation) bool { return a.ID == id && !a.ClientTerminalStatus() })
		})
	}
	return dead, nil
}

// leftover are those of the containers whose allocation, by their name, lives on
// none of the nodes.
func (c *Client) leftover(ctx context.Context, nodes []Node, names []string) ([]string, error) {
	var ids []string
	for _, name := range names {
		if id, _ := IsNomads([]string{name}, nil); id != "" {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	dead, err := c.Dead(ctx, nodes, ids)
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		id, _ := IsNomads([]string{name}, nil)
		return !slices.Contains(dead, id)
	}), err
}

const (
	labelPrefix = "com.hashicorp.nomad."
	labelAlloc  = labelPrefix + "alloc_id"
	// LabelNamespace is set by newer drivers where extra_labels asks for it.
	LabelNamespace = labelPrefix + "namespace"
	uuidLen        = 36
)

func isUUID(s string) bool {
	for i, r := range []byte(s) {
		dash := slices.Contains([]int{8, 13, 18, 23}, i)
		if dash != (r == '-') || (!dash && (r < '0' || (r > '9' && r < 'a') || r > 'f')) {
			return false
		}
	}
	return true
}
