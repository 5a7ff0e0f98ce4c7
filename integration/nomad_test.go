package integration

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/storagectl/storagectl/integration/lab"
	"github.com/storagectl/storagectl/integration/lab/images"
	"github.com/storagectl/storagectl/integration/lab/nomad"
)

// A nomadWorld is a cluster with two nodes that have images in a rootless vfs
// store.
type nomadWorld struct {
	*nomad.Cluster
	t    testing.TB
	ctx  context.Context
	at   *nomad.Client // where storagectl runs, its node is a
	a, b *world
}

func newNomadWorld(t testing.TB, opts nomad.Options) *nomadWorld {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Minute)
	t.Cleanup(cancel)
	seed, err := images.Store(ctx, "bookworm", lab.Owner, images.Small)
	if err != nil {
		t.Fatal(err)
	}
	c, err := nomad.Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("cannot remove the cluster: %v", err)
		}
	})
	w := &nomadWorld{Cluster: c, t: t, ctx: ctx}
	for range 2 {
		if _, err := c.AddClient(ctx, lab.Options{Release: "bookworm", Seed: seed}); err != nil {
			t.Fatal(err)
		}
	}
	w.at = c.Clients[0]
	w.a = &world{t: t, ctx: ctx, node: c.Clients[0].Node, user: lab.Owner}
	w.b = &world{t: t, ctx: ctx, node: c.Clients[1].Node, user: lab.Owner}
	return w
}

// ctl runs storagectl as root on the node, the first, with the environment that it
// needs to reach Nomad there.
func (w *nomadWorld) ctl(token string, args ...string) result {
	w.t.Helper()
	argv := append([]string{"env"}, w.Env(w.at, token)...)
	return w.a.exec("root", append(append(argv, "storagectl"), args...)...)
}

func (w *nomadWorld) must(token string, args ...string) result {
	w.t.Helper()
	r := w.ctl(token, args...)
	if r.code != exitDone {
		w.t.Fatalf("storagectl %s: %s", strings.Join(args, " "), r)
	}
	return r
}

// doctorNomad is what doctor says of Nomad.
func (w *nomadWorld) doctorNomad(token string) (result, diagnosis) {
	w.t.Helper()
	r, all := w.a.diagnoses(w.ctl(token, "doctor", "--json", "--user", w.a.user, "--check", "nomad"))
	return r, all["nomad"]
}

func (w *nomadWorld) migrate(more ...string) []string {
	return w.a.migrate(append([]string{"--drain-deadline", "1m"}, more...)...)
}

func (w *nomadWorld) eligible(cl *nomad.Client) bool {
	w.t.Helper()
	n, err := w.Node(cl)
	if err != nil {
		w.t.Fatal(err)
	}
	return n.SchedulingEligibility == api.NodeSchedulingEligible && n.DrainStrategy == nil
}

// least counts the running allocations of a job until stop is called, which
// gives the lowest count that was seen.
func (w *nomadWorld) least(job string) (stop func() int) {
	ctx, cancel := context.WithCancel(w.ctx)
	low := 1 << 30
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if allocs, err := w.Allocs(job); err == nil {
				n := 0
				for _, a := range allocs {
					if a.ClientStatus == api.AllocClientStatusRunning {
						n++
					}
				}
				low = min(low, n)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	return func() int {
		cancel()
		wg.Wait()
		return low
	}
}

// TestNomadMigrate: a service on two nodes; one is migrated. The job moves and
// never drops to nothing, the node is given back, the canary works; then all of
// it the way back. Without and with ACL and mTLS, there with the least rights.
func TestNomadMigrate(t *testing.T) {
	for name, opts := range map[string]nomad.Options{"open": {}, "acl+mtls": {ACL: true, TLS: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newNomadWorld(t, opts)
			if err := w.RunJob(w.ctx, nomad.ServiceJob("web", "localhost/lab/base:1", 2), 2); err != nil {
				t.Fatal(err)
			}
			token := ""
			args := w.migrate("--slots", "1", "--canary", "localhost/lab/base:1", "--canary-shell", "/bin/busybox,sh,-c", "--reason", "test")
			if opts.ACL {
				// A refusal tells the least policy, and nothing was changed.
				poor, err := w.TokenFor("poor", "node {\n policy = \"write\"\n}")
				if err != nil {
					t.Fatal(err)
				}
				r := w.ctl(poor.SecretID, args...)
				if r.code != exitRefused || !strings.Contains(r.stderr, "read-job") {
					t.Fatalf("without read-job: %s", r)
				}
				_, policy, _ := strings.Cut(r.stderr, "to the token:\n")
				rich, err := w.TokenFor("rich", policy)
				if err != nil {
					t.Fatalf("the policy that was told: %v\n%s", err, policy)
				}
				token = rich.SecretID
				// Doctor says the same of each, and that one is enough.
				for token, want := range map[string]struct{ outcome, words string }{
					poor.SecretID: {"problem", "read-job"}, rich.SecretID: {"ok", "driver healthy"}, w.Token: {"warning", "management token"},
				} {
					if r, d := w.doctorNomad(token); d.Outcome != want.outcome || !strings.Contains(d.Saw, want.words) || (want.outcome != "ok") != strings.Contains(strings.Join(d.Mend, ""), `capabilities = ["read-job"]`) {
						t.Errorf("want %v: %s", want, r)
					}
				}
				if !w.eligible(w.Clients[0]) {
					t.Error("a refusal changed the node")
				}
				w.prunable(poor.SecretID)
			}
			low := w.least("web")
			r := w.must(token, args...)
			if n := low(); n < 1 {
				t.Errorf("the job dropped to %d", n)
			}
			t.Logf("%s", r)
			if d := w.a.driver(); d != "overlay" {
				t.Errorf("podman is on %s", d)
			}
			if !w.eligible(w.Clients[0]) {
				t.Error("the node was not given back")
			}
			// The table of docs/nomad.md.
			for variant, word := range map[string]string{"plain": "works", "entrypoint": "works", "keep-id": "does not work", "bridge": "works", "host": "works"} {
				if !strings.Contains(r.stderr, variant+": "+word) {
					t.Errorf("the canary does not say that %s %s", variant, word)
				}
			}
			w.noToken(token)
			if token != "" && strings.Contains(r.stdout+r.stderr, token) {
				t.Error("the token was printed")
			}
			// Nomad puts work there again.
			if err := w.RunJob(w.ctx, nomad.ServiceJob("more", "localhost/lab/base:1", 2), 2); err != nil {
				t.Fatal(err)
			}

			w.must(token, "rollback")
			if d := w.a.driver(); d != "vfs" {
				t.Errorf("podman is on %s after the rollback", d)
			}
			if !w.eligible(w.Clients[0]) {
				t.Error("the node was not given back after the rollback")
			}
		})
	}
}

// noToken looks for a token in what storagectl keeps.
func (w *nomadWorld) noToken(token string) {
	w.t.Helper()
	if token == "" {
		return
	}
	_, err := w.a.node.Run(w.ctx, "root", "grep", "-r", "-q", token, "/var/lib/storagectl")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		w.t.Errorf("the token is kept on disk: %v", err)
	}
}
