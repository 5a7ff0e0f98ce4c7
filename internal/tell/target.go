package tell

import (
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
)

// Duration is a length of time that is written as 90s or 5m.
type Duration time.Duration

// UnmarshalText reads a length of time as people write it.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is no length of time, such as 10s or 2m", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes it as it is read.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Target is who hears of events: a webhook, or a program. Its struct tags are the
// keys of [[notify]] in the configuration and in a runbook; its doc tags are what
// the documents say of them.
type Target struct {
	On         []Point  `toml:"on,omitempty" json:"on,omitempty" doc:"points: begin, waiting, drained, stopped, started, done, failed, rolled-back, committed; left out: all"`
	URL        string   `toml:"url,omitempty" json:"url,omitempty" doc:"where a webhook is posted: https://…, or http://…; no user or password in it"`
	SecretFile string   `toml:"secret_file,omitempty" json:"secretFile,omitempty" doc:"a file, closed to others, whose content signs what is posted; white space around it does not count"`
	CAFile     string   `toml:"ca_file,omitempty" json:"caFile,omitempty" doc:"certificates (PEM) that the receiver's is judged by, instead of the host's"`
	Proxy      string   `toml:"proxy,omitempty" json:"proxy,omitempty" doc:"the URL of a proxy; left out: none, whatever the environment says"`
	Exec       []string `toml:"exec,omitempty" json:"exec,omitempty" doc:"instead of a URL: a program, by its absolute path, and its words; no shell reads them"`
	Timeout    Duration `toml:"timeout,omitempty" json:"timeout,omitempty" doc:"how long one attempt may take, 10s if left out, 5m at most"`
}

const (
	defaultTimeout = 10 * time.Second
	leastTimeout   = time.Millisecond // TOML's own numbers would be nanoseconds
	mostTimeout    = 5 * time.Minute
)

func (t Target) timeout() time.Duration {
	if t.Timeout == 0 {
		return defaultTimeout
	}
	return time.Duration(t.Timeout)
}

// Wants reports whether the target is to hear of a point.
func (t Target) Wants(p Point) bool { return len(t.On) == 0 || slices.Contains(t.On, p) }

// Name is the target for people. A URL may hold a secret in its path, and the
// words of a program, too.
func (t Target) Name() string {
	if len(t.Exec) > 0 {
		return filepath.Base(t.Exec[0])
	}
	if u, err := url.Parse(t.URL); err == nil {
		return u.Scheme + "://" + u.Host
	}
	return "a webhook"
}

// TargetError says which key of a [Target] is wrong, and what it can be. It does not
// repeat a URL, which may hold a secret.
type TargetError struct {
	Key  string // "": of the target as a whole
	Text string
	Hint string
}

func (e *TargetError) Error() string { return e.Text }

// Check refuses a target that cannot be told anything; nil: it can be.
func (t Target) Check() *TargetError {
	const file = "it is the path of a file from / on"
	for _, p := range t.On {
		if !slices.Contains(Points(), p) {
			return &TargetError{"on", fmt.Sprintf("there is no point %q to notify of", p), pointHint(p)}
		}
	}
	if d := t.timeout(); d < leastTimeout || d > mostTimeout {
		return &TargetError{"timeout", fmt.Sprintf("the timeout of a notification cannot be %s", brief.Time(d)),
			fmt.Sprintf("it is a length of time in quotes such as \"10s\", %s at most", brief.Time(mostTimeout))}
	}
	for _, f := range []struct{ key, path string }{{"secret_file", t.SecretFile}, {"ca_file", t.CAFile}} {
		switch {
		case f.path != "" && len(t.Exec) > 0:
			return &TargetError{f.key, f.key + " is for a url, not for exec", "leave one of the two out"}
		case f.path != "" && !filepath.IsAbs(f.path):
			return &TargetError{f.key, fmt.Sprintf("%s cannot be %q: it is not an absolute path", f.key, f.path), file}
		}
	}
	switch {
	case t.URL != "" && len(t.Exec) > 0:
		return &TargetError{"exec", "a notification has both url and exec", "leave one of the two out"}
	case t.URL == "" && len(t.Exec) == 0:
		return &TargetError{"", "a notification has neither url nor exec", "it wants one of them: where it is posted to, or the program that is told"}
	case len(t.Exec) > 0 && !filepath.IsAbs(t.Exec[0]):
		return &TargetError{"exec", fmt.Sprintf("exec cannot be %q: it is not an absolute path", t.Exec[0]), file}
	case len(t.Exec) > 0 && t.Proxy != "":
		return &TargetError{"proxy", "proxy is for a url, not for exec", "leave one of the two out"}
	case len(t.Exec) > 0:
		return nil
	}
	if err := checkURL("url", t.URL); err != nil || t.Proxy == "" {
		return err
	}
	return checkURL("proxy", t.Proxy)
}

// pointHint tells which points there are, or the one that may be meant.
func pointHint(p Point) string {
	var all []string
	for _, q := range Points() {
		all = append(all, string(q))
	}
	if near := Nearest(string(p), all); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "the points are " + strings.Join(all, ", ")
}

// checkURL does not repeat the URL: it may hold a secret.
func checkURL(key, text string) *TargetError {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return &TargetError{key, key + " is no URL that can be read", "it is https://HOST… or http://HOST…"}
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return &TargetError{key, key + " is neither https://HOST… nor http://HOST…", "it is one of these"}
	case u.User != nil:
		return &TargetError{key, key + " has a user or password in it, which does not belong there", "a webhook is signed with the content of secret_file"}
	}
	return nil
}
