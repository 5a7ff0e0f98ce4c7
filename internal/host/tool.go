package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const toolPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// NoToolError says that a program is not installed.
type NoToolError struct{ Name string }

func (e *NoToolError) Error() string {
	return fmt.Sprintf("cannot run %s: it is not installed (looked in %s)", e.Name, toolPath)
}

// tool runs a program of the system as root: found where the PATH of somebody
// who became root by su(1) does not lead, and with words that are not translated.
func (r *Runner) tool(ctx context.Context, timeout time.Duration, name string, args ...string) ([]byte, error) {
	for dir := range strings.SplitSeq(toolPath, ":") {
		path := filepath.Join(dir, name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return r.Run(ctx, Cmd{Argv: append([]string{path}, args...), Env: []string{"PATH=" + toolPath, "LC_ALL=C"}, Timeout: timeout})
		}
	}
	return nil, &NoToolError{name}
}

// exitCode gives the status of a program that ran, 0 without an error, and -1
// with any other error.
func exitCode(err error) int {
	var exit *ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	}
	return -1
}
