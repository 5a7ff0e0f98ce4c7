package runbooks

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/tell"
)

const durationHint = "it is a length of time above zero, a number with its unit: 90s, 15m, 12h, 7d"

// parseDuration reads a length of time as Go does, and days besides: 7d, 1d12h.
func parseDuration(text string) (time.Duration, error) {
	days, rest, found := strings.Cut(text, "d")
	if !found {
		return time.ParseDuration(text)
	}
	n, err := strconv.ParseUint(days, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is no length of time", text)
	}
	d := time.Duration(n) * 24 * time.Hour
	if rest == "" {
		return d, nil
	}
	more, err := time.ParseDuration(rest)
	return d + more, err
}

// parseSize reads a number of bytes as disks are sold: 20GB, 20G and 20 000 000 000
// are the same.
func parseSize(text string) (uint64, error) {
	number := strings.TrimSuffix(text, "B")
	factor := uint64(1)
	for i, unit := range []string{"k", "M", "G", "T"} {
		if rest, ok := strings.CutSuffix(number, unit); ok {
			number = rest
			for range i + 1 {
				factor *= 1000
			}
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || n > math.MaxInt64/factor {
		return 0, errors.New("it is a number of bytes, with k, M, G or T (of 1000) if you like: 20GB")
	}
	return n * factor, nil
}

// sizeText is a size as the flags of all commands take it: 20G.
func sizeText(n uint64) string {
	unit := ""
	for _, u := range []string{"k", "M", "G", "T"} {
		if n == 0 || n%1000 != 0 {
			break
		}
		n, unit = n/1000, u
	}
	return strconv.FormatUint(n, 10) + unit
}

// value reads what is said for a parameter, and gives it as it is put in.
func (p Param) value(text string) (string, error) {
	if text == "" && !p.Required { // it is left out
		return "", nil
	}
	if len(p.OneOf) > 0 && !slices.Contains(p.OneOf, text) {
		return "", fmt.Errorf("it is one of %s", strings.Join(p.OneOf, ", "))
	}
	switch p.Type {
	case "int":
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return "", errors.New("it is a whole number")
		}
		return strconv.FormatInt(n, 10), nil
	case "bool":
		if text != "true" && text != "false" {
			return "", errors.New("it is true or false")
		}
	case "size":
		n, err := parseSize(text)
		if err != nil {
			return "", err
		}
		return sizeText(n), nil
	case "duration":
		d, err := parseDuration(text)
		if err != nil {
			return "", errors.New(durationHint)
		}
		return brief.Time(d), nil
	}
	if strings.ContainsRune(text, 0) {
		return "", errors.New("it cannot have a zero byte")
	}
	return text, nil
}

func (b *Runbook) checkParam(name string) error {
	p, at := b.Params[name], "params."+name
	if !isParam(name) {
		return b.wrong(at, "names of parameters are made of small letters, digits and _", "a parameter cannot be called %q", name)
	}
	if types := []string{"", "string", "int", "bool", "size", "duration"}; !slices.Contains(types, p.Type) {
		return b.wrong(at+".type", "the types are "+strings.Join(types[1:], ", "), "there is no type %q", p.Type)
	}
	if p.Required && p.Default != nil {
		return b.wrong(at+".default", "leave one of the two out", "what must be said needs no default")
	}
	for _, v := range p.OneOf {
		if _, err := (Param{Type: p.Type, Required: true}).value(v); err != nil {
			return b.wrong(at+".one_of", "", "%q cannot be a value: %v", v, err)
		}
	}
	if p.Default != nil {
		if _, err := p.value(*p.Default); err != nil {
			return b.wrong(at+".default", "", "%q cannot be the value: %v", *p.Default, err)
		}
	}
	return nil
}

// ParamError says what is wrong with a value that was said for a parameter.
type ParamError struct{ Text, Hint string }

func (e *ParamError) Error() string { return e.Text }

// values gives each parameter its value: what is said, else its default.
func (b *Runbook) values(said map[string]string) (map[string]string, error) {
	for _, name := range sorted(said) {
		if _, ok := b.Params[name]; !ok {
			e := &ParamError{Text: fmt.Sprintf("runbook %s has no parameter %q", b.Name, name), Hint: "it has none"}
			if near := tell.Nearest(name, sorted(b.Params)); near != "" {
				e.Hint = fmt.Sprintf("did you mean %q?", near)
			} else if len(b.Params) > 0 {
				e.Hint = "it has " + strings.Join(sorted(b.Params), ", ")
			}
			return nil, e
		}
	}
	all := map[string]string{}
	for _, name := range sorted(b.Params) {
		p := b.Params[name]
		text, given := said[name]
		switch {
		case !given && p.Required || p.Required && text == "":
			return nil, &ParamError{Text: fmt.Sprintf("runbook %s needs the parameter %q", b.Name, name), Hint: strings.TrimRight(fmt.Sprintf("--param %s=…  %s", name, p.Description), " ")}
		case !given && p.Default != nil:
			text = *p.Default
		}
		v, err := p.value(text)
		if err != nil {
			return nil, &ParamError{Text: fmt.Sprintf("the parameter %q cannot be %q", name, text), Hint: err.Error()}
		}
		all[name] = v
	}
	return all, nil
}

// refs lists the parameters that a text names.
func refs(text string) []string {
	var names []string
	_ = replace(text, func(name string) string { names = append(names, name); return "" })
	return names
}

// replace puts with(name) for each ${name}, and ${ for $${.
func replace(text string, with func(string) string) string {
	var b strings.Builder
	for {
		i := strings.Index(text, "${")
		if i < 0 {
			b.WriteString(text)
			return b.String()
		}
		if i > 0 && text[i-1] == '$' {
			b.WriteString(text[:i-1] + "${")
			text = text[i+2:]
			continue
		}
		name, rest, closed := strings.Cut(text[i+2:], "}")
		if !closed {
			b.WriteString(text[:i] + with(text[i+2:]))
			return b.String()
		}
		b.WriteString(text[:i] + with(name))
		text = rest
	}
}

// fill puts the parameters' values into a text.
func fill(text string, values map[string]string) string {
	return replace(text, func(name string) string { return values[name] })
}

// wordsOf are the values of one flag: several, if it is said again.
func wordsOf(v any) ([]string, error) {
	switch v := v.(type) {
	case string:
		if strings.ContainsRune(v, 0) {
			return nil, errors.New("a string cannot have a zero byte")
		}
		return []string{v}, nil
	case bool:
		return []string{strconv.FormatBool(v)}, nil
	case int64:
		return []string{strconv.FormatInt(v, 10)}, nil
	case []any:
		var all []string
		for _, e := range v {
			if _, list := e.([]any); list {
				return nil, errors.New("a list cannot hold lists")
			}
			w, err := wordsOf(e)
			if err != nil {
				return nil, err
			}
			all = append(all, w...)
		}
		return all, nil
	}
	return nil, errors.New("a value is a string, a whole number, true or false, or a list of these")
}
