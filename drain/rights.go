package drain

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// Rights says what a run will want to do.
type Rights struct {
	// Allocs are ids of allocations whose containers run here: all must be
	// visible. Nomad leaves out, without a word, what a token may not read.
	Allocs []string
	// Namespaces are known to have jobs here.
	Namespaces []string
	// SlotPath is the variables' path of the slots; "": none are used.
	SlotPath string
	// Canary is the namespace of the canary job; "": there is none.
	Canary string
}

// CheckRights finds out, without changing anything, whether the token may do
// what a drain needs. What it may not is a [*RightsError].
func (c *Client) CheckRights(ctx context.Context, nodes []Node, r Rights) error {
	var missing []string
	denied := func(what string, f func(context.Context) error) error {
		err := c.answered(ctx, f)
		if forbidden(err) {
			missing = append(missing, what)
			return nil
		}
		if status(err) == 0 {
			return err
		}
		return nil // a refusal for another reason: the right came first
	}
	// Rights are judged before the node is looked for, and no node has this id.
	nobody := "/v1/node/" + randomID() + "/eligibility"
	if err := denied("node:write", func(ctx context.Context) error {
		_, err := c.api.Raw().Write(nobody, map[string]string{"Eligibility": "ineligible"}, nil, write(ctx))
		return err
	}); err != nil {
		return fmt.Errorf("cannot check the rights in Nomad: %w", err)
	}
	spaces, err := c.namespaces(ctx)
	if err != nil {
		return err
	}
	for _, ns := range r.Namespaces {
		if !slices.Contains(spaces, ns) {
			spaces = append(spaces, ns)
		}
	}
	var blind []string
	for _, ns := range spaces {
		n := len(missing)
		if err := denied("read-job in namespace "+ns, func(ctx context.Context) error {
			q := query(ctx)
			q.Namespace = ns
			_, err := c.api.Raw().Query("/v1/job/storagectl-"+randomID(), new(any), q)
			return err
		}); err != nil {
			return fmt.Errorf("cannot check the rights in Nomad: %w", err)
		}
		if len(missing) > n {
			blind = append(blind, ns)
		}
	}
	if unseen, err := c.unseen(ctx, nodes, r.Allocs); status(err) == http.StatusForbidden {
		missing = append(missing, "node:read") // which node:write has
	} else if err != nil {
		return err
	} else if len(unseen) > 0 && len(blind) == 0 {
		missing = append(missing, "read-job in the namespace of the allocations "+strings.Join(unseen, ", "))
		blind = append(blind, "*")
	}
	if r.SlotPath != "" {
		if err := denied("variables "+r.SlotPath+": read, write, list", func(ctx context.Context) error {
			_, err := c.api.Raw().Query("/v1/var/"+r.SlotPath+"/1", new(any), query(ctx))
			return err
		}); err != nil {
			return fmt.Errorf("cannot check the rights in Nomad: %w", err)
		}
	}
	if r.Canary != "" {
		if err := denied("submit-job in namespace "+r.Canary, func(ctx context.Context) error {
			job := canaryJob("storagectl-canary-probe", Node{ID: "none"}, CanaryOptions{Image: "none", Namespace: r.Canary}, Variant{})
			wo := write(ctx)
			wo.Namespace = r.Canary
			_, _, err := c.api.Jobs().Plan(job, false, wo)
			return err
		}); err != nil {
			return fmt.Errorf("cannot check the rights in Nomad: %w", err)
		}
		if err := denied("read-logs in namespace "+r.Canary, func(ctx context.Context) error { return c.readsLogs(ctx, r.Canary) }); err != nil {
			return fmt.Errorf("cannot check the rights in Nomad: %w", err)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	r.Namespaces = blind
	return rightsError(missing, r)
}

// Management says whether the token may do everything in the cluster. Without ACLs, or
// where the token may not be asked about, it does not.
func (c *Client) Management(ctx context.Context) (bool, error) {
	var t *api.ACLToken
	err := c.answered(ctx, func(ctx context.Context) (err error) {
		t, _, err = c.api.ACLTokens().Self(query(ctx))
		return err
	})
	switch code := status(err); {
	case err == nil:
		return t.Type == "management", nil
	case code == http.StatusBadRequest, code == http.StatusForbidden, code == http.StatusNotFound:
		return false, nil
	}
	return false, fmt.Errorf("cannot ask Nomad about the token: %w", err)
}

// readsLogs asks for a log that no task has. Nomad judges the right after it has
// found the allocation: where the namespace has none that the token can see, only
// the canary will tell.
func (c *Client) readsLogs(ctx context.Context, ns string) error {
	q := query(ctx)
	q.Namespace, q.PerPage = ns, 1
	list, _, err := c.api.Allocations().List(q)
	if status(err) == http.StatusForbidden || err == nil && len(list) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	q = query(ctx)
	q.Namespace = ns
	q.Params = map[string]string{"task": "storagectl-" + randomID(), "type": "stdout", "origin": "start", "plain": "true"}
	body, err := c.api.Raw().Response("/v1/client/fs/logs/"+list[0].ID, q)
	if err == nil {
		_ = body.Close()
	}
	return err
}

// forbidden says whether an answer is that the token may not do it. What is streamed
// (logs) is refused with 500, and only the words tell it from a server in trouble
// (errPermissionDenied in nomad/structs/errors.go).
func forbidden(err error) bool {
	if status(err) != http.StatusInternalServerError {
		return status(err) == http.StatusForbidden
	}
	var u api.UnexpectedResponseError
	return errors.As(err, &u) && strings.HasPrefix(u.Body(), "Permission denied")
}

// answered is f until an agent answers, whatever it says.
func (c *Client) answered(ctx context.Context, f func(context.Context) error) error {
	var last error
	err := c.few(ctx, func(ctx context.Context) error {
		last = f(ctx)
		if status(last) != 0 {
			return nil
		}
		return last
	})
	if err != nil {
		return err
	}
	return last
}

// namespaces lists those that the token can see; the default one where it sees
// none.
func (c *Client) namespaces(ctx context.Context) ([]string, error) {
	var names []string
	err := c.few(ctx, func(ctx context.Context) error {
		list, _, err := c.api.Namespaces().List(query(ctx))
		names = nil
		for _, ns := range list {
			names = append(names, ns.Name)
		}
		return err
	})
	if err != nil && status(err) != http.StatusForbidden {
		return nil, fmt.Errorf("cannot list Nomad's namespaces: %w", err)
	}
	if len(names) == 0 {
		names = []string{"default"}
	}
	return names, nil
}

// unseen are those of ids whose allocations there are, but not for this token.
func (c *Client) unseen(ctx context.Context, nodes []Node, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	seen := map[string]bool{}
	for _, n := range nodes {
		allocs, err := c.allocs(ctx, n.ID)
		if err != nil {
			return nil, err
		}
		for _, a := range allocs {
			seen[a.ID] = true
		}
	}
	var hidden []string
	for _, id := range ids {
		if seen[id] {
			continue
		}
		err := c.answered(ctx, func(ctx context.Context) error {
			_, err := c.api.Raw().Query("/v1/allocation/"+id, new(any), query(ctx))
			return err
		})
		switch status(err) {
		case http.StatusNotFound: // its job was purged; the container will show
		case 0:
			if err != nil {
				return nil, fmt.Errorf("cannot look at allocation %s: %w", id, err)
			}
		default:
			hidden = append(hidden, id)
		}
	}
	return hidden, nil
}

func rightsError(missing []string, r Rights, more ...string) *RightsError {
	return &RightsError{Missing: append(missing, more...), Policy: Policy(r)}
}

// Policy is the least ACL policy for what a run wants to do, as HCL.
func Policy(r Rights) string {
	var b strings.Builder
	b.WriteString("node {\n  policy = \"write\"\n}\n")
	spaces := slices.Clone(r.Namespaces)
	if len(spaces) == 0 {
		spaces = []string{"default"}
	}
	if r.Canary != "" && !slices.Contains(spaces, r.Canary) {
		spaces = append(spaces, r.Canary)
	}
	const slotSpace = "default"
	if r.SlotPath != "" && !slices.Contains(spaces, slotSpace) {
		spaces = append(spaces, slotSpace)
	}
	for _, ns := range spaces {
		caps := []string{`"read-job"`}
		if ns == r.Canary {
			caps = append(caps, `"submit-job"`, `"read-logs"`)
		}
		fmt.Fprintf(&b, "namespace %q {\n  capabilities = [%s]\n", ns, strings.Join(caps, ", "))
		if r.SlotPath != "" && ns == slotSpace {
			fmt.Fprintf(&b, "  variables {\n    path %q {\n      capabilities = [\"read\", \"list\", \"write\"]\n    }\n  }\n", r.SlotPath+"/*")
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
