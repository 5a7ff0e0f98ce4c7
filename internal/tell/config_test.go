package tell

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storagectl/storagectl/internal/host"
)

const whole = `
[metrics]
dir = "/var/lib/prometheus/node-exporter"

[audit]
file = "/srv/audit/storagectl.jsonl"

[[notify]]
on = ["failed", "rolled-back"]
url = "https://hooks.example.org/x"
secret_file = "/etc/storagectl/secret"
timeout = "5s"

[[notify]]
exec = ["/usr/local/bin/page", "--now"]
`

// TestConfig: what is written is what is read.
func TestConfig(t *testing.T) {
	c, err := readConfig("f", []byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	if c.Metrics.Dir != "/var/lib/prometheus/node-exporter" || c.Audit.File != "/srv/audit/storagectl.jsonl" || len(c.Notify) != 2 ||
		c.Notify[0].timeout() != 5*time.Second || c.Notify[0].Wants(Done) || !c.Notify[0].Wants(Failed) ||
		c.Notify[1].timeout() != 10*time.Second || !c.Notify[1].Wants(Done) || !slices.Equal(c.Notify[1].Exec, []string{"/usr/local/bin/page", "--now"}) {
		t.Errorf("%+v", c)
	}
	if c, err := readConfig("f", nil); err != nil || c.Metrics.Dir != "" {
		t.Errorf("of nothing: %+v, %v", c, err)
	}
}

// TestConfigBad: what is wrong is named with its line and column, and a URL is not
// repeated.
func TestConfigBad(t *testing.T) {
	for text, want := range map[string]string{
		"[metrics]\ndri = \"/x\"":                           `line 2, column 1: unknown key "metrics.dri"`,
		"[metric]\ndir = \"/x\"":                            `line 1, column 2: unknown key "metric"`,
		"[metrics]\ndir = 7":                                "line 2, column 7: ",
		"[metrics\ndir = 7":                                 "line 1, column 9: ",
		"[metrics]\ndir = \"x\"":                            `line 2, column 1: metrics.dir cannot be "x": it is not an absolute path`,
		"[audit]\nfile = \"x\"":                             `line 2, column 1: audit.file cannot be "x": it is not an absolute path`,
		"[[notify]]":                                        "line 1, column 3: [[notify]] number 1: a notification has neither url nor exec",
		"[[notify]]\nurl = \"http://h\"\nexec = [\"/x\"]":   "line 3, column 1: [[notify]] number 1: a notification has both url and exec",
		"[[notify]]\nexec = [\"x\"]":                        "not an absolute path",
		"[[notify]]\nexec = [\"/x\"]\nsecret_file = \"/y\"": "for a url, not for exec",
		"[[notify]]\nurl = \"ftp://sEcReT\"":                "line 2, column 1: [[notify]] number 1: url is neither",
		"[[notify]]\nurl = \"https://u:sEcReT@h\"":          "url has a user or password",
		"[[notify]]\nurl = \"http://h\"\non = [\"end\"]":    `no point "end"`,
		"[[notify]]\nurl = \"http://h\"\ntimeout = \"1h\"":  "timeout of a notification cannot be 1h",
		"[[notify]]\nurl = \"http://h\"\ntimeout = \"x\"":   `"x" is no length of time`,
		"[[notify]]\nurl = \"http://h\"\ntimeout = 5":       "timeout of a notification cannot be 5ns",
	} {
		_, err := readConfig("f", []byte(text))
		var bad *ConfigError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error()+bad.Hint, "sEcReT") || strings.Contains(text, "[[notify]]") && bad.Line == 0 {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	_, err := readConfig("f", []byte("[metrics]\ndri = \"/x\""))
	var bad *ConfigError
	if errors.As(err, &bad); bad == nil || bad.Hint != "did you mean metrics.dir?" {
		t.Errorf("%+v", bad)
	}
	for point, want := range map[string]string{"begn": `did you mean "begin"?`, "whatever": "the points are begin, waiting, drained, stopped, started, done, failed, rolled-back, committed"} {
		_, err := readConfig("f", fmt.Appendf(nil, "[[notify]]\nurl = \"http://h\"\non = [%q]", point))
		if errors.As(err, &bad); bad == nil || bad.Hint != want || bad.Line != 3 {
			t.Errorf("%s: %+v", point, bad)
		}
	}
}

// FuzzConfig: nothing that can stand in a file stops the program.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte("[[notify]]\nurl = \"http://[::1\""))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := readConfig("f", b); err == nil {
			for _, n := range c.Notify {
				if n.Name() == "" || n.timeout() < 0 {
					t.Errorf("%+v", n)
				}
			}
		}
	})
}

// TestConfigOfAnother: root follows no file that another could have written.
func TestConfigOfAnother(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "storagectl.toml")
	write := func() {
		t.Helper()
		if err := os.WriteFile(path, []byte(whole), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func(want string) {
		t.Helper()
		_, err := LoadConfig(path)
		var bad *ConfigError
		if want == "" && err != nil || want != "" && (!errors.As(err, &bad) || !strings.Contains(err.Error(), want) || bad.Hint == "") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	write()
	read("")
	if err := os.Chmod(path, 0o664); err != nil {
		t.Fatal(err)
	}
	read("can be written by others")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	read("its folder " + dir + " can be written by others")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// A link is as good as what it leads to.
	link := filepath.Join(t.TempDir(), "link.toml")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(link); err != nil {
		t.Error(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(path, 4711, 0); err != nil {
			t.Fatal(err)
		}
		read("belongs to the user with id 4711, not to root")
		if err := os.Chown(path, 0, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, 4711, 0); err != nil {
			t.Fatal(err)
		}
		read("its folder " + dir + " belongs to the user with id 4711")
	}
	if _, err := LoadConfig(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	var foreign *host.UntrustedError
	if _, err := host.ReadTrusted("/dev/null"); !errors.As(err, &foreign) {
		t.Error(err)
	}
}
