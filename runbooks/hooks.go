package runbooks

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"

	"github.com/storagectl/storagectl/drain"
)

// HooksFlag is the flag of migrate and relocate by which a task's command reads its
// hooks from stdin, as a JSON list of flags and values: the words of a hook may be a
// secret, and a command line can be read by everybody for as long as the command runs.
const HooksFlag = "hooks-from"

// hookAt reads the hook that a command line has at i; nil: there is none.
func hookAt(argv []string, i int) (words []string) {
	if i+1 >= len(argv) || !strings.HasPrefix(argv[i], "--hook-") || json.Unmarshal([]byte(argv[i+1]), &words) != nil || len(words) == 0 {
		return nil
	}
	return words
}

// handed is a command line without the words of its hooks, and what is written to its
// stdin instead; nil where it has none.
func handed(argv []string) ([]string, io.Reader) {
	var line, hooks []string
	for i := 0; i < len(argv); i++ {
		if hookAt(argv, i) == nil {
			line = append(line, argv[i])
			continue
		}
		hooks = append(hooks, argv[i], argv[i+1])
		i++
	}
	if hooks == nil {
		return argv, nil
	}
	text, _ := json.Marshal(hooks) // strings always can be
	return append(line, "--"+HooksFlag, "-"), bytes.NewReader(text)
}

// named is a command line for people: hooks are named, without the words after it.
func named(argv []string) []string {
	var line []string
	for i := 0; i < len(argv); i++ {
		line = append(line, argv[i])
		if words := hookAt(argv, i); words != nil {
			name := drain.HookName(words)
			if len(words) > 1 {
				name += " …"
			}
			line = append(line, name)
			i++
		}
	}
	return line
}
