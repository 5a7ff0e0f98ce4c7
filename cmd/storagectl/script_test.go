package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"storagectl": func() { os.Exit(run()) }})
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
