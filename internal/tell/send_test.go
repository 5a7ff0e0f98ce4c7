package tell

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// told sends one event to a target, with little patience, and returns what went wrong.
func told(t *testing.T, target Target, patience time.Duration) string {
	t.Helper()
	if err := target.Check(); err != nil {
		t.Fatal(err)
	}
	s := newSender([]Target{target}, time.Millisecond)
	s.Send(Event{Point: Stopped, Run: "0001-migrate-aaaa", Text: "podman <is> stopped"})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all []string
	for _, err := range s.Close(ctx) {
		all = append(all, err.Error())
	}
	return strings.Join(all, "\n")
}

func secret(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestWebhook: what arrives is the event, signed over its time and its exact bytes.
func TestWebhook(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	ids := make(chan string, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var e Event
		if err := json.Unmarshal(body, &e); err != nil || e.Point != Stopped || e.ID == "" || e.ID != r.Header.Get(headerDelivery) {
			t.Errorf("%s, %v, delivery %s", body, err, r.Header.Get(headerDelivery))
		}
		if want := Sign([]byte("hush"), r.Header.Get(headerTimestamp), body); r.Header.Get(headerSignature) != want {
			t.Errorf("signature %q, want %q", r.Header.Get(headerSignature), want)
		}
		ids <- e.ID
		if calls.Add(1) < 3 { // it comes to itself
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	defer srv.Close()
	if got := told(t, Target{URL: srv.URL + "/x", SecretFile: secret(t, "hush\n", 0o600)}, 10*time.Second); got != "" {
		t.Errorf("it was told, and says %s", got)
	}
	if calls.Load() != 3 || len(ids) != 3 {
		t.Fatalf("%d attempts", calls.Load())
	}
	if first, again := <-ids, <-ids; first != again {
		t.Errorf("an event has two ids: %s, %s", first, again)
	}
}

// TestSignature: a signature is what openssl makes of time, dot and body.
func TestSignature(t *testing.T) {
	const want = "sha256=2c63a924d377d7929d356a7505026d85a2457ee89c8be06baba7af7d3e12c579"
	if got := Sign([]byte("hush"), "1700000000", []byte(`{"point":"done"}`)); got != want {
		t.Errorf("%q", got)
	}
}

// TestWebhookBadDays: a receiver that is down, slow, elsewhere or of another mind costs
// a line, and nothing of the URL but its host is told.
func TestWebhookBadDays(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	var elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	t.Cleanup(other.Close)
	var tried atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/slow"):
			<-hang
		case strings.HasPrefix(r.URL.Path, "/moved"):
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		case strings.HasPrefix(r.URL.Path, "/no"):
			tried.Add(1)
			w.WriteHeader(http.StatusForbidden)
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(hang) })
	gone := httptest.NewServer(nil)
	gone.Close()
	for name, c := range map[string]struct {
		target Target
		want   string
	}{
		"down":       {Target{URL: gone.URL + "/sEcReT"}, "connection refused"},
		"slow":       {Target{URL: srv.URL + "/slow/sEcReT", Timeout: Duration(50 * time.Millisecond)}, "did not answer within 50ms"},
		"redirect":   {Target{URL: srv.URL + "/moved/sEcReT"}, "answers 307: a redirect is not followed"},
		"forbidden":  {Target{URL: srv.URL + "/no/sEcReT"}, "answers 403"},
		"broken":     {Target{URL: srv.URL + "/sEcReT"}, "answers 500"},
		"open file":  {Target{URL: srv.URL, SecretFile: secret(t, "sEcReT", 0o644)}, "can be read by others"},
		"no file":    {Target{URL: srv.URL, SecretFile: "/nonexistent/file"}, "no such file"},
		"no tls":     {Target{URL: strings.Replace(srv.URL, "http:", "https:", 1) + "/sEcReT"}, "HTTPS"},
		"dead proxy": {Target{URL: srv.URL + "/sEcReT", Proxy: gone.URL}, "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			got := told(t, c.target, 3*time.Second)
			if !strings.Contains(got, c.want) || strings.Contains(got, "sEcReT") {
				t.Errorf("%s, want %q", got, c.want)
			}
			if d := time.Since(began); d > 20*time.Second {
				t.Errorf("it took %s", d)
			}
		})
	}
	t.Cleanup(func() {
		if n := elsewhere.Load(); n > 0 {
			t.Errorf("the event went to another host %d times", n)
		}
		if n := tried.Load(); n > 1 {
			t.Errorf("who said no was asked %d times", n)
		}
	})
}

// TestNotHeldUp: who is slow holds up neither the run nor who is told besides.
func TestNotHeldUp(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer slow.Close()
	defer close(hang)
	heard := make(chan Point, 10)
	quick := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var e Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		heard <- e.Point
	}))
	defer quick.Close()
	s := newSender([]Target{{URL: slow.URL}, {URL: quick.URL, On: []Point{Begin, Done}}}, time.Millisecond)
	for _, p := range []Point{Begin, Stopped, Done} {
		s.Send(Event{Point: p})
	}
	if a, b := <-heard, <-heard; a != Begin || b != Done {
		t.Errorf("heard %s, %s", a, b)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // the quick one's answer is still on its way
	defer cancel()
	if missed := s.Close(ctx); len(missed) != 3 {
		t.Errorf("missed: %v", missed)
	}
}

// TestProgram: a program gets the event on its stdin and no shell; one that hangs is
// killed with what it started.
func TestProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	if got := told(t, Target{Exec: []string{"/bin/sh", "-c", `cat >"$0"; echo "$STORAGECTL_POINT" >>"$0"; env | grep -c SUDO >>"$0"; true`, out}}, 10*time.Second); got != "" {
		t.Error(got)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), `"text":"podman <is> stopped"`) || !strings.HasSuffix(string(b), "\nstopped\n0\n") {
		t.Errorf("%s", b)
	}

	pid := filepath.Join(dir, "pid")
	got := told(t, Target{Exec: []string{"/bin/sh", "-c", `sleep 1000 & echo $! >"$0"; wait`, pid}, Timeout: Duration(3 * time.Second)}, 20*time.Second)
	if !strings.Contains(got, "sh was not told") || !strings.Contains(got, "did not end within 3s, and was killed") {
		t.Error(got)
	}
	if b, err = os.ReadFile(pid); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(b)), "stat"))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("what the program started lives on")
		}
	}
	for want, argv := range map[string][]string{"exited with 3": {"/bin/sh", "-c", "exit 3"}, "no such program": {"/nonexistent/prog"}} {
		if got := told(t, Target{Exec: argv}, 10*time.Second); !strings.Contains(got, want) {
			t.Errorf("%s, want %q", got, want)
		}
	}
}
