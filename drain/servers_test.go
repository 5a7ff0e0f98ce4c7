package drain

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// leader is the index of the server that leads, as server i has it.
func (c *cluster) leader(i int) int {
	c.t.Helper()
	found := -1
	eventually(c.t, 3*time.Minute, "a leader", func() bool {
		addr, err := c.api(i, c.token).Status().Leader()
		for k, s := range c.servers {
			if err == nil && s.cmd != nil && strings.HasSuffix(addr, fmt.Sprintf(":%d", s.rpc)) {
				found = k
			}
		}
		return found >= 0
	})
	return found
}

// TestServersGone: the leader is killed in mid-drain, once while we talk to
// another server, and once while we talk to the leader itself.
func TestServersGone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	a, _ := c.addClient("alpha")
	b, _ := c.addClient("beta")
	c.run(t, "web", "service", 2, "")
	for name, round := range map[string]struct {
		node Node
		same bool // we talk to the one that is killed
	}{"another server leads": {a, false}, "ours leads": {b, true}} {
		t.Run(name, func(t *testing.T) {
			ctx := bounded(t)
			lead := c.leader(0)
			talk := (lead + 1) % 3
			if round.same {
				talk = lead
			}
			cl, err := New(Config{Address: c.servers[talk].addr(), token: newSecret(c.token)})
			if err != nil {
				t.Fatal(err)
			}
			o := opts("leader " + name)
			if err := cl.Drain(ctx, round.node, o); err != nil {
				t.Fatal(err)
			}
			c.servers[lead].stop()
			back := make(chan struct{})
			w := wait(2 * time.Minute)
			w.Progress = func(p Progress) {
				select {
				case <-back:
				default:
					if p.Unheard != nil && round.same { // nobody else would answer us
						c.startServer(lead)
						close(back)
					}
				}
			}
			if err := cl.Wait(ctx, round.node, o, w); err != nil {
				t.Fatal(err)
			}
			if now := c.leader((lead + 1) % 3); now == lead && !round.same {
				t.Errorf("server %d leads before and after", lead)
			}
			if err := cl.Return(ctx, round.node, ReturnOptions{Options: o, Driver: testDriver, Limit: time.Minute}); err != nil {
				t.Fatal(err)
			}
			if !round.same {
				c.startServer(lead)
			}
			eventually(t, 3*time.Minute, "the killed server is back", func() bool {
				n, _, err := c.api(lead, c.token).Nodes().Info(round.node.ID, nil)
				return err == nil && n.SchedulingEligibility == "eligible" && n.DrainStrategy == nil
			})
		})
	}
}

// skewed is the address of a proxy before a Nomad agent that moves each time in
// an answer. For its clients the cluster has another clock.
func skewed(t *testing.T, agent string, by time.Duration) string {
	t.Helper()
	to, err := url.Parse(agent)
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[+-][0-9]{2}:[0-9]{2})"`)
	nanos := regexp.MustCompile(`:1[0-9]{18}\b`)
	seconds := regexp.MustCompile(`:1[0-9]{9}\b`)
	shift := func(unit time.Duration) func([]byte) []byte {
		return func(b []byte) []byte {
			n, err := strconv.ParseInt(string(b[1:]), 10, 64)
			if err != nil {
				return b
			}
			return strconv.AppendInt([]byte{':'}, n+int64(by/unit), 10)
		}
	}
	p := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Header.Set("Accept-Encoding", "identity")
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
		ModifyResponse: func(r *http.Response) error {
			body, err := io.ReadAll(r.Body)
			body = text.ReplaceAllFunc(body, func(b []byte) []byte {
				at, err := time.Parse(`"`+time.RFC3339Nano+`"`, string(b))
				if err != nil || at.Year() < 2000 {
					return b
				}
				return at.Add(by).AppendFormat(nil, `"`+time.RFC3339Nano+`"`)
			})
			body = seconds.ReplaceAllFunc(nanos.ReplaceAllFunc(body, shift(time.Nanosecond)), shift(time.Second))
			if at, bad := http.ParseTime(r.Header.Get("Date")); bad == nil {
				r.Header.Set("Date", at.Add(by).Format(http.TimeFormat))
			}
			r.ContentLength = int64(len(body))
			r.Header.Set("Content-Length", strconv.Itoa(len(body)))
			bad := r.Body.Close()
			r.Body = io.NopCloser(bytes.NewReader(body))
			return errors.Join(err, bad)
		},
	}
	s := httptest.NewServer(p)
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections) // blocking queries would hold Close
	return s.URL
}
