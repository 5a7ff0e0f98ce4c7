package host

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// FstabEntry is what one line of fstab(5) says, with octal escapes decoded.
type FstabEntry struct {
	Source  string   `json:"source"`
	Path    string   `json:"path"` // the mount point; "none" for swap
	Type    string   `json:"type"`
	Options []string `json:"options"` // without the mark
	Dump    int      `json:"dump,omitempty"`
	Pass    int      `json:"pass,omitempty"`
}

// FstabLine is a line of fstab that mounts something.
type FstabLine struct {
	FstabEntry
	Line int    `json:"line"`          // from 1
	Text string `json:"text"`          // as it stands there
	Run  string `json:"run,omitempty"` // the run of storagectl that made it; "": somebody else did
}

// FstabError says that fstab is not what it should be.
type FstabError struct {
	Line int
	Why  string
}

func (e *FstabError) Error() string {
	return fmt.Sprintf("cannot read fstab: line %d %s", e.Line, e.Why)
}

// FstabTakenError says that another line mounts something at a path already.
type FstabTakenError struct{ FstabLine }

func (e *FstabTakenError) Error() string {
	whose := "is not storagectl's"
	if e.Run != "" {
		whose = "is of run " + e.Run
	}
	return fmt.Sprintf("cannot add %s to fstab: line %d is for it already and %s: %s", e.Path, e.Line, whose, e.Text)
}

// Our lines carry an option that says whose they are: mount(8) has programs put
// their own there under x-NAME., and gives it to no filesystem. So the mark moves
// and goes with the line. The comment above is for people.
const (
	runOption  = "x-storagectl.run="
	runComment = "# storagectl "
)

// ParseFstab gives the lines of a file that mount something. The error is a
// [*FstabError] where a line cannot be understood: it may hide anything.
func ParseFstab(text []byte) ([]FstabLine, error) {
	var all []FstabLine
	for i, l := range fstabLines(text) {
		e, ok, err := parseFstabLine(l)
		if err != "" {
			return nil, &FstabError{Line: i + 1, Why: err}
		}
		if ok {
			e.Line = i + 1
			all = append(all, e)
		}
	}
	return all, nil
}

// fstabLines cuts a text after each newline.
func fstabLines(text []byte) []string {
	lines := strings.SplitAfter(string(text), "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

func parseFstabLine(l string) (e FstabLine, ok bool, why string) {
	if strings.ContainsRune(l, 0) {
		return e, false, "holds a zero byte"
	}
	e.Text = strings.TrimSuffix(strings.TrimSuffix(l, "\n"), "\r")
	// Only these two separate (fstab(5)); other blanks are part of a field.
	f := strings.FieldsFunc(e.Text, func(r rune) bool { return r == ' ' || r == '\t' })
	if len(f) == 0 || strings.HasPrefix(f[0], "#") {
		return e, false, ""
	}
	if len(f) < 3 {
		return e, false, fmt.Sprintf("has only %d fields: %q", len(f), e.Text)
	}
	e.Source, e.Path, e.Type = unescapeFstab(f[0]), unescapeFstab(f[1]), unescapeFstab(f[2])
	if len(f) > 3 {
		for _, o := range splitOptions(unescapeFstab(f[3])) {
			if run, is := strings.CutPrefix(o, runOption); is {
				e.Run = run
			} else {
				e.Options = append(e.Options, o)
			}
		}
	}
	// libmount takes what is no number for none at all (seen, 2.38).
	for i, n := range []*int{&e.Dump, &e.Pass} {
		if len(f) > 4+i {
			*n, _ = strconv.Atoi(f[4+i])
		}
	}
	return e, true, ""
}

// splitOptions cuts at commas outside of double quotes, which SELinux contexts
// come in.
func splitOptions(s string) []string {
	quoted := false
	return strings.FieldsFunc(s, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return r == ',' && !quoted
	})
}

// unescapeFstab decodes a backslash with three octal digits, and leaves any
// other backslash as it is, like libmount.
func unescapeFstab(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func escapeFstab(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; c {
		case ' ', '\t', '\n', '\r', '\\', '#':
			fmt.Fprintf(&b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// FstabHow is how a line of ours is to be mounted.
type FstabHow struct {
	Boot    bool // at boot instead of when it is first used
	Network bool // needs the network (_netdev)
	// Wait is how long the device may take to come, and the mounting itself; 0: as
	// systemd has it, 90 s.
	Wait     time.Duration
	Requires []string // units
	After    []string // units that may fail, such as rbdmap.service: of any image of the host
	More     []string // the filesystem's own options
	// Environment, NAME=VALUE, is of the program that mounts. Only a unit can have it.
	Environment string
}

// FstabOptions renders options. The default is an automount: boot does not wait
// for the mount, and who uses the path does. At boot it is nofail, without which a
// lost disk is a machine that does not come up; units that need the mount say so
// themselves ([StoreDropIn]).
func FstabOptions(how FstabHow) []string {
	o := []string{"noauto", "noatime"}
	if how.Boot {
		o = []string{"nofail", "noatime"}
	}
	if how.Network {
		o = append(o, "_netdev")
	}
	if !how.Boot {
		o = append(o, "x-systemd.automount")
	}
	for _, u := range how.Requires {
		o = append(o, "x-systemd.requires="+u)
	}
	for _, u := range how.After {
		o = append(o, "x-systemd.after="+u)
	}
	if how.Wait > 0 {
		s := seconds(how.Wait)
		if !how.Boot { // else who starts it early in a boot has remote-fs.target, and all logins, wait for it
			o = append(o, "nofail")
		}
		o = append(o, "x-systemd.device-timeout="+s, "x-systemd.mount-timeout="+s)
	}
	return append(o, how.More...)
}

// seconds is a time as systemd and fstab take it.
func seconds(d time.Duration) string { return strconv.Itoa(int(d.Seconds())) + "s" }

// EditFstab gives the text with the lines of a run being exactly those wanted,
// none to remove them. New ones go to the end. Every other line stays byte for
// byte as it is; only a last line that is not ended is ended. The error is a
// [*FstabTakenError] where a line that is not the run's has the mount point, and a
// [*FstabError] where the text cannot be understood.
func EditFstab(text []byte, run string, want []FstabEntry) ([]byte, error) {
	if err := checkRun(run); err != nil {
		return nil, err
	}
	lines := fstabLines(text)
	if _, err := ParseFstab(text); err != nil {
		return nil, err
	}
	end := "\n"
	var keep, ours []string
	for i, l := range lines {
		e, ok, _ := parseFstabLine(l)
		if ok && e.Run == run {
			ours = append(ours, l)
			if n := len(keep); n > 0 && strings.TrimRight(keep[n-1], "\r\n") == runComment+run {
				keep = keep[:n-1]
			}
			continue
		}
		if ok {
			for _, w := range want {
				if filepath.Clean(w.Path) == filepath.Clean(e.Path) {
					e.Line = i + 1
					return nil, &FstabTakenError{e}
				}
			}
		}
		keep = append(keep, l)
		if strings.HasSuffix(l, "\r\n") {
			end = "\r\n"
		} else {
			end = "\n"
		}
	}
	var add []string
	for _, w := range want {
		l, err := fstabText(w, run)
		if err != nil {
			return nil, err
		}
		add = append(add, l)
	}
	same := slices.EqualFunc(ours, add, func(a, b string) bool { return strings.TrimRight(a, "\r\n") == b })
	if same {
		return text, nil
	}
	out := strings.Join(keep, "")
	if len(add) > 0 && out != "" && !strings.HasSuffix(out, "\n") {
		out += end
	}
	for _, l := range add {
		out += runComment + run + end + l + end
	}
	return []byte(out), nil
}

// RevertFstab gives what fstab has to be when a run that found before and wrote
// after is undone: before, if it is as the run left it; else only the run's lines
// go from what is there now.
func RevertFstab(now, before, after []byte, run string) ([]byte, error) {
	if bytes.Equal(now, after) {
		return before, nil
	}
	return EditFstab(now, run, nil)
}

// fstabText renders a line. What cannot be said in one is refused.
func fstabText(e FstabEntry, run string) (string, error) {
	options := append(slices.Clone(e.Options), runOption+run)
	l := fmt.Sprintf("%s %s %s %s %d %d", escapeFstab(e.Source), escapeFstab(e.Path), escapeFstab(e.Type),
		escapeFstab(strings.Join(options, ",")), e.Dump, e.Pass)
	back, ok, _ := parseFstabLine(l)
	if !ok || back.Run != run || !filepath.IsAbs(e.Path) || back.Source != e.Source || back.Path != e.Path || back.Type != e.Type ||
		!slices.Equal(back.Options, e.Options) || back.Dump != e.Dump || back.Pass != e.Pass {
		return "", fmt.Errorf("cannot say in fstab: %+v", e)
	}
	return l, nil
}

func checkRun(run string) error {
	ok := run != ""
	for _, r := range run {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}
	if !ok {
		return fmt.Errorf("cannot mark lines of fstab: %q is no name of a run", run)
	}
	return nil
}
