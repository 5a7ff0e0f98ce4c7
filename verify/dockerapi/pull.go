package dockerapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
)

// pullMissing is the policy IfNotPresent.
func (r *replay) pullMissing(ctx context.Context) (string, error) {
	if r.opts.Pull == "" {
		return "no image was named to be pulled", errLeft
	}
	_, err := r.client.ImageInspect(ctx, r.opts.Pull)
	switch {
	case err == nil:
		return "it is there: nothing is pulled", nil
	case !errdefs.IsNotFound(err):
		return "", fmt.Errorf("not a 404: %w", err)
	}
	r.pulled = true
	return r.pullAlways(ctx)
}

// pullAlways is the policy Always.
func (r *replay) pullAlways(ctx context.Context) (string, error) {
	if r.opts.Pull == "" {
		return "no image was named to be pulled", errLeft
	}
	if err := r.pull(ctx, r.opts.Pull); err != nil {
		return "", err
	}
	i, err := r.client.ImageInspect(ctx, r.opts.Pull)
	return i.ID, err
}

// pullError pulls what the registry has not. Clients that only read the stream take
// one without an error for done.
func (r *replay) pullError(ctx context.Context) (string, error) {
	if r.opts.Pull == "" {
		return "no image was named to be pulled", errLeft
	}
	err := r.pull(ctx, untagged(r.opts.Pull)+":storagectl-no-such-tag")
	var ended *streamError
	switch {
	case err == nil:
		return "the stream ends without an error: a worker takes the pull for done, and fails later", errOdd
	case ctx.Err() != nil:
		return "", err
	case errors.As(err, &ended):
		return "a line of the stream says so", nil
	}
	return "refused", nil
}

// untagged is a reference without its tag and digest.
func untagged(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		return ref[:i]
	}
	return ref
}

// streamError is what a line of a stream says went wrong.
type streamError struct{ text string }

func (e *streamError) Error() string { return "the stream says: " + e.text }

func (r *replay) pull(ctx context.Context, ref string) error {
	s, err := r.client.ImagePull(ctx, ref, image.PullOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // it was read
	return readStream(s)
}

// readStream reads lines of JSON to their end.
func readStream(s io.Reader) error {
	d := json.NewDecoder(io.LimitReader(s, 16<<20))
	for {
		var line struct {
			Error       string `json:"error"`
			ErrorDetail struct {
				Message string `json:"message"`
			} `json:"errorDetail"`
		}
		switch err := d.Decode(&line); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("cannot read the stream: %w", err)
		case line.Error != "":
			return &streamError{line.Error}
		case line.ErrorDetail.Message != "":
			return &streamError{line.ErrorDetail.Message}
		}
	}
}

func (r *replay) load(ctx context.Context) (string, error) {
	res, err := r.client.ImageLoad(ctx, bytes.NewReader(r.archive))
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }() // it was read
	return r.image, readStream(res.Body)
}
