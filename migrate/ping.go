package migrate

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/storagectl/storagectl/internal/host"
)

// pingDeadline bounds a ping: a service that is started by its socket opens the
// store first, and podman 3.0.1's was seen to restart in a loop.
const pingDeadline = 30 * time.Second

// ping asks the podman API behind a socket unit for a sign of life.
func (w *worker) ping(ctx context.Context, unit string) error {
	ctx, cancel := context.WithTimeout(ctx, pingDeadline)
	defer cancel()
	var path string
	if err := w.withBus(ctx, func(b *host.Bus) (err error) { path, err = b.SocketPath(ctx, unit); return err }); err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://d/_ping", nil)
	if err != nil {
		return fmt.Errorf("cannot ask podman's API for a sign of life: %w", err)
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("cannot get a sign of life from podman's API on %s: %w", path, err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(res.Body, 200)) // only to tell what came instead
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("cannot get a sign of life from podman's API on %s: it answers %s %q", path, res.Status, b)
	}
	return nil
}
