package prune

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// This file finds the words of units that may be names. Most are no names of anything;
// to be kept for one of them costs no more than its room.

// namesInUnits are the words of all files that may name something of podman's: in files
// of Quadlet's all words, in those of systemd the words of lines that run podman, and
// those of the YAML files that either hands to podman, which are read by read. A part
// that only systemd fills in stands for any text.
func namesInUnits(files []unitFile, read func(path string) (string, error)) []Wanted {
	vars := variables(files)
	by := map[string]string{}
	for _, f := range files {
		names, whole := wordsOf(f, vars, read)
		if !whole {
			names = append(names, "*")
		}
		for _, w := range names {
			if by[w] == "" {
				by[w] = filepath.Base(f.Path)
				if w == "*" && !whole {
					by[w] += ", which has what cannot be read,"
				}
			}
		}
	}
	var all []Wanted
	for _, w := range slices.Sorted(maps.Keys(by)) {
		all = append(all, Wanted{Name: w, By: by[w]})
	}
	return all
}

// unit is what systemd fills in for a file.
type unit struct {
	name, instance string // "" if that is not known
	template       bool   // nobody says of which instance
	home           string
	vars           map[string][]string
}

func unitOf(f unitFile, vars map[string][]string) unit {
	base := filepath.Base(f.Path)
	if dir := filepath.Base(filepath.Dir(f.Path)); strings.HasSuffix(base, ".conf") && strings.HasSuffix(dir, ".d") {
		base = strings.TrimSuffix(dir, ".d")
	}
	u := unit{home: f.Home, vars: vars}
	stem := strings.TrimSuffix(base, filepath.Ext(base))
	if stem == base || strings.HasSuffix(stem, "-") {
		return u // a drop-in of many
	}
	u.name = stem
	if _, instance, is := strings.Cut(stem, "@"); is {
		u.instance, u.template = instance, instance == ""
	}
	return u
}

// variables are the values that units give to each variable, of all units together: a
// drop-in has those of another file.
func variables(files []unitFile) map[string][]string {
	vars := map[string][]string{}
	for _, f := range files {
		for _, line := range lines(f.Text) {
			key, value, _ := strings.Cut(line, "=")
			if key = strings.TrimSpace(key); key != "Environment" {
				continue
			}
			for _, set := range quoted(value) {
				if name, v, is := strings.Cut(set, "="); is && !slices.Contains(vars[name], v) {
					vars[name] = append(vars[name], v)
				}
			}
		}
	}
	return vars
}

// quoted splits a line at spaces that stand in no quotes.
func quoted(line string) (all []string) {
	var quote rune
	word, begun := "", false
	for _, r := range line + " " {
		switch {
		case quote == 0 && (r == '"' || r == '\''):
			quote, begun = r, true
		case r == quote && quote != 0:
			quote = 0
		case quote == 0 && strings.ContainsRune(" \t", r):
			if begun {
				all = append(all, word)
			}
			word, begun = "", false
		default:
			word, begun = word+string(r), true
		}
	}
	return all
}

func lines(text string) (all []string) {
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ";") {
			all = append(all, line)
		}
	}
	return all
}

// naming are the keys whose value is a name, or has one. One that is not known at all
// counts only there.
func naming(key string, quadlet bool) bool {
	if !quadlet {
		return strings.HasPrefix(key, "Exec")
	}
	return slices.Contains([]string{"Image", "ImageTag", "Volume", "VolumeName", "Mount", "ContainerName", "Pod", "PodName", "PodmanArgs"}, key)
}

// wordsOf are the names in a file. whole is false if it hands podman a file that cannot
// be read.
func wordsOf(f unitFile, vars map[string][]string, read func(string) (string, error)) (names []string, whole bool) {
	whole = true
	u := unitOf(f, vars)
	if strings.Contains(f.Text, "EnvironmentFile") || strings.Contains(f.Text, "PassEnvironment") {
		u.vars = nil
	}
	if isYAML(f.Path) {
		return yamlWords(f.Text), true
	}
	podman := strings.Contains(f.Text, "podman")
	for _, line := range lines(f.Text) {
		key, value, _ := strings.Cut(line, "=")
		key = strings.TrimSpace(key)
		// What a unit that runs podman sets may be the name of an image.
		if !f.Quadlet && !strings.Contains(line, "podman") && (!podman || key != "Environment") {
			continue
		}
		kube, yaml := key == "Yaml", false
		if !f.Quadlet {
			kube = strings.HasPrefix(key, "Exec") && byFile(line)
		}
		for _, raw := range split(line, " \t\r\n\"'=,;|&") {
			if strings.Trim(raw, "*") == "" {
				continue
			}
			for _, w := range u.fill(raw) {
				switch {
				case kube && (isYAML(w) || f.Quadlet && w != key || raw == "%I" || raw == "%i"):
					yaml = true
					if u.template && strings.Contains(w, "*") {
						break // its instances have links of their own
					}
					if f.Quadlet && !filepath.IsAbs(w) {
						w = filepath.Join(filepath.Dir(f.Path), w)
					}
					text, err := read(w)
					if err != nil || !filepath.IsAbs(w) || strings.Contains(w, "*") {
						whole = false
					}
					names = append(names, yamlWords(text)...)
				case strings.Trim(w, "*") == "" && !naming(key, f.Quadlet):
				case isName(w):
					names = append(names, w)
				}
			}
		}
		if kube && !yaml && value != "" {
			whole = false // it is found where podman looks
		}
	}
	return names, whole
}

func isYAML(path string) bool {
	return slices.Contains([]string{".yml", ".yaml", ".json"}, filepath.Ext(path))
}

func yamlWords(text string) []string {
	return slices.DeleteFunc(split(text, " \t\r\n\"'=,{}[]"), func(w string) bool { return strings.Trim(w, "*") == "" || !isName(w) })
}

func split(text, at string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(at, r) })
}

// isName is false for what is a part of a command line, such as an option: it is
// nobody's name.
func isName(w string) bool {
	_, err := strconv.Atoi(w)
	return err != nil && w != "" && !strings.HasPrefix(w, "-") && !strings.HasPrefix(w, "/") && !strings.HasPrefix(w, "[") && len(w) <= 512
}

// byFile says whether a command line has podman read a file with names.
func byFile(line string) bool {
	return regexp.MustCompile(`\bkube\s+(play|down|apply)\b|\bplay\s+kube\b|\bpodman[- ]compose\b`).MatchString(line)
}

// fill gives what systemd makes of a word: a variable alone may be several.
func (u unit) fill(w string) []string {
	if !strings.Contains(w, "$") {
		return []string{u.specifiers(w)}
	}
	variable := regexp.MustCompile(`\$\{[^}]*\}|\$[A-Za-z0-9_]+`)
	w = strings.ReplaceAll(w, "$$", "$")
	name := func(v string) string { return strings.Trim(v, "${}") }
	if v := variable.FindString(w); v == w && v != "" && len(u.vars[name(v)]) > 0 {
		var all []string
		for _, value := range u.vars[name(v)] {
			for _, part := range split(value, " \t\"'=,") {
				all = append(all, u.specifiers(part))
			}
		}
		return all
	}
	w = variable.ReplaceAllStringFunc(w, func(v string) string {
		if values := u.vars[name(v)]; len(values) == 1 {
			return values[0]
		}
		return "*"
	})
	if before, _, cut := strings.Cut(w, "${"); cut { // it goes on after a space or a sign
		w = before + "*"
	}
	return []string{u.specifiers(w)}
}

// specifiers puts what is known for each %x (man systemd.unit), and * for the rest.
func (u unit) specifiers(w string) string {
	var b strings.Builder
	for i := 0; i < len(w); i++ {
		if w[i] != '%' || i+1 == len(w) {
			b.WriteByte(w[i])
			continue
		}
		i++
		prefix, _, _ := strings.Cut(u.name, "@")
		known := ""
		switch w[i] {
		case '%':
			known = "%"
		case 'h':
			known = u.home
		case 't', 'S', 'C', 'L', 'E', 'T', 'V', 'd', 'D', 'y', 'Y':
			known = "/*" // a folder
		case 'i':
			known = u.instance
		case 'I':
			known = unescape(u.instance)
		}
		if u.name != "" && !u.template {
			switch w[i] {
			case 'n':
				known = u.name + ".service"
			case 'N':
				known = u.name
			}
		}
		if u.name != "" && w[i] == 'p' {
			known = prefix
		}
		if known == "" {
			known = "*"
		}
		b.WriteString(known)
	}
	return b.String()
}

// unescape is systemd-escape --unescape.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		if s[i] == '-' {
			b.WriteByte('/')
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
