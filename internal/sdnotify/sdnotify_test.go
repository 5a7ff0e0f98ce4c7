package sdnotify

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "90000000")
	t.Setenv("WATCHDOG_PID", "")
	n := Take()
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		if v, ok := os.LookupEnv(name); ok {
			t.Errorf("what we start would get %s=%s", name, v)
		}
	}
	if n.Every() != 30*time.Second {
		t.Errorf("a sign every %s", n.Every())
	}
	n.Ready()
	n.Ready()
	n.Status("step 1 of 2:\nREADY=0")
	n.Alive()
	n.Stopping()
	var got []string
	buf := make([]byte, 4096)
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		k, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(buf[:k]))
	}
	want := []string{"READY=1", "STATUS=step 1 of 2: READY=0", "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=180000000", "STOPPING=1\nEXTEND_TIMEOUT_USEC=180000000"}
	if !slices.Equal(got, want) {
		t.Errorf("systemd was told %q, want %q", got, want)
	}
}

// TestNobodyAsked: without systemd nothing is sent, and nothing fails.
func TestNobodyAsked(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n := Take()
	n.Ready()
	n.Status("x")
	n.Alive()
	n.Stopping()
	(&Notifier{socket: "/nowhere/notify"}).Alive()
	var p *Pulse
	p.Sign()
	p.Begin(time.Second)
	p.Stop()
	if n != nil || n.Every() != time.Minute {
		t.Errorf("%v, every %s", n, n.Every())
	}
}

// TestPulseOfAHang: the watchdog hears of a step as long as it gives signs of its own,
// or its own deadline is not over, and no longer.
func TestPulseOfAHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var beats atomic.Int64
		p := NewPulse(time.Minute, 5*time.Minute, func() { beats.Add(1) })
		defer p.Stop()
		after := func(d time.Duration, want int64, what string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := beats.Swap(0); got != want {
				t.Errorf("%s: %d beats in %s, want %d", what, got, d, want)
			}
		}
		after(4*time.Minute+30*time.Second, 4, "silent, within its patience")
		p.Sign()
		after(5*time.Minute, 5, "after a sign")
		after(time.Hour, 0, "hung")
		p.Begin(30 * time.Minute)
		after(30*time.Minute, 30, "a step that may be silent for longer")
		after(time.Hour, 0, "hung")
		p.Sign()
		after(time.Minute, 1, "it lives after all")
	})
}
