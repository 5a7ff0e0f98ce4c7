package tell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/host"
)

// run starts the target's program with the event on its stdin. It is killed with
// all that it started in its process group when its time is over. It is not tried
// twice: nobody knows how far it came.
func (l *line) run(ctx context.Context, e Event, body []byte) error {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/"
	}
	t := l.target
	_, err = (&host.Runner{}).Run(ctx, host.Cmd{
		Argv: t.Exec, Stdin: bytes.NewReader(body), Timeout: t.timeout(),
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home, "LANG=C.UTF-8",
			"STORAGECTL_POINT=" + string(e.Point), "STORAGECTL_RUN=" + e.Run},
	})
	var exit *host.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.Code >= 0:
		return fmt.Errorf("it exited with %d", exit.Code)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("it did not end within %s, and was killed", brief.Time(t.timeout()))
	case ctx.Err() != nil:
		return errors.New("it was killed, because no time was left")
	case errors.Is(err, os.ErrNotExist):
		return errors.New("there is no such program")
	}
	return errors.New("it could not be run, or was killed") // the error has its words, which may be secret
}
