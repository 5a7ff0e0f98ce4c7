package main

import (
	"regexp"
	"strings"

	"github.com/storagectl/storagectl/verify/doctor"
)

// paste has the commands of ours in a text say where the runs are, where that was said
// to this one: so that they can be pasted. stateDir is as it was given, made absolute;
// empty where it was not.
func paste(text, stateDir string) string {
	const command = "storagectl "
	if stateDir == "" || !strings.Contains(text, command) {
		return text
	}
	const flag = " --state-dir "
	verbs := regexp.MustCompile(`\b` + command + `(?:migrate|relocate|resume|rollback|commit|status|history|drain|undrain|doctor|verify|prune|report|metrics|runbook(?: (?:list|show|validate|run|install|remove))?)\b`)
	var b strings.Builder
	last := 0
	for _, at := range verbs.FindAllStringIndex(text, -1) {
		b.WriteString(text[last:at[1]])
		if last = at[1]; !strings.HasPrefix(text[last:], flag) { // else it was put there before
			b.WriteString(flag + doctor.Word(stateDir))
		}
	}
	return b.String() + text[last:]
}
