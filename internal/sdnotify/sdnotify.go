// Package sdnotify tells systemd how a service of Type=notify is doing.
package sdnotify

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// extension is the time that a start or a stop may take on from each sign of life.
const extension = 3 * time.Minute

// Notifier sends what systemd wants to know. Nil, as [Take] returns it where nobody
// asked, sends nothing. It is safe for concurrent use. A message that cannot be sent
// is lost: no run fails for that.
type Notifier struct {
	mu       sync.Mutex
	socket   string
	watchdog time.Duration
	ready    bool
}

// Take reads where systemd wants to be told (sd_notify(3)), and takes that out of the
// environment: podman would take the socket for its container's.
func Take() *Notifier {
	socket, usec, pid := os.Getenv("NOTIFY_SOCKET"), os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID")
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		_ = os.Unsetenv(name) // it fails for an empty name alone
	}
	if socket == "" {
		return nil
	}
	n := &Notifier{socket: socket}
	if us, err := strconv.ParseInt(usec, 10, 64); err == nil && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		n.watchdog = time.Duration(us) * time.Microsecond
	}
	return n
}

// Every is how often systemd wants a sign of life: three times in what it waits for
// one, and once a minute where it does not watch.
func (n *Notifier) Every() time.Duration {
	if n == nil || n.watchdog <= 0 {
		return time.Minute
	}
	return n.watchdog / 3
}

// Ready says that the service is up. Only the first call does anything.
func (n *Notifier) Ready() {
	if n == nil {
		return
	}
	n.mu.Lock()
	was := n.ready
	n.ready = true
	n.mu.Unlock()
	if !was {
		n.send("READY=1")
	}
}

// Status says in a line what is being done.
func (n *Notifier) Status(text string) {
	n.send("STATUS=" + strings.NewReplacer("\n", " ", "\r", " ").Replace(text))
}

// Stopping says that the service is on its way to its end, which may take a while.
func (n *Notifier) Stopping() { n.send("STOPPING=1", extend()) }

// Alive is a sign of life: the watchdog waits on, and a start or a stop under way
// gets more time.
func (n *Notifier) Alive() { n.send("WATCHDOG=1", extend()) }

func extend() string { return fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extension.Microseconds()) }

func (n *Notifier) send(lines ...string) {
	if n == nil {
		return
	}
	// A name in the abstract namespace begins with @, for systemd and for Go.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = conn.Write([]byte(strings.Join(lines, "\n"))) // lost, as said
}
