package integration

import (
	"encoding/json"
	"slices"
	"strings"

	"golang.org/x/net/html"
)

// reported asserts that the report of a migration that was done tells so: a page that
// runs nothing, with the images by name; and what podman's store has and how long it
// was down, in numbers.
func (w *world) reported(images ...string) {
	w.t.Helper()
	page := w.must("report").stdout
	root, err := html.Parse(strings.NewReader(page))
	if err != nil {
		w.t.Fatal(err)
	}
	var text strings.Builder
	for n := range root.Descendants() {
		if n.Type == html.TextNode {
			text.WriteString(n.Data + "\n")
		}
		if n.Type == html.ElementNode && slices.Contains([]string{"script", "img", "link", "iframe", "a"}, n.Data) {
			w.t.Errorf("the report has a %s", n.Data)
		}
	}
	for _, want := range append(images, "The store of "+w.user+" is on overlay", "podman stopped for", "What the store held, compared") {
		if !strings.Contains(strings.ToLower(text.String()), strings.ToLower(want)) {
			w.t.Errorf("the report does not say %q", want)
		}
	}
	var d struct {
		Outcome string
		Down    float64 `json:"down_seconds"`
		Steps   []struct{ Name, Mark string }
		Missing []string
		Checks  []struct{ What, Result string }
		Events  []struct{ Kind, Text string }
		Store   struct {
			Before, After int64
			Images        []struct{ Before, After int64 }
		}
	}
	if err := json.Unmarshal([]byte(w.must("report", "--format", "json").stdout), &d); err != nil {
		w.t.Fatal(err)
	}
	if d.Outcome != "committed" || d.Down <= 0 || d.Down > 600 || len(d.Missing) > 0 || len(d.Checks) < 4 {
		w.t.Errorf("the report says %+v", d)
	}
	for _, s := range d.Steps {
		if s.Mark != "done" {
			w.t.Errorf("step %s is %q", s.Name, s.Mark)
		}
	}
	for _, c := range d.Checks {
		if c.Result != "passed" {
			w.t.Errorf("%s: %s", c.What, c.Result)
		}
	}
	for _, e := range d.Events {
		if e.Kind != "note" {
			w.t.Errorf("%s: %s", e.Kind, e.Text)
		}
	}
	if d.Store.After <= 0 || d.Store.Before <= d.Store.After || len(d.Store.Images) < len(images) {
		w.t.Errorf("the store by the report: %+v", d.Store)
	}
}
