package lab

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

// Machine names this machine in a report: its processors and its kernel.
func Machine() string {
	model := "unknown processor"
	cpus, _ := os.ReadFile("/proc/cpuinfo") // only for the text
	for line := range strings.Lines(string(cpus)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			model = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
			break
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d × %s, Linux %s, virtual machine", runtime.NumCPU(), model, strings.TrimSpace(string(kernel)))
}
