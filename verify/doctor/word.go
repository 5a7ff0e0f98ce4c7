package doctor

import "strings"

// word makes one word of a shell of any text: the commands that are told are meant
// to be pasted, by root, and names of files, images and containers are their
// owner's choice.
func word(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-:@+=,%", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// words makes a shell's words of each.
func words(all []string) string {
	quoted := make([]string, len(all))
	for i, s := range all {
		quoted[i] = word(s)
	}
	return strings.Join(quoted, " ")
}

// Word makes one word of a shell of any text, for commands that are told elsewhere.
func Word(s string) string { return word(s) }
