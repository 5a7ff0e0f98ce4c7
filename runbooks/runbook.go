// Package runbooks runs what is written down once and done again and again: a
// runbook is a TOML file with tasks in order, and a run of it does each as the
// command of storagectl that the task names. So the command line and its exit codes
// are all that a runbook knows of the jobs, and each job stays whole by itself.
package runbooks

import (
	"time"

	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/internal/window"
)

// Dir is where an operator's own runbooks lie.
const Dir = "/etc/storagectl/runbooks.d"

// Embedded is the origin of a runbook that comes with storagectl.
const Embedded = "embedded"

// Runbook is what a file says. The keys of the file, and what docs/runbooks.md tells
// of them, are the tags of its fields.
type Runbook struct {
	Name        string           `toml:"name" doc:"small letters, digits and dashes; a file in runbooks.d is called NAME.toml"`
	Description string           `toml:"description" doc:"a line for people"`
	Params      map[string]Param `toml:"params" doc:"what can be said at each run by --param; the key is its name"`
	Tasks       []Task           `toml:"task" doc:"what is done, in this order"`
	Limits      Limits           `toml:"limits" doc:"what the run may take"`
	Hooks       Hooks            `toml:"hooks" doc:"commands at points of the run"`
	Notify      []tell.Target    `toml:"notify" doc:"who hears of the run as a whole, besides those of the configuration"`

	// Window is nil where the file has none.
	Window *window.Window `toml:"-"`
	// WindowWait is how long a run waits for its window where it would stop else.
	WindowWait time.Duration `toml:"-"`
	// Origin is the file's path, or [Embedded]; Text is what stands in it.
	Origin string `toml:"-"`
	Text   string `toml:"-"`

	places tell.Places
}

// file is a runbook as TOML has it.
type file struct {
	Runbook
	Window *window.Table `toml:"window" doc:"when the host may be out of service; without it at any time"`
}

// Param is a parameter of a runbook.
type Param struct {
	Type        string   `toml:"type" json:"type,omitempty" doc:"string (the default), int, bool, size (20GB; of 1000) or duration (90m, 7d)"`
	Default     *string  `toml:"default" json:"default,omitempty" doc:"its value where none is said, as a string; without it \"\""`
	Required    bool     `toml:"required" json:"required,omitempty" doc:"it must be said"`
	OneOf       []string `toml:"one_of" json:"oneOf,omitempty" doc:"the values that it can have"`
	Description string   `toml:"description" json:"description,omitempty" doc:"a line for people"`
}

// Task is one thing that a runbook does.
type Task struct {
	ID        string         `toml:"id" doc:"small letters, digits and dashes; its name in the journal"`
	Run       string         `toml:"run" doc:"migrate, relocate, prune, verify, doctor, drain, undrain, or exec"`
	Args      map[string]any `toml:"args" doc:"flags of that command without their dashes: a string, a number, true, or a list for a flag that is said again. An empty string and false leave the flag out"`
	Argv      []string       `toml:"argv" doc:"of exec: the command, word by word; no shell runs"`
	User      string         `toml:"user" doc:"of exec: who runs it, with that user's environment (default: the caller)"`
	Again     bool           `toml:"again" doc:"of exec: it may be run once more where nobody can tell whether it came to its end"`
	When      When           `toml:"when" doc:"conditions: the task is left out unless all of them hold"`
	Timeout   string         `toml:"timeout" doc:"how long it may take (exec: 10m; others have deadlines of their own)"`
	OnFailure string         `toml:"on_failure" doc:"stop (the default), or continue with the next task"`
}

// When are the conditions of a task. They are looked at right before it begins.
type When struct {
	User             string `toml:"user" json:"user,omitempty" doc:"whose store the others are about (default: the task's own user, else the caller)"`
	Driver           string `toml:"driver" json:"driver,omitempty" doc:"the store is on this driver: vfs, overlay, btrfs, zfs"`
	FreeBelow        string `toml:"free_below" json:"freeBelow,omitempty" doc:"less than this is free where the store lies: 20GB"`
	FreeAbove        string `toml:"free_above" json:"freeAbove,omitempty" doc:"more than this is free there"`
	LastSuccessOlder string `toml:"last_success_older" json:"lastSuccessOlder,omitempty" doc:"a run of this runbook did this task longer ago, 7d, or none ever did"`
	NodeClass        string `toml:"node_class" json:"nodeClass,omitempty" doc:"Nomad's node of this host has this class"`
	Nomad            *bool  `toml:"nomad" json:"nomad,omitempty" doc:"true: Nomad places containers in the store; false: it does not"`
	PodmanAtLeast    string `toml:"podman_at_least" json:"podmanAtLeast,omitempty" doc:"podman is of this release or a later one: 4.3"`
	Rootless         *bool  `toml:"rootless" json:"rootless,omitempty" doc:"true: the store is a user's; false: it is root's"`
}

// Limits bound a run.
type Limits struct {
	Slots   int    `toml:"slots" doc:"at most so many nodes of the cluster in maintenance at a time: --slots of migrate and relocate"`
	Longest string `toml:"longest" doc:"after this no further task begins, and the one under way stops at a safe point, unless a job or a drain task has the host out of service"`
}

// Hooks are commands, each a list of words, that run one after the other.
type Hooks struct {
	BeforeDrain [][]string `toml:"before-drain" doc:"before a node is taken out of service: --hook-before of migrate and relocate; also before a drain task"`
	AfterStop   [][]string `toml:"after-stop" doc:"once podman is stopped: --hook-after-stop"`
	BeforeStart [][]string `toml:"before-start" doc:"before it is started again: --hook-before-start"`
	AfterReturn [][]string `toml:"after-return" doc:"once the node takes work again: --hook-after; also after an undrain task"`
	OnFailure   [][]string `toml:"on-failure" doc:"when the run stops because a task failed; STORAGECTL_TASK and STORAGECTL_ERROR tell which and why"`
	Timeout     string     `toml:"timeout" doc:"what each of them gets (2m)"`
}

// The commands that a task can run besides those of storagectl.
const runExec = "exec"

// job reports whether a task makes a run of its own, which can be resumed.
func job(run string) bool { return run == "migrate" || run == "relocate" }

// commands are what a task can run.
func commands() []string {
	return []string{"migrate", "relocate", "prune", "verify", "doctor", "drain", "undrain", runExec}
}

// commitStep is the name of the last step of a run whose jobs keep an old store.
const commitStep = "commit"
