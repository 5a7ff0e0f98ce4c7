package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestHelp: each command says what it does and what its exit codes mean, each
// flag what it is for, and each example is one that the command line takes.
func TestHelp(t *testing.T) {
	fresh := func() *cobra.Command { return newRoot(&app{stdout: io.Discard, stderr: io.Discard}) }
	root := fresh()
	for _, c := range append(below(root), root) {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		t.Run(c.CommandPath(), func(t *testing.T) {
			exits := exitHelp
			switch c.Name() {
			case "doctor":
				exits = doctorExitHelp
			case "verify":
				exits = verifyExitHelp
			case "prune":
				exits = pruneExitHelp
			}
			if c.Short == "" || !strings.HasSuffix(c.Long, exits) || !strings.HasPrefix(c.Long, c.Name()+" ") {
				t.Errorf("its help is not whole: %q", c.Long)
			}
			c.Flags().VisitAll(func(f *pflag.Flag) {
				if f.Usage == "" {
					t.Errorf("--%s says nothing", f.Name)
				}
			})
			n := 0
			for line := range strings.Lines(c.Example) {
				if !strings.HasPrefix(line, "  storagectl") {
					continue
				}
				n++
				line, _, _ = strings.Cut(strings.TrimSpace(line), "   ")
				checkLine(t, fresh(), words(line))
			}
			if n == 0 {
				t.Error("no example")
			}
		})
	}
}

// TestHelpGroups: each flag of each command stands in one group of its help, and
// no group names a flag that no command has.
func TestHelpGroups(t *testing.T) {
	group := map[string]string{}
	for _, g := range flagGroups() {
		for _, name := range g.flags {
			if group[name] != "" {
				t.Errorf("--%s stands in two groups", name)
			}
			group[name] = g.title
		}
	}
	seen := map[string]bool{}
	root := newRoot(&app{stdout: io.Discard, stderr: io.Discard})
	for _, c := range append(below(root), root) {
		if c.Hidden {
			continue
		}
		c.InitDefaultHelpFlag()
		c.InitDefaultVersionFlag()
		title, told := "", map[string]string{} // by flag
		for line := range strings.Lines(c.UsageString()) {
			if line == strings.TrimLeft(line, " \n") {
				title = strings.TrimSuffix(line, ":\n")
			}
			if _, rest, is := strings.Cut(line, " --"); is && !strings.Contains(line, "storagectl ") {
				told[strings.Fields(rest)[0]] = title
			}
		}
		for _, flags := range []*pflag.FlagSet{c.LocalFlags(), c.InheritedFlags()} {
			flags.VisitAll(func(f *pflag.Flag) {
				if f.Hidden {
					return
				}
				seen[f.Name] = true
				if group[f.Name] == "" || told[f.Name] != group[f.Name] {
					t.Errorf("%s tells of --%s under %q, want %q: flagGroups has the groups", c.Name(), f.Name, told[f.Name], group[f.Name])
				}
			})
		}
	}
	for name := range group {
		if !seen[name] {
			t.Errorf("the group %q has --%s, and no command has", group[name], name)
		}
	}
}

// words splits a line of an example as a shell would.
func words(line string) []string {
	var w []string
	for i, part := range strings.Split(line, `"`) {
		if i%2 == 1 {
			w = append(w, part)
		} else {
			w = append(w, strings.Fields(part)...)
		}
	}
	return w
}

// checkLine fails the test if the command line would not be taken.
func checkLine(t *testing.T, root *cobra.Command, words []string) {
	t.Helper()
	c, rest, err := root.Find(words[1:])
	if err == nil {
		err = c.ParseFlags(rest)
	}
	if err == nil {
		err = c.ValidateArgs(c.Flags().Args())
	}
	if err != nil || c == root && len(words) > 1 && !slices.Contains(words, "--version") {
		t.Errorf("%s: %v", strings.Join(words, " "), err)
	}
}

// TestDocsCommands: each command of storagectl in the README and the documents
// is one that the command line takes.
func TestDocsCommands(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(files, "../../README.md") {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for line := range strings.Lines(string(b)) {
			line = strings.TrimSpace(line)
			for _, prompt := range []string{"# ", "$ "} {
				if cmd, ok := strings.CutPrefix(line, prompt+"storagectl "); ok {
					cmd, _, _ = strings.Cut(cmd, "   ")
					checkLine(t, newRoot(&app{}), words("storagectl "+cmd))
					n++
				}
			}
		}
		t.Logf("%s: %d", filepath.Base(path), n)
	}
}
