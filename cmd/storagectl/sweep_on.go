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
// (1 is the first), or at the first one of that name. A point lies before each
// journal record, host command, worker request and change in Nomad; between two
// of them nothing changes, so that these are all the states there are. STORAGECTL_SWEEP_COUNT names a file for the number
// of points passed, STORAGECTL_SWEEP_LOG one for their names.
type sweep struct {
	point func(string)
	close func()
}

func newSweep() sweep {
	name := os.Getenv("STORAGECTL_SWEEP_KILL_AT")
	at, _ := strconv.ParseInt(name, 10, 64) // 0: it is a name
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
			if i == at || name == strings.TrimPrefix(what, "before ") {
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
