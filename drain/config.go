// Package drain empties a host's Nomad nodes and gives them back, and waits for
// work that is not Nomad's. It offers plain verbs and believes only what it sees:
// Nomad's word that a drain is complete is one of several things that must hold.
package drain

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
)

// DefaultAddress is where the nomad command looks for an agent.
const DefaultAddress = "http://127.0.0.1:4646"

// Config is how to reach Nomad. It can be kept in a journal: the token is no
// part of its JSON, nor of what it prints as; only the path of a token file is.
type Config struct {
	Address       string `json:"address,omitempty"` // http(s)://… or unix:///path (the task API)
	Region        string `json:"region,omitempty"`
	Namespace     string `json:"namespace,omitempty"`
	CACert        string `json:"caCert,omitempty"`
	CAPath        string `json:"caPath,omitempty"`
	ClientCert    string `json:"clientCert,omitempty"`
	ClientKey     string `json:"clientKey,omitempty"` // path
	TLSServerName string `json:"tlsServerName,omitempty"`
	SkipVerify    bool   `json:"skipVerify,omitempty"`
	TokenFile     string `json:"tokenFile,omitempty"`

	token secret
}

// A secret is a function, because that prints as an address, wherever it stands.
type secret func() string

func newSecret(s string) secret { return func() string { return s } }

func (s secret) reveal() string {
	if s == nil {
		return ""
	}
	return s()
}

// FromEnv reads the variables that the nomad command reads. In an allocation
// without NOMAD_ADDR it is the task API's socket, where there is one.
func FromEnv(getenv func(string) string) Config {
	skip, _ := strconv.ParseBool(getenv("NOMAD_SKIP_VERIFY")) // not a bool: verify
	c := Config{
		Address: getenv("NOMAD_ADDR"), Region: getenv("NOMAD_REGION"), Namespace: getenv("NOMAD_NAMESPACE"),
		CACert: getenv("NOMAD_CACERT"), CAPath: getenv("NOMAD_CAPATH"),
		ClientCert: getenv("NOMAD_CLIENT_CERT"), ClientKey: getenv("NOMAD_CLIENT_KEY"),
		TLSServerName: getenv("NOMAD_TLS_SERVER_NAME"), SkipVerify: skip, token: newSecret(getenv("NOMAD_TOKEN")),
	}
	if dir := getenv("NOMAD_SECRETS_DIR"); c.Address == "" && dir != "" {
		if socket := filepath.Join(dir, "api.sock"); isSocket(socket) {
			c.Address = "unix://" + socket
		}
	}
	return c
}

func isSocket(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode()&os.ModeSocket != 0
}

// Now is a configuration that was kept, as it must be today: with the token of
// env, the caller's environment, and not at the task API's socket of an
// allocation that is over. A token file that is gone was that of another day: the
// caller's token counts then.
func (c Config) Now(env Config) Config {
	c.token = env.token
	if _, err := os.Stat(c.TokenFile); errors.Is(err, os.ErrNotExist) && env.token.reveal() != "" {
		c.TokenFile = ""
	}
	if path, is := strings.CutPrefix(c.Address, "unix://"); is && (env.Address != "" || !isSocket(path)) {
		c.Address = env.Address
	}
	return c
}

// Absolute is a configuration to be kept: who goes on with it may be elsewhere.
func (c Config) Absolute() (Config, error) {
	for _, path := range []*string{&c.CACert, &c.CAPath, &c.ClientCert, &c.ClientKey, &c.TokenFile} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return c, fmt.Errorf("cannot keep where Nomad's files are: %w", err)
		}
		*path = abs
	}
	return c, nil
}

// Client talks to Nomad.
type Client struct {
	Config Config
	// Point, if set, is called before each request that changes something. The
	// crash sweep kills the process there.
	Point func(string)
	// Marks are the drains that were set, by node id. A run that is resumed puts
	// in what it kept; a node without one is judged by its drain's Meta alone.
	Marks map[string]Mark
	api   *api.Client
}

// New makes a client. A token file counts before NOMAD_TOKEN; it is read now and
// must be closed to others than its owner and group. An address with a user's name
// or password is refused: addresses are kept and printed.
func New(c Config) (*Client, error) {
	if c.Address == "" {
		c.Address = DefaultAddress
	}
	// Not even the parser's own words are told: they have parts of the address.
	if u, err := parseAddress(c.Address); err != nil {
		return nil, errors.New("cannot use the address of Nomad: it is no URL")
	} else if u.User != nil {
		return nil, errors.New("cannot use the address of Nomad: it has a user's name or password in it; use a token")
	}
	token := c.token.reveal()
	if c.TokenFile != "" {
		fi, err := os.Stat(c.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read the Nomad token: %w", err)
		}
		if fi.Mode().Perm()&0o007 != 0 {
			return nil, fmt.Errorf("cannot use the token file %s: others can read or write it (mode %04o)", c.TokenFile, fi.Mode().Perm())
		}
		b, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read the Nomad token: %w", err)
		}
		token = strings.TrimSpace(string(b))
	}
	// The default configuration would read the environment once more.
	conf := &api.Config{
		Address: c.Address, Region: c.Region, Namespace: c.Namespace, SecretID: token,
		TLSConfig: &api.TLSConfig{CACert: c.CACert, CAPath: c.CAPath, ClientCert: c.ClientCert, ClientKey: c.ClientKey,
			TLSServerName: c.TLSServerName, Insecure: c.SkipVerify},
	}
	if !strings.HasPrefix(c.Address, "unix:") {
		var err error
		if conf.HttpClient, err = httpClient(conf.TLSConfig); err != nil {
			return nil, fmt.Errorf("cannot talk to Nomad at %s: %w", c.Address, err)
		}
	}
	cl, err := api.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("cannot talk to Nomad at %s: %w", c.Address, err)
	}
	// The library fills what is empty from the environment.
	cl.SetSecretID(token)
	return &Client{Config: c, api: cl}, nil
}

// httpClient follows a redirect on the same server alone: the token is in a header
// of Nomad's own, which Go would send to any other, too.
func httpClient(conf *api.TLSConfig) (*http.Client, error) {
	transport, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, errors.New("the program's HTTP transport was replaced")
	}
	transport = transport.Clone()
	transport.ForceAttemptHTTP2 = false
	transport.TLSHandshakeTimeout = 10 * time.Second
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	cl := &http.Client{Transport: transport, CheckRedirect: func(to *http.Request, via []*http.Request) error {
		if from := via[0].URL; len(via) > 5 || to.URL.Host != from.Host || to.URL.Scheme != from.Scheme {
			return http.ErrUseLastResponse // its code is told as what it is: not Nomad's answer
		}
		return nil
	}}
	return cl, api.ConfigureTLS(cl, conf)
}

// callLimit bounds one request that does not block on purpose.
const callLimit = 15 * time.Second

// query is a read that the leader answers: never stale.
func query(ctx context.Context) *api.QueryOptions {
	return (&api.QueryOptions{}).WithContext(ctx)
}

func write(ctx context.Context) *api.WriteOptions {
	return (&api.WriteOptions{}).WithContext(ctx)
}

// change is write for a request that changes what a run is about.
func (c *Client) change(ctx context.Context, what string) *api.WriteOptions {
	if c.Point != nil {
		c.Point("before nomad " + what)
	}
	return write(ctx)
}

// status is the HTTP status inside an error, 0 where no agent answered.
func status(err error) int {
	var u api.UnexpectedResponseError
	if errors.As(err, &u) && u.HasStatusCode() {
		return u.StatusCode()
	}
	return 0
}

// Answered says whether an agent answered at all with the error.
func Answered(err error) bool { return status(err) != 0 }

// passing says whether an error may go away by itself: no agent answers, there
// is no leader, too many requests.
func passing(err error) bool {
	s := status(err)
	return s == 0 || s == http.StatusTooManyRequests || s >= 500
}

// retry calls f until it succeeds, fails for good, or ctx ends. What it says
// then is f's last error.
func retry(ctx context.Context, f func(context.Context) error) error {
	wait := 200 * time.Millisecond
	for {
		call, cancel := context.WithTimeout(ctx, callLimit)
		err := f(call)
		cancel()
		if err == nil || !passing(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(wait): // nobody tells when a server is back
		}
		wait = min(2*wait, 3*time.Second)
	}
}

// Ping asks whether an agent answers and knows a leader.
func (c *Client) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var leader string
	_, err := c.api.Raw().Query("/v1/status/leader", &leader, query(ctx))
	if err != nil {
		return fmt.Errorf("cannot reach Nomad at %s: %w", c.Config.Address, err)
	}
	return nil
}
