package main

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"storagectl": func() { os.Exit(run()) }, "acts": acts})
}

// acts is a command that acts on the host, whose terminal hangs up and whose
// reader goes: it comes to its end, and makes the file that it is told.
func acts() {
	outlast()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		os.Exit(1)
	}
	// At once where the reader is gone; else when it goes.
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stdout.WriteString("x\n"); errors.Is(err, syscall.EPIPE) {
			// What it starts must not be deaf to these.
			if err := exec.Command("sh", "-c", "kill -HUP $$; exit 0").Run(); err == nil {
				os.Exit(1)
			}
			if os.WriteFile(os.Args[1], nil, 0o600) == nil {
				os.Exit(0)
			}
		}
	}
	os.Exit(1)
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// exits N COMMAND…: the command must end with exactly this status.
			"exits": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: exits N COMMAND…")
				}
				code := "0"
				if err := ts.Exec(args[1], args[2:]...); err != nil {
					code = err.Error()
				} else if args[0] == "0" {
					return
				}
				if code != "exit status "+args[0] {
					ts.Fatalf("%v: %s, want exit status %s", args[1:], code, args[0])
				}
			},
		},
	})
}
