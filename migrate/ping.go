package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storagectl/storagectl/internal/host"
)

// pingDeadline bounds all tries of a ping: a service that is started by its
// socket opens the store first. pingTry bounds one: the first request to podman
// 3.0.1 after a start was seen to hang for good, and the next to be answered.
const (
	pingDeadline = 30 * time.Second
	pingTry      = 6 * time.Second
)

// ping asks the podman API behind a socket unit for a sign of life.
func (w *worker) ping(ctx context.Context, unit string) error {
	ctx, cancel := context.WithTimeout(ctx, pingDeadline)
	defer cancel()
	var path string
	if err := w.withBus(ctx, func(b *host.Bus) (err error) { path, err = b.SocketPath(ctx, unit); return err }); err != nil {
		return err
	}
	for {
		try, stop := context.WithTimeout(ctx, pingTry)
		err := pingOnce(try, path)
		hung := try.Err() != nil
		stop()
		if err == nil {
			return nil
		}
		// That podman also puts a socket of its own in the place of systemd's: for a
		// moment there is none.
		absent := errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
		if !hung && !absent || ctx.Err() != nil {
			return fmt.Errorf("cannot get a sign of life from podman's API on %s: %w", path, err)
		}
		if absent {
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

func pingOnce(ctx context.Context, path string) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://d/_ping", nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(res.Body, 200)) // only to tell what came instead
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s %q", res.Status, b)
	}
	return nil
}
