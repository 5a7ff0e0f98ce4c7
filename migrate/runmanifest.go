package migrate

import (
	"encoding/json"
	"fmt"

	"github.com/storagectl/storagectl/internal/engine"
	"github.com/storagectl/storagectl/verify"
)

// RunManifest is the manifest that a run took of the store before it changed
// anything, and whose store it is.
func RunManifest(dir engine.Dir, run string) (verify.Manifest, Inputs, error) {
	st, err := engine.Read(dir.RunPath(run))
	if err != nil {
		return verify.Manifest{}, Inputs{}, err
	}
	s := Session{ID: run, env: Env{Dir: dir}}
	if s.Inputs, err = DecodeInputs(st); err != nil {
		return verify.Manifest{}, Inputs{}, err
	}
	for name, to := range map[string]any{"before": &s.facts.Before, "beforeAnew": &s.facts.BeforeAnew} {
		raw, is := st.Facts[name]
		if !is {
			continue
		}
		if err := json.Unmarshal(raw, to); err != nil {
			return verify.Manifest{}, Inputs{}, fmt.Errorf("cannot read the run's facts: %w", err)
		}
	}
	m, err := s.readManifest()
	return m, s.Inputs, err
}
