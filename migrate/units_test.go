package migrate

import (
	"reflect"
	"testing"
)

// TestBegunSince: a rollback starts again what was begun after the migration,
// but for what a socket of before or of then starts.
func TestBegunSince(t *testing.T) {
	before := units{Own: []string{"podman.socket", "gone.service"}, System: []string{"root.socket"}}
	now := units{
		Own:    []string{"later.socket", "podman.socket", "later.service", "new.service", "podman.service", "web.service"},
		System: []string{"root.socket", "root.service", "new.service"},
	}
	since := now.without(before)
	s := &Session{facts: Facts{Units: &before, Since: &since}}
	want := units{Own: []string{"web.service", "new.service", "later.socket"}, System: []string{"new.service"}}
	if got := s.begunSince(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := s.toStart(), (units{Own: []string{"gone.service", "podman.socket"}, System: []string{"root.socket"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("what ran before: %+v, want %+v", got, want)
	}
	s.facts.Since = nil
	if got := s.begunSince(); !got.none() {
		t.Errorf("%+v without a rollback", got)
	}
}
