package runbooks

import (
	"errors"
	"os"
	"strings"
	"testing"
)

const whole = `name = "mine"
description = "a test"

[params.user]
default = "hashi"

[params.commit]
type = "bool"
default = "false"

[params.size]
type = "size"
required = true

[params.fs]
one_of = ["xfs", "ext4"]

[[task]]
id = "move"
run = "relocate"
when = { driver = "vfs", free_below = "${size}" }
timeout = "2h"
on_failure = "continue"

[task.args]
rbd = "pool/${user}-img"
size = "${size}"
fs = "${fs}"
user = "${user}"
commit = "${commit}"
busy-label = ["a", "b"]
slots = 2

[[task]]
id = "tell"
run = "exec"
argv = ["echo", "$${HOME} of ${user}; $(id)"]

[window]
days = ["sat", "sun"]
start = "02:00"
length = "3h"
zone = "UTC"

[limits]
slots = 1
longest = "1d"

[hooks]
before-drain = [["prefect", "work-pool", "pause", "a b"]]
timeout = "30s"
`

// TestExpand: parameters are put in, in whole values and inside of them, and each
// task is a command line.
func TestExpand(t *testing.T) {
	t.Parallel()
	b, err := Parse([]byte(whole), "mine.toml")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := b.Expand(map[string]string{"size": "200GB", "user": "it's", "commit": "true"}, Known{})
	if err != nil {
		t.Fatal(err)
	}
	const want = `storagectl relocate --busy-label a --busy-label b --commit --rbd 'pool/it'\''s-img' --size 200G --slots 2 --user 'it'\''s' ` +
		`--window 'sat,sun 02:00 3h UTC' --hook-before 'prefect …' --hook-timeout 30s`
	if got := plan.Tasks[0].Line(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := plan.Tasks[1].Line(), `echo '${HOME} of it'\''s; $(id)'`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if w := plan.Tasks[0].When; w.FreeBelow != "200G" || w.User != "it's" || !plan.Tasks[0].Continue || plan.Longest.Hours() != 24 || plan.Tasks[1].Timeout != execTimeout {
		t.Errorf("%+v", plan)
	}
	// What is empty, or no, is left out.
	plan, err = b.Expand(map[string]string{"size": "1000", "user": ""}, Known{})
	if err != nil || strings.Contains(plan.Tasks[0].Line(), "--user") || strings.Contains(plan.Tasks[0].Line(), "--commit") || strings.Contains(plan.Tasks[0].Line(), "--fs") ||
		!strings.Contains(plan.Tasks[0].Line(), "--size 1k ") {
		t.Errorf("%v: %s", err, plan.Tasks[0].Line())
	}
}

// TestExpandRefuses: what is said for parameters, and what the commands do not know.
func TestExpandRefuses(t *testing.T) {
	t.Parallel()
	b, err := Parse([]byte(whole), "mine.toml")
	if err != nil {
		t.Fatal(err)
	}
	known := Known{Flags: map[string][]string{"relocate": {"busy-label", "commit", "rbd", "size", "fs", "slots", "users"}},
		Parse: func([]string) error { return errors.New("no such thing") }}
	for _, c := range []struct {
		params     map[string]string
		known      Known
		want, hint string
	}{
		{nil, Known{}, `needs the parameter "size"`, "--param size="},
		{map[string]string{"size": ""}, Known{}, `needs the parameter "size"`, ""},
		{map[string]string{"size": "much"}, Known{}, `"size" cannot be "much"`, "number of bytes"},
		{map[string]string{"size": "1", "fs": "btrfs"}, Known{}, `"fs" cannot be "btrfs"`, "one of xfs, ext4"},
		{map[string]string{"size": "1", "commit": "yes"}, Known{}, `"commit" cannot be "yes"`, "true or false"},
		{map[string]string{"size": "1", "usr": "x"}, Known{}, `no parameter "usr"`, `"user"`},
		{map[string]string{"size": "1"}, known, `line 29, column 1: relocate has no flag --user`, `"users"`},
		{map[string]string{"size": "1"}, Known{Flags: map[string][]string{"exec": nil}}, `line 20, column 1: this release has no command "relocate"`, ""},
		{map[string]string{"size": "1", "user": ""}, Known{Parse: known.Parse}, `line 18, column 3: no such thing`, "--help"},
	} {
		_, err := b.Expand(c.params, c.known)
		hint := ""
		var file *FileError
		var param *ParamError
		if errors.As(err, &file) {
			hint = file.Hint
		} else if errors.As(err, &param) {
			hint = param.Hint
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(hint, c.hint) {
			t.Errorf("%v: %v, hint %q; want %q, %q", c.params, err, hint, c.want, c.hint)
		}
	}
}

// TestParseRefuses: what is wrong is named with its place, and a key that is nearly
// right with the right one.
func TestParseRefuses(t *testing.T) {
	t.Parallel()
	const head = "name = \"x\"\n[[task]]\nid = \"a\"\nrun = \"exec\"\nargv = [\"true\"]\n"
	for text, want := range map[string]string{
		"windw = 1":                               `line 1, column 1: unknown key "windw" | did you mean "window"?`,
		"name = \"x\"\n\n  [windw]\nstart=\"1\"":  `line 3, column 4: unknown key "windw" | did you mean "window"?`,
		head + "wen = { driver = \"vfs\" }":       `line 6, column 1: unknown key "wen" | did you mean "when"?`,
		head + "when = { drivr = \"vfs\" }":       `line 6, column 10: unknown key "drivr" | did you mean "driver"?`,
		head + "when = { moon = \"full\" }":       `line 6, column 10: unknown key "moon" | the keys there are user, driver, free_below`,
		"name = \"x\"\n[params.a]\ntyp = \"int\"": `line 3, column 1: unknown key "typ" | did you mean "type"?`,
		"name = \"x":                             `line 1, column `,
		"name = 7":                               `of the wrong kind`,
		head + "timeout = 7":                     `of the wrong kind`,
		"":                                       `the runbook has no name`,
		"name = \"X\"":                           `line 1, column 1: the name of a runbook cannot be "X"`,
		"name = \"../x\"":                        `cannot be "../x"`,
		"name = \"x\"":                           `it has no task`,
		"name = \"x\"\n[[task]]\nrun = \"exec\"": `line 2, column 3: the id of a task cannot be ""`,
		head + "[[task]]\nid = \"a\"\nrun = \"verify\"":                                                     `line 7, column 1: two tasks are called "a"`,
		"name = \"x\"\n[[task]]\nid = \"commit\"":                                                           `line 3, column 1: the id "commit"`,
		"name = \"x\"\n[[task]]\nid = \"a\"\nrun = \"migrat\"":                                              `line 4, column 1: a task cannot run "migrat" | did you mean "migrate"?`,
		"name = \"x\"\n[[task]]\nid = \"a\"\nrun = \"exec\"":                                                `an exec task needs a command`,
		"name = \"x\"\n[[task]]\nid = \"a\"\nrun = \"verify\"\nargv = [\"x\"]":                              `line 5, column 1: argv is for exec tasks`,
		head + "args = { x = 1 }":                                                                           `line 6, column 1: an exec task has no args`,
		head + "on_failure = \"cry\"":                                                                       `line 6, column 1: on_failure cannot be "cry"`,
		head + "timeout = \"soon\"":                                                                         `line 6, column 1: task.timeout cannot be "soon"`,
		head + "timeout = \"-1s\"":                                                                          `task.timeout cannot be "-1s"`,
		head + "[limits]\nslots = -1":                                                                       `line 7, column 1: a number of slots`,
		head + "[hooks]\nafter-stop = [[]]":                                                                 `line 7, column 1: a hook has no command`,
		head + "[window]\ndays = [\"x\"]\nstart = \"02:00\"\nlength = \"1h\"":                               `line 7, column 1: "x" is no day`,
		"name = \"x\"\n[[task]]\nid = \"a\"\nrun = \"verify\"\nargs = { yes = true }":                       `line 5, column 10: a task cannot say --yes`,
		"name = \"x\"\n[[task]]\nid = \"a\"\nrun = \"verify\"\nargs = { sample = 0.5 }":                     `line 5, column 10: the value of "args.sample" is of the wrong kind`,
		"name = \"x\"\n[[task]]\nid = \"a\"\nrun = \"verify\"\nargs = { user = \"${usr}\" }\n[params.user]": `line 5, column 10: there is no parameter "usr" | did you mean ${user}?`,
		"name = \"x\"\n[[task]]\nid = \"a\"\nrun = \"exec\"\nargv = [\"x\", \"${y\"]":                       `there is no parameter "y"`,
		"name = \"x\"\n[params.a]\ntype = \"float\"":                                                        `line 3, column 1: there is no type "float"`,
		"name = \"x\"\n[params.a]\ntype = \"int\"\ndefault = \"x\"":                                         `line 4, column 1: "x" cannot be the value`,
		"name = \"x\"\n[params.a]\nrequired = true\ndefault = \"x\"":                                        `what must be said needs no default`,
		"name = \"x\"\n[params.a]\ntype = \"int\"\none_of = [\"1\", \"b\"]":                                 `line 4, column 1: "b" cannot be a value`,
		"name = \"x\"\n[params.A-b]":                                                                        `a parameter cannot be called "A-b"`,
		strings.Repeat("# x\n", 70_000):                                                                     `more than 262144 bytes`,
	} {
		b, err := Parse([]byte(text), "f.toml")
		var e *FileError
		if err == nil || !errors.As(err, &e) {
			t.Errorf("%q is taken, or with another error: %v %v", text, b, err)
			continue
		}
		if got := err.Error() + " | " + e.Hint; !strings.Contains(got, want) || !strings.HasPrefix(got, "cannot read runbook f.toml: ") {
			t.Errorf("%q:\n  got  %s\n  want %s", text, got, want)
		}
	}
}

// TestEmbedded: the runbooks that come with storagectl are whole, and called as
// their files.
func TestEmbedded(t *testing.T) {
	t.Parallel()
	all, err := List(t.TempDir())
	if err != nil || len(all) < 6 {
		t.Fatal(err, len(all))
	}
	for _, f := range all {
		if f.Err != nil {
			t.Error(f.Err)
			continue
		}
		if f.Runbook.Name != f.Name || f.Runbook.Description == "" || f.Origin != Embedded {
			t.Errorf("%s is called %q, and does %q", f.Name, f.Runbook.Name, f.Runbook.Description)
		}
		for name, p := range f.Runbook.Params {
			if p.Description == "" {
				t.Errorf("%s: nobody says what %s is", f.Name, name)
			}
		}
	}
}

// FuzzParse: no text makes it panic, and what it takes can be expanded, or the
// reason is told.
func FuzzParse(f *testing.F) {
	f.Add(whole)
	for _, name := range []string{"vfs-to-overlay", "restart-podman", "grow-rbd"} {
		b, err := os.ReadFile("embedded/" + name + ".toml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add("name = \"x\"\n[[task]]\nid = \"a\"\nrun = \"exec\"\nargv = [\"${\", \"$${\", \"}\"]\n[[task.x]]\n[[task.x.y]]\n")
	f.Add("a.b.c = { d = { e = [{ f = 1 }] } }\n\"ü\" = 1\n[x]\n[[x.y]]")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := Parse([]byte(text), "f.toml")
		var e *FileError
		if err != nil {
			if !errors.As(err, &e) {
				t.Fatalf("%v", err)
			}
			return
		}
		said := map[string]string{}
		for name, p := range b.Params {
			if p.Required {
				said[name] = "1"
			}
		}
		plan, err := b.Expand(said, Known{})
		var p *ParamError
		if err != nil && !errors.As(err, &e) && !errors.As(err, &p) {
			t.Fatalf("%v", err)
		}
		if err == nil && len(plan.Tasks) != len(b.Tasks) {
			t.Fatalf("%d tasks of %d", len(plan.Tasks), len(b.Tasks))
		}
	})
}
