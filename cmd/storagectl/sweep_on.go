//go:build sweep

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// sweep kills this process at the point that STORAGECTL_SWEEP_KILL_AT numbers
// (1 is the first). A point lies before each journal record, host command and
// worker request; between two of them nothing changes, so that these are all
// the states there are. STORAGECTL_SWEEP_COUNT names a file for the number
// of points passed, STORAGECTL_SWEEP_LOG one for their names.
type sweep struct {
	point func(string)
	close func()
}

func newSweep() sweep {
	at, _ := strconv.ParseInt(os.Getenv("STORAGECTL_SWEEP_KILL_AT"), 10, 64)
	var n atomic.Int64
	var log *os.File
	if path := os.Getenv("STORAGECTL_SWEEP_LOG"); path != "" {
		log, _ = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	}
	return sweep{
		point: func(what string) {
			if !strings.HasPrefix(what, "before ") {
				return
			}
			i := n.Add(1)
			if log != nil {
				fmt.Fprintln(log, i, what)
			}
			if i == at {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		},
		close: func() {
			if path := os.Getenv("STORAGECTL_SWEEP_COUNT"); path != "" {
				_ = os.WriteFile(path, []byte(strconv.FormatInt(n.Load(), 10)), 0o600)
			}
		},
	}
}
