package migrate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/drain"
	"github.com/storagectl/storagectl/internal/podman"
)

// leftLimit is what containers of allocations that have just ended get to go.
const leftLimit = 10 * time.Second

// leftovers refuses containers that look like Nomad's while no allocation that
// lives on the nodes owns them: no drain would ever end them.
func leftovers(ctx context.Context, c *drain.Client, cli podman.CLI, use *NomadUse, limit time.Duration) (*Refusal, error) {
	for began := time.Now(); ; {
		names, err := unowned(ctx, c, cli, use)
		if err != nil || len(names) == 0 {
			return nil, err
		}
		if time.Since(began) >= limit {
			return &Refusal{ID: "nomad-leftover",
				Text: fmt.Sprintf("containers that look like Nomad's have no allocation that lives on %s, so that no drain would end them: %s", use.nodeNames(), few(names)),
				Hint: "if they are left over, remove them as the store's owner: podman rm -f " + strings.Join(names, " ") +
					"; what is not Nomad's must not have a name that ends in an allocation's id (podman rename)"}, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(500 * time.Millisecond): // podman sends no word to us
		}
	}
}

// unowned names such containers. Those with labels of Nomad's that do not tell
// the allocation cannot be judged.
func unowned(ctx context.Context, c *drain.Client, cli podman.CLI, use *NomadUse) ([]string, error) {
	list, err := cli.Containers(ctx)
	if err != nil {
		return nil, err
	}
	names := map[string][]string{}
	var ids []string
	for _, ct := range list {
		if id, _ := drain.IsNomads(ct.Names, ct.Labels); id != "" {
			ids, names[id] = append(ids, id), append(names[id], ct.Name())
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	slices.Sort(ids)
	dead, err := c.Dead(ctx, use.Nodes, slices.Compact(ids))
	var left []string
	for _, id := range dead {
		left = append(left, names[id]...)
	}
	return left, err
}
