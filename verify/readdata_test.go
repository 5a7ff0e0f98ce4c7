package verify

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestReadData: what is whole is found to be whole, through links on the way too;
// a bit, a length and a file that is missing are found and named.
func TestReadData(t *testing.T) {
	for _, driver := range []string{"vfs", "overlay"} {
		t.Run(driver, func(t *testing.T) {
			ref := testStore(t, driver)
			base, err := ReadData(t.Context(), ref, ReadOptions{Share: 1}, nil)
			if err != nil || len(base.Damage) > 0 || base.Files == 0 {
				t.Fatalf("%+v, %v", base, err)
			}
			addImage(t, ref, 9,
				entry{name: "usr/", mode: 0o755}, entry{name: "usr/lib/", mode: 0o755}, entry{name: "lib", link: "usr/lib"}, entry{name: "abs", link: "/usr/lib"},
				entry{name: "usr/lib/a", mode: 0o644, data: strings.Repeat("a", 700<<10)}, entry{name: "lib/b", mode: 0o644, data: "below a link"},
				entry{name: "empty", mode: 0o644}, entry{name: "usr/lib/c", hard: "usr/lib/a"}, entry{name: "pipe", fifo: true})
			before := snapshot(t, ref.GraphRoot, true)
			read := func(share float64) ReadReport {
				t.Helper()
				r, err := ReadData(t.Context(), ref, ReadOptions{Share: share, Seed: "x"}, nil)
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			quick := func() []string {
				t.Helper()
				r, err := Quick(t.Context(), ref, time.Minute)
				if err != nil || r.Looked != r.Layers || r.Layers == 0 {
					t.Fatalf("%+v, %v", r, err)
				}
				return r.Damage
			}
			if r := read(1); len(r.Damage) > 0 || r.Layers != base.Layers+1 || r.Files != base.Files+2 || r.Bytes != base.Bytes+(700<<10)+12 || r.Without != base.Without {
				t.Errorf("%+v", r)
			}
			if d := quick(); len(d) > 0 {
				t.Error(d)
			}
			if r := read(0.999999); len(r.Damage) > 0 || r.Files != base.Files+2 {
				t.Errorf("%+v", r)
			}
			same(t, before, snapshot(t, ref.GraphRoot, true))

			found, err := filepath.Glob(filepath.Join(filepath.Dir(ref.tree(ref.GraphRoot, "*")), "*", "usr/lib/a"))
			if driver == "overlay" {
				found, err = filepath.Glob(filepath.Join(ref.GraphRoot, "overlay", "*", "diff", "usr/lib/a"))
			}
			if err != nil || len(found) != 1 {
				t.Fatal(found, err)
			}
			whole, err := os.ReadFile(found[0])
			if err != nil {
				t.Fatal(err)
			}
			damage := func(content []byte, says string, seenQuickly bool) {
				t.Helper()
				if err := os.WriteFile(found[0], content, 0o644); err != nil {
					t.Fatal(err)
				}
				for _, share := range []float64{1, 0.999999} {
					if r := read(share); len(r.Damage) != 1 || !strings.Contains(r.Damage[0], "usr/lib/a "+says) {
						t.Errorf("share %v, %s: %q", share, says, r.Damage)
					}
				}
				if d := quick(); (len(d) == 1) != seenQuickly {
					t.Errorf("%s: a quick look sees %q", says, d)
				}
			}
			flipped := []byte(string(whole))
			flipped[600<<10] ^= 1
			damage(flipped, "has other content", false)
			damage(whole[:10], "has 10 bytes instead of 716800", true)
			damage(append(whole, 'x'), "has 716801 bytes instead of 716800", true)
			if err := os.Remove(found[0]); err != nil {
				t.Fatal(err)
			}
			if r := read(1); len(r.Damage) != 1 || !strings.Contains(r.Damage[0], "usr/lib/a cannot be read") {
				t.Errorf("%q", r.Damage)
			}
			if d := quick(); len(d) != 1 {
				t.Errorf("%q", d)
			}
		})
	}
}
