package integration

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A matrix is the table of docs/compatibility.md. It is kept as JSON beside it, so
// that a run of some cells leaves the others as they were seen.
type matrix struct {
	mu    sync.Mutex
	Cells []cell `json:"cells"`
}

// add runs one cell. What it did not come to see is shown as that.
func (m *matrix) add(t *testing.T, release, user string) {
	c, w := cell{Release: release, Owner: ownerKind(user)}, &witness{TB: t}
	defer func() {
		c.Stopped = w.saw
		m.mu.Lock()
		defer m.mu.Unlock()
		m.Cells = append(m.Cells, c)
	}()
	c.run(w, user, true)
}

// A witness remembers why a test could not go on.
type witness struct {
	testing.TB
	saw string
}

func (w *witness) Fatal(args ...any) {
	w.Helper()
	w.saw = fmt.Sprint(args...)
	w.TB.Fatal(args...)
}

func (w *witness) Fatalf(format string, args ...any) {
	w.Helper()
	w.saw = fmt.Sprintf(format, args...)
	w.TB.Fatalf(format, args...)
}

const (
	matrixData  = "docs/compatibility.json"
	matrixDoc   = "docs/compatibility.md"
	matrixBegin = "<!-- what make matrix saw -->\n"
	matrixEnd   = "<!-- end of what make matrix saw -->\n"
)

func readMatrix(root string) (*matrix, error) {
	m := &matrix{}
	b, err := os.ReadFile(filepath.Join(root, matrixData))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(b, m)
	}
	return m, err
}

// write puts the cells of this run in the place of those of earlier ones, and the
// table into the document.
func (m *matrix) write(root string) error {
	all, err := readMatrix(root)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.Cells {
		i := slices.IndexFunc(all.Cells, func(o cell) bool { return o.Release == c.Release && o.Owner == c.Owner })
		if i < 0 {
			all.Cells = append(all.Cells, c)
		} else {
			all.Cells[i] = c
		}
	}
	order := []string{"bullseye", "bookworm", "trixie", "forky", "rootless", "rootful"}
	slices.SortFunc(all.Cells, func(a, b cell) int {
		return cmp.Or(slices.Index(order, a.Release)-slices.Index(order, b.Release), slices.Index(order, a.Owner)-slices.Index(order, b.Owner))
	})
	b, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, matrixData), append(b, '\n'), 0o644); err != nil {
		return err
	}
	doc := filepath.Join(root, matrixDoc)
	text, err := os.ReadFile(doc)
	if err != nil {
		return err
	}
	before, _, after, err := cutTable(string(text))
	if err != nil {
		return err
	}
	return os.WriteFile(doc, []byte(before+all.table()+after), 0o644)
}

// cutTable splits the document around what is written by the run.
func cutTable(text string) (before, table, after string, err error) {
	i, j := strings.Index(text, matrixBegin), strings.Index(text, matrixEnd)
	if i < 0 || j < i {
		return "", "", "", errors.New("no place for the table in " + matrixDoc)
	}
	i += len(matrixBegin)
	return text[:i], text[i:j], text[j:], nil
}

// table is what stands in the document.
func (m *matrix) table() string {
	if len(m.Cells) == 0 {
		return ""
	}
	var b strings.Builder
	var notes []string
	note := func(text string) string {
		text = strings.ReplaceAll(strings.ReplaceAll(text, "\n", " "), "|", "\\|")
		i := slices.Index(notes, text)
		if i < 0 {
			i, notes = len(notes), append(notes, text)
		}
		return fmt.Sprintf(" (%d)", i+1)
	}
	row := func(name string, of func(cell) string) {
		fmt.Fprintf(&b, "\n| %s |", name)
		for _, c := range m.Cells {
			b.WriteString(" " + cmp.Or(of(c), "–") + " |")
		}
	}
	row("", func(c cell) string { return c.Release + ", " + c.Owner })
	row("---", func(cell) string { return "---" })
	row("podman", func(c cell) string { return c.Podman })
	row("database", func(c cell) string { return c.Database })
	row("networks by", func(c cell) string { return c.Networks })
	of := func(name string) func(cell) string {
		return func(c cell) string {
			o := c.Kinds[name]
			switch {
			case o.What == differs:
				return "**" + differs + "**" + note(o.Why)
			case o.What == "" || o.What == unseen:
				return unseen + note(cmp.Or(short(c.Stopped), "the run had no such kind"))
			case o.Why != "":
				return o.What + note(o.Why)
			}
			return o.What
		}
	}
	for _, k := range kinds() {
		row(k.name, of(k.name))
	}
	row(storeItself, of(storeItself))
	row("podman was down, seconds", func(c cell) string {
		if c.Down == 0 {
			return ""
		}
		return fmt.Sprintf("%.0f", c.Down)
	})
	row("seen on", func(c cell) string { return c.Date })
	b.WriteString("\n\n")
	for i, text := range notes {
		fmt.Fprintf(&b, "%d. %s\n", i+1, text)
	}
	var machines []string
	for _, c := range m.Cells {
		if !slices.Contains(machines, c.Machine) {
			machines = append(machines, c.Machine)
		}
	}
	fmt.Fprintf(&b, "\nMachine: %s; all releases on this one kernel, several nodes at a time.\n\n", strings.Join(machines, "; and "))
	b.WriteString("Fields of `podman inspect` that another driver and another start change, and that are not compared:\n\n| field | why |\n| --- | --- |\n")
	for _, c := range changes() {
		fmt.Fprintf(&b, "| `%s` | %s |\n", c.field, c.why)
	}
	b.WriteString("| `vfs-containers` in any path | podman's folder of a container is named after the driver |\n")
	return strings.TrimPrefix(b.String(), "\n")
}

// short is the beginning of a text that may have many lines.
func short(text string) string {
	if text = strings.Join(strings.Fields(text), " "); len(text) > 300 {
		text = text[:300] + " …"
	}
	return text
}

// TestMatrixTable: the table of the document is the one of the data beside it.
func TestMatrixTable(t *testing.T) {
	t.Parallel()
	m, err := readMatrix(root(t))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root(t), matrixDoc))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _, err := cutTable(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if table != m.table() {
		t.Errorf("%s is not what %s says; the table would be:\n%s", matrixDoc, matrixData, m.table())
	}
}
