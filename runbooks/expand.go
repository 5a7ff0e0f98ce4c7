package runbooks

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/tell"
)

// Known is what an expansion takes from the program around it. With the zero value
// the flags of the commands are not judged.
type Known struct {
	// Flags are the names of each command's flags.
	Flags map[string][]string
	// Parse judges a command line of storagectl's, from the command on.
	Parse func(argv []string) error
}

// Plan is a runbook with its parameters put in: what a run does. It stands in the
// journal, so that a run goes on as it was begun.
type Plan struct {
	Params map[string]string `json:"params,omitempty"`
	Tasks  []PlannedTask     `json:"tasks"`
	Window string            `json:"window,omitempty"` // "": at any time
	// WindowWait is how long the run waits for the window where it would stop else.
	WindowWait time.Duration `json:"windowWait,omitempty"`
	Longest    time.Duration `json:"longest,omitempty"` // 0: no limit

	OnFailure   [][]string    `json:"onFailure,omitempty"`
	HookTimeout time.Duration `json:"hookTimeout,omitempty"`
}

// PlannedTask is a task with its parameters put in.
type PlannedTask struct {
	ID   string   `json:"id"`
	Run  string   `json:"run"`
	Argv []string `json:"argv"` // a command of storagectl with its flags; of exec: the words of the command
	User string   `json:"user,omitempty"`
	When When     `json:"when,omitzero"`
	// Timeout is 0 where the command's own deadlines are enough.
	Timeout  time.Duration `json:"timeout,omitempty"`
	Continue bool          `json:"continue,omitempty"` // with the next task, if it fails
	Again    bool          `json:"again,omitempty"`
	Before   [][]string    `json:"before,omitempty"` // hooks before a drain
	After    [][]string    `json:"after,omitempty"`  // hooks after an undrain
	Back     [][]string    `json:"back,omitempty"`   // hooks after a drain is taken back
}

const (
	execTimeout = 10 * time.Minute
	hookTimeout = 2 * time.Minute
)

// Expand puts in the parameters, and says for each task the command line that it
// comes to. An error is a [*FileError] or a [*ParamError].
func (b *Runbook) Expand(params map[string]string, known Known) (Plan, error) {
	values, err := b.values(params)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Params: values, OnFailure: b.Hooks.OnFailure, HookTimeout: lengthOr(b.Hooks.Timeout, hookTimeout), Longest: lengthOr(b.Limits.Longest, 0)}
	if b.Window != nil {
		p.Window, p.WindowWait = b.Window.String(), b.WindowWait
	}
	for i, t := range b.Tasks {
		task, err := b.expandTask(fmt.Sprintf("task[%d]", i), t, values, known)
		if err != nil {
			return Plan{}, err
		}
		p.Tasks = append(p.Tasks, task)
	}
	return p, nil
}

func (b *Runbook) expandTask(at string, t Task, values map[string]string, known Known) (PlannedTask, error) {
	task := PlannedTask{ID: t.ID, Run: t.Run, User: fill(t.User, values), When: t.When, Continue: t.OnFailure == "continue", Again: t.Again}
	task.Timeout = lengthOr(t.Timeout, 0)
	for _, k := range task.When.texts() {
		*k.text = fill(*k.text, values)
	}
	if key, err := task.When.check(); err != nil {
		return task, b.wrong(at+".when."+key, err.Error(), "when.%s cannot be %q", key, task.When.text(key))
	}
	if t.Run == runExec {
		if task.Timeout == 0 {
			task.Timeout = execTimeout
		}
		if task.When.User == "" {
			task.When.User = task.User
		}
		for _, w := range t.Argv {
			task.Argv = append(task.Argv, fill(w, values))
		}
		return task, nil
	}
	flags, judged := known.Flags[t.Run]
	if known.Flags != nil && !judged {
		return task, b.wrong(at+".run", "", "this release has no command %q", t.Run)
	}
	task.Argv = []string{t.Run}
	said := map[string][]string{} // the words of each key
	for _, name := range sorted(t.Args) {
		if judged && !slices.Contains(flags, name) {
			hint := fmt.Sprintf("storagectl %s --help lists its flags", t.Run)
			if near := tell.Nearest(name, flags); near != "" {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			return task, b.wrong(at+".args."+name, hint, "%s has no flag --%s", t.Run, name)
		}
		list, err := wordsOf(t.Args[name])
		if err != nil {
			return task, b.wrong(at+".args."+name, err.Error(), "the value of %q is of the wrong kind", "args."+name)
		}
		for _, w := range list {
			said[name] = append(said[name], flagWords(name, fill(w, values), b.yesNo(t.Args[name]))...)
		}
		task.Argv = append(task.Argv, said[name]...)
	}
	if u, ok := t.Args["user"].(string); ok && task.When.User == "" {
		task.When.User = fill(u, values)
	}
	b.addAround(&task, t)
	if known.Parse != nil {
		if err := known.Parse(task.Argv); err != nil {
			return task, b.wrong(at+blamed(task.Argv, said, known, err), fmt.Sprintf("storagectl %s --help tells what it takes", t.Run), "%v", err)
		}
	}
	return task, nil
}

// blamed is the key of a task that its command refuses: the first one without which it
// says something else; "": none, it lacks one.
func blamed(argv []string, said map[string][]string, known Known, why error) string {
	for _, name := range sorted(said) {
		n := len(said[name])
		for i := 0; n > 0 && i+n <= len(argv); i++ {
			if !slices.Equal(argv[i:i+n], said[name]) {
				continue
			}
			if err := known.Parse(slices.Concat(argv[:i], argv[i+n:])); err == nil || err.Error() != why.Error() {
				return ".args." + name
			}
			break
		}
	}
	return ""
}

// yesNo reports whether a value is true or false, or a parameter that is.
func (b *Runbook) yesNo(v any) bool {
	if text, ok := v.(string); ok {
		name, found := strings.CutPrefix(text, "${")
		name, closed := strings.CutSuffix(name, "}")
		return found && closed && b.Params[name].Type == "bool"
	}
	_, is := v.(bool)
	return is
}

// flagWords are a flag and its value as one would type them. What is empty, or no, is
// left out.
func flagWords(name, word string, yesNo bool) []string {
	if yesNo {
		if word == "true" {
			return []string{"--" + name}
		}
		return nil
	}
	if word == "" {
		return nil
	}
	return []string{"--" + name, word}
}

// addAround adds what the rest of the file says to the task's command.
func (b *Runbook) addAround(task *PlannedTask, t Task) {
	h := b.Hooks
	switch {
	case t.Run == "drain":
		task.Before, task.Back = h.BeforeDrain, h.AfterReturn
	case t.Run == "undrain":
		task.After = h.AfterReturn
	case job(t.Run):
		if _, said := t.Args["slots"]; b.Limits.Slots > 0 && !said {
			task.Argv = append(task.Argv, "--slots", fmt.Sprint(b.Limits.Slots))
		}
		if b.Window != nil {
			task.Argv = append(task.Argv, "--window", b.Window.String())
			if b.WindowWait > 0 {
				task.Argv = append(task.Argv, "--window-wait", brief.Time(b.WindowWait))
			}
		}
		n := len(task.Argv)
		for _, f := range []struct {
			flag string
			list [][]string
		}{{"--hook-before", h.BeforeDrain}, {"--hook-after-stop", h.AfterStop}, {"--hook-before-start", h.BeforeStart}, {"--hook-after", h.AfterReturn}} {
			for _, argv := range f.list {
				text, _ := json.Marshal(argv) // strings always can be
				task.Argv = append(task.Argv, f.flag, string(text))
			}
		}
		if len(task.Argv) > n {
			task.Argv = append(task.Argv, "--hook-timeout", brief.Time(lengthOr(h.Timeout, hookTimeout)))
		}
	}
}

// lengthOr reads a length of time that was judged before.
func lengthOr(text string, other time.Duration) time.Duration {
	if d, err := parseDuration(text); err == nil && text != "" {
		return d
	}
	return other
}

// Line is the task as one would type it, but for the words of hooks.
func (t PlannedTask) Line() string {
	if t.Run == runExec {
		return Typed(t.Argv)
	}
	return "storagectl " + Typed(named(t.Argv))
}

// Typed is a command as one would type it into a shell.
func Typed(argv []string) string {
	words := make([]string, len(argv))
	for i, w := range argv {
		words[i] = w
		if w == "" || strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+:,./@%") != "" {
			words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}
