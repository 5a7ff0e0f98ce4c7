package drain

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestTaskAPI: in an allocation without NOMAD_ADDR the task API's socket is used,
// with the token of a file that is closed to others.
func TestTaskAPI(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "api.sock"))
	if err != nil {
		t.Fatal(err)
	}
	tokens := make(chan string, 1)
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tokens <- r.Header.Get("X-Nomad-Token")
		_, _ = w.Write([]byte(`"10.0.0.1:4647"`))
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })

	c := FromEnv(func(k string) string { return map[string]string{"NOMAD_SECRETS_DIR": dir, "NOMAD_TOKEN": "other"}[k] })
	c.TokenFile = filepath.Join(dir, "token")
	if err := os.WriteFile(c.TokenFile, []byte("from-file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := New(c); err == nil {
		t.Error("a token file that everybody can read is taken")
	}
	if err := os.Chmod(c.TokenFile, 0o600); err != nil {
		t.Fatal(err)
	}
	cl, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-tokens; got != "from-file" {
		t.Errorf("the token was %q", got)
	}
}

// TestNow: a run that began in an allocation goes on elsewhere.
func TestNow(t *testing.T) {
	env := Config{Address: "https://here:4646", token: newSecret("t")}
	for _, c := range []struct{ kept, env, want Config }{
		{Config{Address: "https://there:4646"}, env, Config{Address: "https://there:4646"}},
		{Config{Address: "unix:///no/such/api.sock", Region: "r"}, env, Config{Address: "https://here:4646", Region: "r"}},
		{Config{Address: "unix:///no/such/api.sock"}, Config{}, Config{}},
	} {
		got := c.kept.Now(c.env)
		if got.Address != c.want.Address || got.Region != c.want.Region || got.token.reveal() != c.env.token.reveal() {
			t.Errorf("%+v in %+v: %+v", c.kept, c.env, got)
		}
	}
}

// TestSecretAddress: an address with a password goes nowhere.
func TestSecretAddress(t *testing.T) {
	for _, addr := range []string{"http://bob:s3cret@127.0.0.1:1", "http://bob:s3%cret@127.0.0.1:1", "http://bob@127.0.0.1:1", "http://127.0.0.1:s3cret"} {
		_, err := New(Config{Address: addr})
		if err == nil || strings.Contains(err.Error(), "bob") || strings.Contains(err.Error(), "s3") {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// TestKeptFiles: a configuration is good in another folder, and after its token
// file is gone.
func TestKeptFiles(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	kept, err := Config{CACert: "ca.pem", ClientKey: "/etc/key", TokenFile: "token"}.Absolute()
	if want := filepath.Join(dir, "token"); err != nil || kept.TokenFile != want || kept.CACert != filepath.Join(dir, "ca.pem") || kept.ClientKey != "/etc/key" || kept.CAPath != "" {
		t.Errorf("%+v, %v", kept, err)
	}
	env := Config{token: newSecret("t")}
	if got := kept.Now(env); got.TokenFile != "" || got.token.reveal() != "t" {
		t.Errorf("the file is gone: %+v", got)
	}
	if got := kept.Now(Config{}); got.TokenFile == "" {
		t.Error("the file is forgotten where nothing is in its place")
	}
	if err := os.WriteFile("token", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := kept.Now(env); got.TokenFile != kept.TokenFile {
		t.Error("the file is there, and counts no more")
	}
}

// TestRedirect: no other server gets the token.
func TestRedirect(t *testing.T) {
	var tokens []string
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tokens = append(tokens, r.Header.Get("X-Nomad-Token"))
		_, _ = w.Write([]byte(`"x"`))
	}))
	t.Cleanup(other.Close)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/here" {
			tokens = append(tokens, r.Header.Get("X-Nomad-Token"))
			_, _ = w.Write([]byte(`"x"`))
			return
		}
		to := other.URL
		if r.URL.Query().Get("region") == "here" {
			to = "/here"
		}
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
	}))
	t.Cleanup(front.Close)
	for region, want := range map[string]bool{"": false, "here": true} {
		tokens = nil
		c, err := New(Config{Address: front.URL, Region: region, token: newSecret("t")})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Ping(t.Context()); (err == nil) != want || len(tokens) > 0 != want {
			t.Errorf("region %q: %v, %q", region, err, tokens)
		}
	}
}

// TestFromEnv: each variable of the nomad command counts as it does there.
func TestFromEnv(t *testing.T) {
	env := map[string]string{
		"NOMAD_ADDR": "https://n:4646", "NOMAD_REGION": "r", "NOMAD_NAMESPACE": "n", "NOMAD_CACERT": "/ca", "NOMAD_CAPATH": "/cas",
		"NOMAD_CLIENT_CERT": "/cert", "NOMAD_CLIENT_KEY": "/key", "NOMAD_TLS_SERVER_NAME": "s", "NOMAD_SKIP_VERIFY": "1", "NOMAD_TOKEN": "t",
	}
	c := FromEnv(func(k string) string { return env[k] })
	if got := c.token.reveal(); got != "t" {
		t.Errorf("token %q", got)
	}
	c.token = nil
	want := Config{Address: "https://n:4646", Region: "r", Namespace: "n", CACert: "/ca", CAPath: "/cas", ClientCert: "/cert", ClientKey: "/key",
		TLSServerName: "s", SkipVerify: true}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v", c)
	}
}
