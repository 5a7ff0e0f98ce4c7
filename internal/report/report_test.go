package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
)

// sample is a run that had a bad night: it failed, was resumed, was cut off, resumed
// again, and is not committed yet.
func sample() Data {
	t0 := time.Date(2026, 11, 21, 1, 58, 20, 0, time.UTC)
	at := func(s float64) time.Time { return t0.Add(time.Duration(s * float64(time.Second))) }
	span := func(from, to float64) Span { return Span{From: at(from), To: at(to)} }
	did := func(from, to float64) Act { return Act{Span: span(from, to), End: EndDone} }
	d := Data{
		Schema: Schema, Run: "0006-migrate-4f77", Job: "migrate", Version: "v0.7.0", Host: "worker-07", Made: at(7200),
		Owner: "hashi", Place: "/home/hashi/.local/share/containers/storage", Phase: "finished", Outcome: Finished,
		Headline: "The store of hashi is on overlay",
		Words: []string{
			"6 images in 31 layers were built anew beside the live store, while containers ran: 130418 names were hard-linked, 12 files (3.4 MB) copied.",
			"Podman was stopped for 11.8 s, from 2026-11-21 02:01:02 UTC to 02:01:14.",
			"The old store is kept until it is committed, and a rollback returns to it.",
		},
		Began: at(0), Ended: at(201), Worked: 139.9,
		Steps: []Step{
			{Name: "stage", Title: "stage the new store beside the live one", Mark: "done", Acts: []Act{{Span: span(0.2, 41), End: EndFailed}, did(95, 118)}},
			{Name: "prove", Title: "compare the staged store with the live one", Mark: "done", Acts: []Act{did(118, 139)}},
			{Name: "drain", Title: "drain the Nomad node", Mark: "done", Acts: []Act{did(139, 161.9)}},
			{Name: "stop", Title: "stop podman", Mark: "done", Acts: []Act{did(162, 163.4), did(166.6, 167.2)}},
			{Name: "stage-rest", Title: "stage what changed since", Mark: "done", Acts: []Act{did(163.4, 163.9)}},
			{Name: "swap", Title: "move the new store in and the old one aside", Mark: "done", Acts: []Act{{Span: span(163.9, 164), End: EndCut}, did(167.2, 167.3)}},
			{Name: "repoint", Title: "point podman's database to the new driver", Mark: "done", Acts: []Act{did(167.3, 167.4)}},
			{Name: "storage-conf", Title: "write storage.conf", Mark: "done", Acts: []Act{did(167.4, 167.43)}},
			{Name: "verify", Title: "verify against the manifest and run a container", Mark: "done", Acts: []Act{did(167.43, 172.6)}},
			{Name: "start", Title: "start what ran before", Mark: "done", Acts: []Act{did(172.6, 173.8)}},
			{Name: "undrain", Title: "give the Nomad node back", Mark: "done", Acts: []Act{did(173.8, 201)}},
			{Name: "commit", Title: "remove the old store", Final: true},
		},
		Pauses: []Pause{
			{Span: span(41, 95), Why: "it had failed"}, {Span: span(164, 166.6), Why: "cut off"},
		},
		Down: []Span{span(162, 173.8)}, DownSeconds: 11.8, Away: []Span{span(139, 201)}, AwaySeconds: 62,
		Store: &Store{How: "Bytes on the disk, as the run measured them while podman worked. Images share layers: each image is counted with all of its own, the sum counts each layer once.",
			Before: 14_180_000_000, After: 2_710_000_000, Was: "vfs", Is: "overlay",
			Images: []Image{
				{ID: strings.Repeat("a1", 32), Names: []string{"registry.example/prefect/worker:2.19", "registry.example/prefect/worker:latest"}, Layers: 11, Before: 6_900_000_000, After: 1_310_000_000},
				{ID: strings.Repeat("b2", 32), Names: []string{"registry.example/ml/training-cuda:12.4.1-runtime-ubuntu22.04-with-a-long-tag"}, Layers: 9, Before: 5_200_000_000, After: 1_050_000_000},
				{ID: strings.Repeat("c3", 32), Names: []string{"docker.io/library/postgres:16"}, Layers: 8, Before: 1_650_000_000, After: 431_000_000},
				{ID: strings.Repeat("d4", 32), Names: []string{"docker.io/library/busybox:1"}, Layers: 1, Before: 4_300_000, After: 4_300_000},
				{ID: strings.Repeat("e5", 32), Layers: 2, Before: 98_000_000, After: 77_000_000},
			},
			Rest: &Image{Names: []string{"containers' own files, and layers without an image"}, Before: 31_000_000, After: 31_000_000}},
		Checks: []Check{
			{"The store that was built anew, before podman was stopped", Passed, "6 images, each entry as the old store shows it and as the new one does"},
			{"What the store held, compared with what it holds", Passed, "6 images, 31 layers, 3 containers, 4 volumes, 1 secret, 2 networks: none is missing, none is otherwise"},
			{"A container ran", Passed, "podman 4.3.1 on overlay, the container's root on overlay, mounted by the kernel"},
			{"A Docker client's calls on podman's socket", Passed, "3 calls"},
			{"A canary job ran through Nomad", NotMade, ""},
		},
		Calls: []Call{
			{Name: "version", What: "asks for the version twice", Saw: "4.3.1, API 1.41", OK: true, Seconds: 0.012},
			{Name: "load", What: "loads an image", Saw: "one image", OK: true, Odd: true, Seconds: 0.31},
			{Name: "pull", What: "pulls an image", Left: true},
		},
		Events: []Event{
			{Time: at(41), Kind: Error, Step: "stage the new store beside the live one", Text: "step stage: cannot copy: no space left on device"},
			{Time: at(164), Kind: Cut, Step: "move the new store in and the old one aside", Text: "the process ended without a word (a crash, a kill, a power cut); the next word is of 02:01:06"},
			{Time: at(138), Kind: Note, Text: "hook warn-users said: line one\nline two | with a bar\nline three ``` and a fence\nline four"},
			{Time: at(200), Kind: Note, Text: "canary on node worker-07, podman: ran"},
		},
		Containers: []Container{
			{ID: "f1", Name: "postgres", Image: "docker.io/library/postgres:16", Became: "kept, its unit postgres.service runs it"},
			{ID: "f2", Name: "scratch", Image: "docker.io/library/busybox:1", Became: "kept, it did not run"},
		},
		Groups: []Group{{"The store", []Fact{{"owner", "hashi (uid 2000)"}, {"graph root", "/home/hashi/.local/share/containers/storage"}, {"podman", "4.3.1"}}},
			{"Nomad and others", []Fact{{"node", "worker-07 (dc1, pool default), took work before"}}}},
		Next: []Command{{"storagectl commit 0006-migrate-4f77", "removes the old store, which lies in /home/hashi/.local/share/containers/storage/.storagectl-0006-migrate-4f77/old; there is no way back after it"},
			{"storagectl rollback 0006-migrate-4f77", "puts everything back as it was before"}},
	}
	return d
}

// sampleRunbook is a runbook of which a task failed, and the run went on until another did.
func sampleRunbook() Data {
	d := sample()
	d.Run, d.Job, d.Runbook, d.Outcome, d.Phase = "0005-runbook-11a0", "runbook", "weekly", Failed, "running"
	d.Headline = "Failed at task “tell”: runbook weekly"
	d.Owner, d.Place, d.Store, d.Checks, d.Calls, d.Containers = "", "", nil, nil, nil, nil
	d.Steps = []Step{
		{Name: "to-overlay", Title: "to-overlay", Mark: "done", Outcome: "done", Acts: d.Steps[0].Acts},
		{Name: "look", Title: "look", Mark: "done", Outcome: "failed", Acts: []Act{{Span: d.Steps[1].Acts[0].Span, End: EndFailed}}},
		{Name: "grow", Title: "grow", Mark: "done", Outcome: "left out", Acts: d.Steps[2].Acts},
		{Name: "tell", Title: "tell", Mark: "begun", Outcome: "failed", Acts: []Act{{Span: d.Steps[3].Acts[0].Span, End: EndFailed}}},
		{Name: "last", Title: "last", Outcome: "not begun"},
		{Name: "commit", Title: "commit the tasks' runs"},
	}
	d.Tasks = []Task{
		{ID: "to-overlay", Line: "storagectl migrate --to overlay --user hashi", Result: "done", Run: "0006-migrate-4f77", Seconds: 201,
			Made: &Made{Run: "0006-migrate-4f77", Outcome: Finished, Headline: "The store of hashi is on overlay", Words: d.Words, More: "storagectl report 0006-migrate-4f77"}},
		{ID: "look", Line: "storagectl doctor --user hashi", Result: "failed", Text: "its command ended with exit code 4", Seconds: 3},
		{ID: "grow", Line: "storagectl relocate --rbd pool/img --size 200G", Result: "left-out", Text: "free_below = 20GB: it is 35 GB"},
		{ID: "tell", Line: "/usr/local/bin/tell 'the store is well'", Result: "failed"},
		{ID: "last", Line: "storagectl verify", Result: NotBegun},
	}
	d.Next = []Command{{"storagectl resume 0005-runbook-11a0 --exec again", "runs the command that was cut off or failed once more, and goes on"}}
	return d
}

// golden compares with a file of testdata. STORAGECTL_GOLDEN=write writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("STORAGECTL_GOLDEN") == "write" {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is otherwise now:\n%s", path, got)
	}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		write func(io.Writer, Data) error
		d     Data
	}{{"sample.md", Markdown, sample()}, {"sample.json", JSON, sample()}, {"runbook.md", Markdown, sampleRunbook()}} {
		var b bytes.Buffer
		if err := c.write(&b, c.d); err != nil {
			t.Fatal(err)
		}
		golden(t, c.name, b.Bytes())
	}
	var back Data
	b, err := os.ReadFile("testdata/sample.json")
	if err == nil {
		err = json.Unmarshal(b, &back)
	}
	if err != nil || !reflect.DeepEqual(back, sample()) {
		t.Errorf("the JSON does not give the report back: %v", err)
	}
}

// hostile are texts that want to be more than text.
func hostile() []string {
	return []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' onmouseover='alert(1)`, `</style><script>alert(1)</script>`,
		`</title><script>alert(1)</script>`, `javascript:alert(1)`, `{{.Run}}`, `expression(alert(1));}</style>`, "]]><svg onload=alert(1)>",
		"| a | b |\n# head\n\n<b>", "``` \n<script>", "[x](javascript:alert(1))", "![x](http://evil.example/x.png)", "&lt;script&gt;",
	}
}

// poison puts texts into every string of v, and makes one entry of every list.
func poison(v reflect.Value, next func() string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(next())
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1_800_000_000, 0).UTC()))
			return
		}
		for i := range v.NumField() {
			poison(v.Field(i), next)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		for i := range 3 {
			poison(v.Index(i), next)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		poison(v.Elem(), next)
	case reflect.Int64:
		v.SetInt(7)
	}
}

func poisoned() Data {
	var d Data
	i, texts := 0, hostile()
	poison(reflect.ValueOf(&d).Elem(), func() string { i++; return texts[i%len(texts)] })
	return d
}

// TestHostileHTML: whatever a name says, the page has the elements and attributes of
// its template and no others, and every text that was put in is there as text.
func TestHostileHTML(t *testing.T) {
	t.Parallel()
	for shift := range hostile() { // so that each text stands in each place once
		var d Data
		i, texts := shift, hostile()
		poison(reflect.ValueOf(&d).Elem(), func() string { i++; return texts[i%len(texts)] })
		var b bytes.Buffer
		if err := HTML(&b, d); err != nil {
			t.Fatal(err)
		}
		checkPage(t, b.String())
		if !strings.Contains(text(t, b.String()), d.Words[0]) {
			t.Errorf("%q is not in the page", d.Words[0])
		}
	}
	var b bytes.Buffer
	if err := HTML(&b, sample()); err != nil {
		t.Fatal(err)
	}
	checkPage(t, b.String())
	b.Reset()
	if err := HTML(&b, sampleRunbook()); err != nil {
		t.Fatal(err)
	}
	checkPage(t, b.String())
	for _, want := range []string{`<a class="small" href="#run-0006-migrate-4f77">run 0006-migrate-4f77</a>`, `<section id="run-0006-migrate-4f77">`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in the page", want)
		}
	}
}

// checkPage fails the test if a page has what could load or run something.
func checkPage(t *testing.T, page string) {
	t.Helper()
	elements := strings.Fields("html head meta title style body main header h1 h2 h3 p a div span b i section ul li code pre dl dt dd table thead tbody tfoot tr th td details summary footer")
	attributes := strings.Fields("lang charset http-equiv content name class style title id href")
	style := regexp.MustCompile(`^(left:[\d.]+%)?;?(width:[\d.]+%)?$`)
	z := html.NewTokenizer(strings.NewReader(page))
	for {
		switch z.Next() {
		case html.ErrorToken:
			if !errors.Is(z.Err(), io.EOF) {
				t.Fatal(z.Err())
			}
			return
		case html.StartTagToken, html.SelfClosingTagToken:
			tok := z.Token()
			if !slices.Contains(elements, tok.Data) {
				t.Errorf("an element %s", tok)
			}
			for _, a := range tok.Attr {
				if !slices.Contains(attributes, a.Key) {
					t.Errorf("an attribute %s of %s", a.Key, tok)
				}
				if a.Key == "href" && !strings.HasPrefix(a.Val, "#run-") {
					t.Errorf("a link out of the page: %q", a.Val)
				}
				if a.Key == "style" && !style.MatchString(a.Val) {
					t.Errorf("a style %q", a.Val)
				}
			}
		case html.CommentToken:
			t.Errorf("a comment %s", z.Token())
		}
	}
}

// text is what a page says, without its style.
func text(t *testing.T, page string) string {
	t.Helper()
	root, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for n := range root.Descendants() {
		if n.Type == html.TextNode && n.Parent.Data != "style" {
			b.WriteString(n.Data)
		}
	}
	return b.String()
}

// TestHostileMarkdown: no text makes an element of HTML, a link, an image, a heading or
// a row of a table.
func TestHostileMarkdown(t *testing.T) {
	t.Parallel()
	var b, calm bytes.Buffer
	d := poisoned()
	if err := Markdown(&b, d); err != nil {
		t.Fatal(err)
	}
	poison(reflect.ValueOf(&d).Elem(), func() string { return "x" })
	if err := Markdown(&calm, d); err != nil {
		t.Fatal(err)
	}
	fenced := regexp.MustCompile("(?s)\n  (````*)\n.*?\n  (````*)\n")
	got := fenced.ReplaceAllString(b.String(), "\n")
	typed := regexp.MustCompile("(?m)^(?:- |  )(?:`[^`\n]+`|`` .*? ``|```` .*? ````)") // commands, as they are typed
	got = typed.ReplaceAllString(got, "- ")
	if strings.Contains(got, "<") || regexp.MustCompile(`[^\\]\]\(`).MatchString(got) {
		t.Errorf("markup:\n%s", got)
	}
	heads := regexp.MustCompile("(?m)^#")
	if got, want := len(heads.FindAllString(got, -1)), len(heads.FindAllString(calm.String(), -1)); got != want {
		t.Errorf("%d headings, want %d", got, want)
	}
	bars := regexp.MustCompile(`(^|[^\\])\|`)
	for l := range strings.Lines(got) {
		if strings.HasPrefix(l, "| ") && !strings.HasSuffix(l, "|\n") {
			t.Errorf("a row that does not end: %q", l)
		}
		if n := len(bars.FindAllString(l, -1)); strings.HasPrefix(l, "| ") && n > 6 {
			t.Errorf("a row of %d bars: %q", n, l)
		}
	}
}

// TestEmpty: a run of which next to nothing is known still has a report.
func TestEmpty(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	for _, d := range []Data{{}, {Began: now, Ended: now, Made: now, Steps: []Step{{Title: "s"}}},
		{Began: now, Ended: now.Add(-time.Hour), Steps: []Step{{Title: "s", Acts: []Act{{Span: Span{From: now, To: now.Add(-time.Hour)}}}}}}} {
		for _, write := range []func(io.Writer, Data) error{HTML, Markdown, JSON} {
			var b bytes.Buffer
			if err := write(&b, d); err != nil || strings.Contains(b.String(), "ZgotmplZ") || strings.Contains(b.String(), "NaN") {
				t.Errorf("%v\n%s", err, b.String())
			}
		}
	}
}

// TestAxis: what was done in seconds is seen beside a pause of a day, and moments keep
// their order.
func TestAxis(t *testing.T) {
	t.Parallel()
	d := sample()
	day := Span{From: d.Ended, To: d.Ended.Add(25 * time.Hour)}
	d.Pauses, d.Ended = append(d.Pauses, Pause{Span: day, Why: "done, and not yet committed"}), day.To.Add(2*time.Second)
	d.Steps[11].Acts = []Act{{Span: Span{From: day.To, To: d.Ended}, End: EndDone}}
	a := newAxis(d)
	if len(a.breaks) != 2 {
		t.Fatalf("%d breaks, want those of 54 s and of a day: %v", len(a.breaks), a.breaks)
	}
	last := a.parts[len(a.parts)-1]
	if end := last.at + last.width; math.Abs(end-100) > 0.01 {
		t.Errorf("the axis ends at %v", end)
	}
	var moments []time.Time
	for _, s := range d.Steps {
		for _, act := range s.Acts {
			moments = append(moments, act.From, act.To)
		}
	}
	slices.SortFunc(moments, time.Time.Compare)
	was := 0.0
	for _, m := range moments {
		if p := a.place(m); p < was-1e-6 || p > 100.001 {
			t.Errorf("%v stands at %v, after %v", m, p, was)
		} else {
			was = p
		}
	}
	l := newLine(d)
	if w, _ := strconv.ParseFloat(l.Rows[0].Bars[0].Width, 64); w < 10 {
		t.Errorf("40 s of %v s of work are drawn %v wide", d.Worked, w)
	}
	// Resumed ever so often, the breaks leave room for the rest.
	for i := range 40 {
		s := Span{From: d.Began.Add(time.Duration(300+20*i) * time.Second), To: d.Began.Add(time.Duration(315+20*i) * time.Second)}
		d.Pauses = append(d.Pauses, Pause{Span: s})
	}
	if a := newAxis(d); len(a.breaks) > 12 {
		t.Errorf("%d breaks", len(a.breaks))
	}
}

func TestWords(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0 ms", 3 * time.Millisecond: "3 ms", 3900 * time.Millisecond: "3.9 s", 59990 * time.Millisecond: "1 min",
		134 * time.Second: "2 min 14 s", time.Hour: "1 h", 63 * time.Minute: "1 h 3 min", 52 * time.Hour: "2 d 4 h", -time.Second: "0 ms",
	} {
		if got := Length(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1500: "1.5 kB", 999_960: "1.0 MB", 14_180_000_000: "14.2 GB"} {
		if got := size(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
	for want, c := range map[string][2]int64{"": {0, 5}, "as before": {5, 5}, "about as before": {1000, 1004}, "80 % less": {100, 20}, "50 % more": {100, 150}, "3.0 times as much": {100, 300}} {
		if got := change(c[0], c[1]); got != want {
			t.Errorf("%v is %q, want %q", c, got, want)
		}
	}
}

// TestContrast: every text can be read on what it stands on, light and dark, and every
// bar told from what is behind it (WCAG 2, 4.5 and 3 to 1).
func TestContrast(t *testing.T) {
	t.Parallel()
	blocks := regexp.MustCompile(`(?s):root \{(.*?)\n *\}`).FindAllStringSubmatch(page, -1)
	if len(blocks) != 2 {
		t.Fatalf("%d sets of colours", len(blocks))
	}
	for i, block := range blocks {
		colours := map[string]string{}
		for _, m := range regexp.MustCompile(`--(\w+): #([0-9a-f]{6})`).FindAllStringSubmatch(block[1], -1) {
			colours[m[1]] = m[2]
		}
		for least, pairs := range map[float64]string{
			4.5: "ink/paper soft/paper soft/sheet ink/sheet good/paper bad/paper good/goodpaper bad/badpaper ink/badpaper ink/calmpaper",
			3:   "do/paper do/down do/away undo/paper undo/down undo/away bad/down bad/away bad/paper",
		} {
			for pair := range strings.FieldsSeq(pairs) {
				a, b, _ := strings.Cut(pair, "/")
				if c := contrast(t, colours[a], colours[b]); c < least {
					t.Errorf("set %d: %s has a contrast of %.2f", i+1, pair, c)
				}
			}
		}
	}
}

func contrast(t *testing.T, a, b string) float64 {
	t.Helper()
	x, y := luminance(t, a), luminance(t, b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

func luminance(t *testing.T, hex string) float64 {
	t.Helper()
	n, err := strconv.ParseUint(hex, 16, 24)
	if err != nil {
		t.Fatal(err)
	}
	part := func(shift int, weight float64) float64 {
		c := float64(n>>shift&0xff) / 255
		if c <= 0.03928 {
			return weight * c / 12.92
		}
		return weight * math.Pow((c+0.055)/1.055, 2.4)
	}
	return part(16, 0.2126) + part(8, 0.7152) + part(0, 0.0722)
}
