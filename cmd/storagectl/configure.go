package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/internal/tell"
	"github.com/storagectl/storagectl/migrate"
)

// defaultConfig is where the configuration is looked for: root's is not for the runs
// of users, who could not write where it says.
func defaultConfig() string {
	if os.Getuid() == 0 {
		return "/etc/storagectl/storagectl.toml"
	}
	base := os.Getenv("XDG_CONFIG_HOME")
	if home, err := os.UserHomeDir(); base == "" && err == nil {
		base = filepath.Join(home, ".config")
	}
	return filepath.Join(base, "storagectl", "storagectl.toml")
}

// configure reads the configuration. One that is not there is empty, unless it was
// asked for; one that cannot be used is a refusal.
func (a *app) configure() error {
	path := a.configFile
	if path == "" {
		path = defaultConfig()
	}
	c, err := tell.LoadConfig(path)
	var bad *tell.ConfigError
	switch {
	case err == nil:
		a.conf = c
		return nil
	case errors.Is(err, os.ErrNotExist) && a.configFile == "":
		return nil
	case errors.As(err, &bad):
		return &migrate.Refusal{ID: "config", Text: err.Error(), Hint: bad.Hint}
	case errors.Is(err, os.ErrNotExist):
		return &migrate.Refusal{ID: "config", Text: fmt.Sprintf("cannot read the configuration: %s is not there", path), Hint: "give another --config, or none"}
	}
	return &migrate.Refusal{ID: "config", Text: fmt.Sprintf("the configuration %s cannot be used: %v", path, err), Hint: "give another one by --config, or mend it"}
}

// configureAnyhow is configure for what goes on with a run: nobody should have to
// mend a file before a run can be rolled back.
func (a *app) configureAnyhow() {
	if err := a.configure(); err != nil {
		a.untold = true
		a.out.note(err.Error() + "; nobody is told of this but the journals")
	}
}

// audit is where it is told who had what done.
func (a *app) audit() tell.Audit { return a.auditOf(a.conf.Audit.File) }

// auditOf is the audit in a file; "": in the state directory.
func (a *app) auditOf(file string) tell.Audit {
	if file == "" {
		file = filepath.Join(a.stateDir, "audit.jsonl")
	}
	return tell.Audit{Path: file}
}

// actor is who runs this command.
func (a *app) actor() *engine.Actor {
	who := &engine.Actor{Command: a.command, UID: os.Getuid(), LoginUID: -1, SudoUser: os.Getenv("SUDO_USER")}
	if b, err := os.ReadFile("/proc/self/loginuid"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32); err == nil && n != 1<<32-1 {
			who.LoginUID = int(n)
		}
	}
	return who
}
