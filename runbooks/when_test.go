package runbooks

import (
	"testing"
	"time"
)

// TestJudge: all conditions are compared, each with what was seen.
func TestJudge(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	now := time.Date(2026, 11, 23, 2, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		when  When
		state state
		holds []bool
	}{
		{When{}, state{}, nil},
		{When{User: "x"}, state{}, nil},
		{When{Driver: "vfs"}, state{driver: "vfs"}, []bool{true}},
		{When{Driver: "vfs"}, state{driver: "overlay"}, []bool{false}},
		{When{FreeBelow: "20GB"}, state{free: 20_000_000_000}, []bool{false}},
		{When{FreeBelow: "20GB"}, state{free: 19_999_999_999}, []bool{true}},
		{When{FreeAbove: "20G", FreeBelow: "30G"}, state{free: 25_000_000_000}, []bool{true, true}},
		{When{LastSuccessOlder: "7d"}, state{now: now}, []bool{true}},
		{When{LastSuccessOlder: "7d"}, state{now: now, success: now.Add(-7 * 24 * time.Hour)}, []bool{false}},
		{When{LastSuccessOlder: "7d"}, state{now: now, success: now.Add(-7*24*time.Hour - 1)}, []bool{true}},
		{When{NodeClass: "big"}, state{classes: []string{"small", "big"}}, []bool{true}},
		{When{NodeClass: "big"}, state{}, []bool{false}},
		{When{Nomad: &no}, state{}, []bool{true}},
		{When{Nomad: &yes, Rootless: &yes}, state{nomad: true}, []bool{false, true}},
		{When{PodmanAtLeast: "4.3"}, state{major: 4, minor: 3}, []bool{true}},
		{When{PodmanAtLeast: "4.3"}, state{major: 4, minor: 2}, []bool{false}},
		{When{PodmanAtLeast: "4"}, state{major: 5}, []bool{true}},
		{When{PodmanAtLeast: "4.10.1"}, state{major: 4, minor: 9}, []bool{false}},
	} {
		if key, err := c.when.check(); err != nil {
			t.Errorf("%+v: %s: %v", c.when, key, err)
		}
		seen := c.when.judge(c.state)
		if len(seen) != len(c.holds) {
			t.Errorf("%+v: %v", c.when, seen)
			continue
		}
		for i, s := range seen {
			if s.Holds != c.holds[i] || s.Saw == "" {
				t.Errorf("%+v: %+v, want %v", c.when, s, c.holds[i])
			}
		}
	}
	for _, w := range []When{{FreeBelow: "some"}, {FreeAbove: "-1"}, {LastSuccessOlder: "7"}, {PodmanAtLeast: "four"}, {Driver: "overlayfs"}} {
		if key, err := w.check(); err == nil || key == "" {
			t.Errorf("%+v is taken", w)
		}
	}
}

func TestSizesAndTimes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]uint64{"0": 0, "7": 7, "20GB": 20e9, "20G": 20e9, "5kB": 5000, "1T": 1e12, "12B": 12} {
		n, err := parseSize(text)
		if back, err2 := parseSize(sizeText(n)); n != want || err != nil || back != n || err2 != nil {
			t.Errorf("%s: %d, %v; %s", text, n, err, sizeText(n))
		}
	}
	for _, text := range []string{"", "G", "1.5G", "-1", "1GG", "99999999999T", "1 G", "1e3", "0x1"} {
		if n, err := parseSize(text); err == nil {
			t.Errorf("%q is %d", text, n)
		}
	}
	for text, want := range map[string]time.Duration{"7d": 168 * time.Hour, "90m": 90 * time.Minute, "1d12h": 36 * time.Hour} {
		if d, err := parseDuration(text); d != want || err != nil {
			t.Errorf("%s: %s, %v", text, d, err)
		}
	}
	for _, text := range []string{"", "d", "7", "-1d", "1.5d", "1d2d", "99999d"} {
		if d, err := parseDuration(text); err == nil && text != "" {
			t.Errorf("%q is %s", text, d)
		}
	}
}
