package rbd

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// RBDMap is where the images are listed that rbdmap.service maps at boot.
const RBDMap = "/etc/ceph/rbdmap"

// mapMark stands above the lines that are ours: the script of rbdmap.service
// knows comments as whole lines only.
const mapMark = "# storagectl: the next line is its own, do not edit"

// MapEntry is a line of rbdmap.
type MapEntry struct {
	Spec    Spec
	User    string   // without "client."
	Keyring string   // path
	KeyFile string   // likewise, with nothing but the key
	Conf    string   // path of a ceph.conf that is not the usual one
	Mons    []string // the monitors' addresses, where no ceph.conf tells them
	Options []string // of the mapping, such as "exclusive"
}

func (e MapEntry) line() (string, error) {
	var params []string
	if e.User != "" {
		params = append(params, "id="+e.User)
	}
	if e.Keyring != "" {
		params = append(params, "keyring="+e.Keyring)
	}
	if e.KeyFile != "" {
		params = append(params, "keyfile="+e.KeyFile)
	}
	if e.Conf != "" {
		params = append(params, "conf="+e.Conf)
	}
	mons := strings.Join(e.Mons, ",") // one may be of two addresses, as in ceph.conf
	if mons != "" {
		params = append(params, "mon_host='"+mons+"'")
	}
	if len(e.Options) > 0 {
		params = append(params, "options='"+strings.Join(e.Options, ",")+"'")
	}
	if _, err := ParseSpec(e.Spec.String()); err != nil {
		return "", err
	}
	bare := []string{e.User, e.Keyring, e.KeyFile, e.Conf}
	for _, w := range slices.Concat(bare, strings.Split(mons, ","), e.Options) {
		// Outside of quotes the script makes blanks of '='.
		if strings.ContainsAny(w, " \t\r\n\x00'\",#\\") || slices.Contains(bare, w) && strings.Contains(w, "=") {
			return "", fmt.Errorf("cannot write %q into %s", w, RBDMap)
		}
	}
	return strings.TrimRight(e.Spec.String()+"\t"+strings.Join(params, ","), "\t"), nil
}

// ErrForeign reports a line for the same image that is not ours.
var ErrForeign = errors.New("there is a line for this image already, by another hand")

// SetEntry returns rbdmap's text with one line for the image: a line of ours is
// replaced, or one is added at the end. All other lines stay as they are, byte
// for byte. A line for the same image that is not ours is [ErrForeign].
func SetEntry(text []byte, e MapEntry) ([]byte, error) {
	line, err := e.line()
	if err != nil {
		return nil, err
	}
	lines, at, err := find(text, e.Spec)
	if err != nil {
		return nil, err
	}
	eol := lineEnd(text)
	if at >= 0 {
		end := tailEnd(lines[at])
		if end == "" { // the script does not read a last line without one
			end = eol
		}
		lines[at] = []byte(line + end)
		return bytes.Join(lines, nil), nil
	}
	out := bytes.Clone(text)
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, eol...)
	}
	return append(out, mapMark+eol+line+eol...), nil
}

// RemoveEntry returns rbdmap's text without our line for the image; without one
// the text stays as it is.
func RemoveEntry(text []byte, spec Spec) ([]byte, error) {
	lines, at, err := find(text, spec)
	if err != nil && !errors.Is(err, ErrForeign) {
		return nil, err
	}
	if at < 0 {
		return bytes.Clone(text), nil
	}
	return bytes.Join(append(lines[:at-1:at-1], lines[at+1:]...), nil), nil
}

// HasEntry tells whether rbdmap has a line for the image, and whether it is ours.
func HasEntry(text []byte, spec Spec) (there, ours bool) {
	_, at, err := find(text, spec)
	return at >= 0 || err != nil, at >= 0 && err == nil
}

// Entries are the lines of rbdmap, by whatever hand, in their order; those that map
// a snapshot, which nobody writes to, are left out. The error names the lines that
// name no image.
func Entries(text []byte) ([]MapEntry, error) {
	var all []MapEntry
	var bad error
	for line := range strings.Lines(string(text)) {
		w := strings.Fields(line)
		if len(w) == 0 || strings.HasPrefix(w[0], "#") || strings.Contains(w[0], "@") {
			continue
		}
		if !strings.Contains(w[0], "/") {
			w[0] = "rbd/" + w[0]
		}
		spec, err := ParseSpec(w[0])
		if err != nil {
			bad = errors.Join(bad, err)
			continue
		}
		e := MapEntry{Spec: spec}
		for key, value := range params(strings.Join(w[1:], " ")) {
			switch key {
			case "id":
				e.User = value
			case "keyring":
				e.Keyring = value
			case "keyfile":
				e.KeyFile = value
			case "conf":
				e.Conf = value
			case "mon_host", "mon-host":
				e.Mons = strings.Split(value, ",")
			case "options":
				e.Options = strings.Split(value, ",")
			}
		}
		all = append(all, e)
	}
	return all, bad
}

// params cuts a line's parameters at the commas outside of quotes.
func params(text string) map[string]string {
	all, quoted, begin := map[string]string{}, false, 0
	for i, c := range text + "," {
		if c == '\'' {
			quoted = !quoted
		}
		if c == ',' && !quoted || i == len(text) {
			key, value, _ := strings.Cut(text[begin:i], "=")
			all[strings.TrimSpace(key)] = strings.Trim(value, "'")
			begin = i + 1
		}
	}
	return all
}

// find splits the text into lines with their ends and returns the index of our
// line for the image, -1 without one.
func find(text []byte, spec Spec) (lines [][]byte, at int, err error) {
	lines, at = bytes.SplitAfter(text, []byte("\n")), -1
	for i, l := range lines {
		if !names(l, spec) {
			continue
		}
		marked := i > 0 && strings.TrimRight(string(lines[i-1]), "\r\n") == mapMark
		if !marked || at >= 0 {
			err = ErrForeign
			continue
		}
		at = i
	}
	return lines, at, err
}

// names tells whether a line maps the image. The script takes what stands before
// the first blank as the image, and one without a pool as of the pool rbd.
func names(line []byte, spec Spec) bool {
	w := strings.Fields(string(line))
	if len(w) == 0 || strings.HasPrefix(w[0], "#") {
		return false
	}
	name, _, _ := strings.Cut(w[0], "@")
	if !strings.Contains(name, "/") {
		name = "rbd/" + name
	}
	return name == spec.String()
}

func lineEnd(text []byte) string {
	if i := bytes.IndexByte(text, '\n'); i > 0 && text[i-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}

func tailEnd(line []byte) string {
	return string(line[len(bytes.TrimRight(line, "\r\n")):])
}
