package main

import "testing"

func TestPaste(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "",
		"storagectl resume 3 finishes it": "storagectl resume --state-dir /s 3 finishes it",
		"storagectl status shows it; then storagectl rollback": "storagectl status --state-dir /s shows it; then storagectl rollback --state-dir /s",
		`"storagectl commit 3" removes it`:                     `"storagectl commit --state-dir /s 3" removes it`,
		"storagectl runbook list tells which there are":        "storagectl runbook list --state-dir /s tells which there are",
		"storagectl has no statusbar":                          "storagectl has no statusbar",
		"a run of storagectl is under way":                     "a run of storagectl is under way",
	} {
		got := paste(text, "/s")
		if got != want {
			t.Errorf("%q became %q", text, got)
		}
		if again := paste(got, "/s"); again != got {
			t.Errorf("%q became %q", got, again)
		}
		if paste(text, "") != text {
			t.Errorf("%q is not let be", text)
		}
	}
	if got := paste("storagectl resume", "/a b"); got != "storagectl resume --state-dir '/a b'" {
		t.Error(got)
	}
}
