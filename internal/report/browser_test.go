package report

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"image"
	"image/png"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestBrowser: a real browser shows the page at the width of a phone and of a screen,
// light and dark, without anything sticking out, without asking for anything else, and
// without a word of complaint. STORAGECTL_SHOTS names a folder that keeps the pictures.
func TestBrowser(t *testing.T) {
	t.Parallel()
	var page bytes.Buffer
	if err := HTML(&page, sample()); err != nil {
		t.Fatal(err)
	}
	long := sample() // names without a place to break
	long.Store.Images[0].Names[0] = strings.Repeat("x", 300)
	long.Groups[0].Facts[0].Value = "/" + strings.Repeat("y", 300)
	long.Headline = strings.Repeat("z", 200)
	var wide bytes.Buffer
	if err := HTML(&wide, long); err != nil {
		t.Fatal(err)
	}
	var book bytes.Buffer
	if err := HTML(&book, sampleRunbook()); err != nil {
		t.Fatal(err)
	}
	site := &site{pages: map[string]string{"/report": page.String(), "/long": wide.String(), "/book": book.String()}}
	server := httptest.NewServer(site)
	defer server.Close()

	shots := os.Getenv("STORAGECTL_SHOTS")
	if shots == "" {
		shots = t.TempDir()
	}
	brightness := map[string]float64{}
	for scheme, light := range map[string]bool{"light": true, "dark": false} {
		dom := browse(t, light, "--dump-dom", server.URL+"/measure")
		_, rest, _ := strings.Cut(dom, `<pre id="out">`)
		out, _, _ := strings.Cut(rest, "</pre>")
		var all map[string]measured
		if err := json.Unmarshal([]byte(html.UnescapeString(out)), &all); err != nil {
			t.Fatalf("%s: %v in %s", scheme, err, dom)
		}
		for _, width := range widths() {
			for _, page := range []string{"report", "long", "book"} {
				p, is := all[fmt.Sprintf("%s-%d", page, width)]
				if !is || p.Inner != width || p.Scroll > width || len(p.Out) > 0 {
					t.Errorf("%s, %s: %d wide in a window of %d: %v", scheme, page, p.Scroll, p.Inner, p.Out)
				}
				if p.Height < 1500 || p.Heads < 6 || p.Dark == light {
					t.Errorf("%s, %s: %+v", scheme, page, p)
				}
			}
			name, height := fmt.Sprintf("%d-%s", width, scheme), all[fmt.Sprintf("report-%d", width)].Height
			path := filepath.Join(shots, name+".png")
			browse(t, light, "--screenshot="+path, fmt.Sprintf("--window-size=%d,%d", max(width, 600), height), fmt.Sprintf("%s/frame?w=%d&h=%d", server.URL, width, height))
			brightness[name] = look(t, path, width)
		}
	}
	if brightness["400-light"] < 0.75 || brightness["1280-light"] < 0.75 || brightness["400-dark"] > 0.35 || brightness["1280-dark"] > 0.35 {
		t.Errorf("brightness %v", brightness)
	}
	// Nothing is asked for but the pages, and the icon that a browser wants of every site.
	for _, path := range site.asked() {
		if !slices.Contains([]string{"/report", "/long", "/book", "/measure", "/frame", "/favicon.ico"}, path) {
			t.Errorf("the browser asked for %s", path)
		}
	}
}

// widths are those of a phone and of a screen.
func widths() []int { return []int{400, 1280} }

// measured is what a page in a frame comes to.
type measured struct {
	Inner, Scroll, Height, Heads int
	Dark                         bool
	Out                          []string // elements that stick out
}

// measure is a page that shows the reports in frames of a width, and writes what they
// came to. The reports themselves run no script.
const measure = `<!doctype html><body>%s<script>
addEventListener("load", () => {
  const look = name => {
    const w = document.getElementById(name).contentWindow, root = w.document.documentElement, out = [];
    for (const e of w.document.body.querySelectorAll("*")) {
      const r = e.getBoundingClientRect();
      if ((r.right > w.innerWidth + 1 || r.left < -1) && !e.closest(".track")) out.push(e.tagName + " " + e.className);
    }
    return {Inner: w.innerWidth, Scroll: root.scrollWidth, Height: Math.ceil(root.getBoundingClientRect().height),
      Heads: w.document.querySelectorAll("h2").length, Dark: w.matchMedia("(prefers-color-scheme: dark)").matches, Out: out};
  };
  const pre = document.createElement("pre");
  pre.id = "out";
  pre.textContent = JSON.stringify(Object.fromEntries([...document.querySelectorAll("iframe")].map(f => [f.id, look(f.id)])));
  document.body.append(pre);
});
</script>`

// site serves the pages, and remembers what was asked for.
type site struct {
	pages map[string]string
	mu    sync.Mutex
	paths []string
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.paths = append(s.paths, r.URL.Path)
	s.mu.Unlock()
	frame := func(name, width, height string) string {
		return fmt.Sprintf(`<iframe id="%[1]s-%[2]s" src="/%[1]s" style="border:0;display:block;width:%[2]spx;height:%[3]spx"></iframe>`, name, html.EscapeString(width), html.EscapeString(height))
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	switch page, is := s.pages[r.URL.Path]; {
	case is:
		fmt.Fprint(w, page)
	case r.URL.Path == "/measure":
		var frames strings.Builder
		for _, width := range widths() {
			frames.WriteString(frame("report", fmt.Sprint(width), "800") + frame("long", fmt.Sprint(width), "800") + frame("book", fmt.Sprint(width), "800"))
		}
		fmt.Fprintf(w, measure, frames.String())
	case r.URL.Path == "/frame":
		fmt.Fprint(w, `<!doctype html><body style="margin:0">`+frame("report", r.FormValue("w"), r.FormValue("h")))
	default:
		http.NotFound(w, r)
	}
}

func (s *site) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.paths)
}

// browse runs Chromium on a page and returns what it writes; its complaints about the
// page fail the test.
func browse(t *testing.T, light bool, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	scheme := "--blink-settings=preferredColorScheme=0"
	if light {
		scheme = "--blink-settings=preferredColorScheme=1"
	}
	home := t.TempDir()
	cmd := exec.CommandContext(ctx, "chromium", append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1",
		"--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
		"--virtual-time-budget=10000", "--enable-logging=stderr", "--user-data-dir=" + home, scheme}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+home)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &log, 10*time.Second
	if err := cmd.Run(); err != nil {
		t.Fatalf("chromium %v (make deps installs it): %v\n%s", args, err, log.String())
	}
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, ":CONSOLE") || strings.Contains(line, "Content Security Policy") {
			t.Errorf("the browser complains: %s", line)
		}
	}
	return out.String()
}

// look tells how bright a picture is, 0 to 1, and that something is drawn on it.
func look(t *testing.T, path string, width int) float64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	b := img.Bounds()
	b = image.Rect(b.Min.X, b.Min.Y, b.Min.X+min(width, b.Dx()), b.Max.Y)
	sum, seen := 0.0, map[[3]uint32]bool{}
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			r, g, bl, _ := img.At(x, y).RGBA()
			sum += float64(r+g+bl) / 3 / 0xffff
			seen[[3]uint32{r >> 12, g >> 12, bl >> 12}] = true
		}
	}
	if len(seen) < 12 {
		t.Errorf("%s shows %d colours", path, len(seen))
	}
	return sum / float64(b.Dx()*b.Dy())
}
