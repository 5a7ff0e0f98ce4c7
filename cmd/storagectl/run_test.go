package main

import (
	"testing"

	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/migrate"
)

// TestCommitText: who is asked knows whose store goes, where it is, and what it frees.
func TestCommitText(t *testing.T) {
	in := migrate.Inputs{Owner: podman.Owner{Name: "hashi"}, Store: migrate.Store{GraphRoot: "/srv/storage", Driver: "vfs"}}
	const want = `This deletes for good the old vfs store of hashi, which run 0006-migrate-4f77 keeps in
  /srv/storage/.storagectl-0006-migrate-4f77/old
and frees 30.7 MB. There is no rollback after it.
`
	if got := commitText(in, "0006-migrate-4f77", 30_700_000); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
