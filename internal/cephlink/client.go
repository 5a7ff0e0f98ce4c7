package cephlink

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/storagectl/storagectl/internal/host"
)

// Helper is the name of the helper's program.
const Helper = "storagectl-ceph"

// Times that a request and the end of a helper may take.
const (
	answerTime = 60 * time.Second // where the caller's context has no nearer deadline
	endTime    = 3 * time.Second
	lastWord   = 20 * time.Millisecond
)

// Find returns the helper's path: beside this program, in
// /usr/libexec/storagectl, or in the PATH.
func Find() (string, error) {
	var places []string
	if exe, err := os.Executable(); err == nil {
		places = append(places, filepath.Join(filepath.Dir(exe), Helper))
	}
	places = append(places, filepath.Join("/usr/libexec/storagectl", Helper))
	for _, p := range places {
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	p, err := exec.LookPath(Helper)
	if err != nil {
		return "", noHelper(fmt.Sprintf("%s is neither beside storagectl, nor in /usr/libexec/storagectl, nor in the PATH", Helper), nil)
	}
	return filepath.Abs(p)
}

func noHelper(text string, err error) error {
	return &LinkError{ID: NoHelper, Text: "cannot talk to Ceph: " + text, Err: err,
		Hint: "install the helper of the same version as storagectl beside it, and what it needs of Ceph: apt-get install librados2 librbd1 libcephfs2 ceph-common"}
}

// Options say which helper to start and what to reach.
type Options struct {
	Path    string // of the helper; [Find] if empty
	Cluster Cluster
	// ConnectTime bounds how long the monitors may take; 20 s if zero.
	ConnectTime time.Duration
}

// Client is a running helper that is connected to a cluster. Its methods may be
// called from any goroutine; requests are answered one at a time.
type Client struct {
	Hello   Hello
	Cluster Cluster
	Path    string // the helper's program

	mu      sync.Mutex
	cmd     *exec.Cmd
	in      io.WriteCloser
	dec     *json.Decoder
	words   *host.Tail
	release func()
	calls   int
	broken  error
}

// Start starts a helper and connects it to the cluster. What keeps it from
// that is told by [IDOf].
func Start(ctx context.Context, opts Options) (*Client, error) {
	if err := opts.Cluster.Check(); err != nil {
		return nil, err
	}
	path := opts.Path
	if path == "" {
		var err error
		if path, err = Find(); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command(path, "requests") //nolint:noctx // it lives until Close
	// Nothing of ours is inherited: CEPH_ARGS or CEPH_CONF of the caller must
	// not lead elsewhere than the options say.
	cmd.Env, cmd.Dir = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", path, err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", path, err)
	}
	c := &Client{Cluster: opts.Cluster, Path: path, cmd: cmd, in: in, dec: json.NewDecoder(bufio.NewReader(out)), words: &host.Tail{}}
	cmd.Stderr, cmd.WaitDelay = c.words, endTime
	if c.release, err = host.StartFor(cmd, false); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, noHelper("there is no "+path, err)
		}
		return nil, fmt.Errorf("cannot start %s: %w", path, err)
	}
	if err := c.greet(ctx, opts); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Client) greet(ctx context.Context, opts Options) error {
	if err := c.Call(ctx, "hello", struct{}{}, &c.Hello); err != nil {
		if IDOf(err) == HelperDied { // the loader ends a program whose libraries are missing
			return noHelper(c.Path+" does not start", err)
		}
		return err
	}
	if c.Hello.Protocol != Protocol {
		return noHelper(fmt.Sprintf("%s speaks version %d of the protocol, and storagectl %d", c.Path, c.Hello.Protocol, Protocol), nil)
	}
	wait := opts.ConnectTime
	if wait == 0 {
		wait = 20 * time.Second
	}
	// Ceph's own limit comes first, since it tells more.
	ctx, cancel := context.WithTimeout(ctx, wait+10*time.Second)
	defer cancel()
	return c.Call(ctx, "connect", Connect{opts.Cluster, int(max(wait.Seconds(), 1))}, nil)
}

// Connect is the request that connects the helper.
type Connect struct {
	Cluster Cluster `json:"cluster"`
	Seconds int     `json:"seconds"` // the monitors may take
}

// Call sends one request and stores its answer in result (nil: not wanted). An
// error that the helper met is a [*Fault]. At the deadline of ctx, or after a
// minute where it has none, the helper is killed, and this and all later calls
// fail with a [*LinkError]: what a Ceph library waits for cannot be cancelled.
func (c *Client) Call(ctx context.Context, op string, args, result any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	raw, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("cannot ask %s: %w", Helper, err)
	}
	if _, set := ctx.Deadline(); !set {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, answerTime)
		defer cancel()
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("cannot ask %s for %s: %w", Helper, op, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.cmd.Process.Kill() })
	defer stop()
	c.calls++
	if err := json.NewEncoder(c.in).Encode(request{ID: c.calls, Op: op, Args: raw}); err != nil {
		return c.broke(ctx, op, err)
	}
	var r reply
	if err := c.dec.Decode(&r); err != nil {
		return c.broke(ctx, op, err)
	}
	defer c.words.Reset() // they belong to this request
	switch {
	case r.ID != c.calls:
		_ = c.cmd.Process.Kill()
		return c.broke(ctx, op, fmt.Errorf("it answered request %d instead of %d", r.ID, c.calls))
	case r.Fault != nil:
		time.Sleep(lastWord) // what was written comes by another pipe
		r.Fault.Said = c.words.String()
		return r.Fault
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(r.Result, result); err != nil {
		return fmt.Errorf("cannot read what %s answers to %s: %w", Helper, op, err)
	}
	return nil
}

// broke ends a helper that does not answer, and tells its last words.
func (c *Client) broke(ctx context.Context, op string, err error) error {
	_ = c.in.Close()
	t := time.AfterFunc(endTime, func() { _ = c.cmd.Process.Kill() })
	// An end of the answers says less than how it ended.
	if ended := c.cmd.Wait(); ended != nil && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE)) {
		err = ended
	}
	t.Stop()
	c.release()
	e := &LinkError{ID: HelperDied, Text: fmt.Sprintf("%s ended in the request %s%s", Helper, op, c.said()), Err: err,
		Hint: "run it again; what the helper had begun is looked at anew"}
	if gone := ctx.Err(); gone != nil {
		e.ID, e.Err = TooSlow, gone
		e.Text = fmt.Sprintf("the Ceph cluster did not answer the request %s in time%s", op, c.said())
		e.Hint = "see ceph -s: an OSD or monitor that is down, or placement groups that are not active, make requests wait"
	}
	c.broken = e
	return e
}

// PID is the helper's process.
func (c *Client) PID() int { return c.cmd.Process.Pid }

// Close ends the helper. It may be called twice.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return nil
	}
	c.broken = &LinkError{ID: HelperDied, Text: Helper + " was closed"}
	_ = c.in.Close()
	t := time.AfterFunc(endTime, func() { _ = c.cmd.Process.Kill() })
	defer t.Stop()
	defer c.release()
	// All it did was answered: how it ends, even killed over a library that
	// takes long to shut down, changes nothing.
	_ = c.cmd.Wait()
	return nil
}

// said is what the helper wrote, to be put behind an error.
func (c *Client) said() string {
	if s := c.words.String(); s != "" {
		return "; it said: " + s
	}
	return ""
}
