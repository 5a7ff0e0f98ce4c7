package runbooks

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/storagectl/storagectl/internal/tell"
)

// reserved are flags that a task cannot say: how a child is run is the run's own
// matter, and what stands elsewhere in the file is not said twice.
func reserved() map[string]string {
	const run = "the run itself says it to each task"
	return map[string]string{
		"yes": run, "json": run, "quiet": run, "state-dir": run, "parent": run, "now": "say --now to runbook run",
		"dry-run": "runbook show tells what would be done", "help": run, "version": run, "config": run,
		"window":      "say it in [window]",
		"hook-before": "say it in [hooks] as before-drain", "hook-after": "say it in [hooks] as after-return",
		"hook-after-stop": "say it in [hooks] as after-stop", "hook-before-start": "say it in [hooks] as before-start",
		"hook-timeout": "say it in [hooks] as timeout",
	}
}

// isName reports whether a runbook or a task can be called so: names are parts of
// file names and of the names of systemd's units.
func isName(text string) bool { return spelled(text, "-") && text[0] != '-' }

// isParam reports whether a parameter can be called so.
func isParam(text string) bool { return spelled(text, "_") && text[0] >= 'a' && text[0] <= 'z' }

// spelled reports whether a text is made of small letters, digits and more, and not
// too long for a file's name.
func spelled(text, more string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	return text != "" && len(text) < 64 && strings.Trim(text, letters+more) == ""
}

// check judges what can be judged without the commands' flags.
func (b *Runbook) check() error {
	const nameHint = "names are made of small letters, digits and dashes"
	if b.Name == "" {
		return b.wrong("name", "give it one at its top: name = \"weekly\"; "+nameHint, "the runbook has no name")
	}
	if !isName(b.Name) {
		return b.wrong("name", nameHint, "the name of a runbook cannot be %q", b.Name)
	}
	for _, name := range sorted(b.Params) {
		if err := b.checkParam(name); err != nil {
			return err
		}
	}
	if len(b.Tasks) == 0 {
		return b.wrong("task", "begin one with [[task]]", "it has no task")
	}
	var ids []string
	for i, t := range b.Tasks {
		at := fmt.Sprintf("task[%d]", i)
		switch {
		case !isName(t.ID):
			return b.wrong(at+".id", nameHint, "the id of a task cannot be %q", t.ID)
		case t.ID == commitStep:
			return b.wrong(at+".id", "call it otherwise", "the id %q is the last step's of a run", t.ID)
		case slices.Contains(ids, t.ID):
			return b.wrong(at+".id", "", "two tasks are called %q", t.ID)
		}
		ids = append(ids, t.ID)
		if err := b.checkTask(at, t); err != nil {
			return err
		}
	}
	if b.Limits.Slots < 0 {
		return b.wrong("limits.slots", "", "a number of slots cannot be below zero")
	}
	if err := b.checkDuration("limits.longest", b.Limits.Longest); err != nil {
		return err
	}
	for i, t := range b.Notify {
		if err := t.Check(); err != nil {
			return b.wrong(fmt.Sprintf("notify[%d].%s", i, err.Key), err.Hint, "%v", err)
		}
	}
	return b.checkHooks()
}

func (b *Runbook) checkTask(at string, t Task) error {
	if !slices.Contains(commands(), t.Run) {
		hint := "a task runs " + strings.Join(commands(), ", ")
		if near := tell.Nearest(t.Run, commands()); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		return b.wrong(at+".run", hint, "a task cannot run %q", t.Run)
	}
	if t.Run == runExec {
		switch {
		case len(t.Argv) == 0 || t.Argv[0] == "":
			return b.wrong(at+".argv", `such as argv = ["systemctl", "restart", "x"]`, "an exec task needs a command")
		case len(t.Args) > 0:
			return b.wrong(at+".args", "say the words in argv", "an exec task has no args")
		}
	} else {
		switch {
		case len(t.Argv) > 0:
			return b.wrong(at+".argv", "say its flags in args", "argv is for exec tasks")
		case t.User != "":
			return b.wrong(at+".user", `say args.user = "…"`, "user is for exec tasks")
		case t.Again:
			return b.wrong(at+".again", "", "again is for exec tasks: others can be resumed")
		}
	}
	if slices.ContainsFunc(t.Argv, func(w string) bool { return strings.ContainsRune(w, 0) }) {
		return b.wrong(at+".argv", "", "a word cannot have a zero byte")
	}
	for _, name := range sorted(t.Args) {
		if why := reserved()[name]; why != "" {
			return b.wrong(at+".args."+name, why, "a task cannot say --%s", name)
		}
		if _, err := wordsOf(t.Args[name]); err != nil {
			return b.wrong(at+".args."+name, err.Error(), "the value of %q is of the wrong kind", "args."+name)
		}
	}
	if t.OnFailure != "" && t.OnFailure != "stop" && t.OnFailure != "continue" {
		return b.wrong(at+".on_failure", "it is stop or continue", "on_failure cannot be %q", t.OnFailure)
	}
	if err := b.checkDuration(at+".timeout", t.Timeout); err != nil {
		return err
	}
	return b.checkRefs(at, t)
}

// checkRefs sees that each ${…} of a task names a parameter.
func (b *Runbook) checkRefs(at string, t Task) error {
	look := func(key, text string) error {
		for _, name := range refs(text) {
			if _, ok := b.Params[name]; !ok {
				hint := "parameters are made by [params.NAME]; $${ is a plain ${"
				if near := tell.Nearest(name, sorted(b.Params)); near != "" {
					hint = fmt.Sprintf("did you mean ${%s}?", near)
				}
				return b.wrong(at+"."+key, hint, "there is no parameter %q", name)
			}
		}
		return nil
	}
	for _, name := range sorted(t.Args) {
		list, _ := wordsOf(t.Args[name])
		for _, w := range list {
			if err := look("args."+name, w); err != nil {
				return err
			}
		}
	}
	for _, w := range t.Argv {
		if err := look("argv", w); err != nil {
			return err
		}
	}
	if err := look("user", t.User); err != nil {
		return err
	}
	for _, k := range t.When.texts() {
		if err := look("when."+k.key, *k.text); err != nil {
			return err
		}
	}
	return nil
}

func (b *Runbook) checkHooks() error {
	for _, h := range []struct {
		key  string
		list [][]string
	}{
		{"before-drain", b.Hooks.BeforeDrain}, {"after-stop", b.Hooks.AfterStop}, {"before-start", b.Hooks.BeforeStart},
		{"after-return", b.Hooks.AfterReturn}, {"on-failure", b.Hooks.OnFailure},
	} {
		for _, argv := range h.list {
			if len(argv) == 0 || argv[0] == "" || slices.ContainsFunc(argv, func(w string) bool { return strings.ContainsRune(w, 0) }) {
				return b.wrong("hooks."+h.key, `hooks are lists of words: [["systemctl", "stop", "x"]]`, "a hook has no command")
			}
		}
	}
	return b.checkDuration("hooks.timeout", b.Hooks.Timeout)
}

func (b *Runbook) checkDuration(path, text string) error {
	if text == "" {
		return nil
	}
	if d, err := parseDuration(text); err != nil || d <= 0 {
		key := regexp.MustCompile(`\[\d+\]`).ReplaceAllString(path, "")
		return b.wrong(path, durationHint, "%s cannot be %q", key, text)
	}
	return nil
}
