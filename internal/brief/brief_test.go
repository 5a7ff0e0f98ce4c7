package brief

import (
	"testing"
	"time"
)

// TestTime: what is written is short, and read again as the same.
func TestTime(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"0": "0s", "1ns": "1ns", "10s": "10s", "1.5s": "1.5s", "15m": "15m", "10m30s": "10m30s", "1h": "1h", "10h": "10h", "1h30m": "1h30m", "1h0m30s": "1h30s", "1h0m0.5s": "1h0.5s",
		"100h20m0s": "100h20m", "-2h": "-2h", "168h": "168h",
	} {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		got := Time(d)
		if again, err := time.ParseDuration(got); got != want || err != nil || again != d {
			t.Errorf("%s: %q (%v, %v), want %q", text, got, again, err, want)
		}
	}
}
