package host

import (
	"context"
	"fmt"
)

// UnitState is what systemd says of a unit. One that is not there is no error:
// Load says not-found.
type UnitState struct {
	Load   string `json:"load"`   // loaded, not-found, masked, …
	Active string `json:"active"` // active, inactive, failed, …
	File   string `json:"file"`   // enabled, disabled, static, masked, …; empty where there is no file
}

// UnitState asks for the state of a unit of any kind.
func (b *Bus) UnitState(ctx context.Context, unit string) (UnitState, error) {
	p, err := b.conn.GetUnitPropertiesContext(ctx, unit)
	if err != nil {
		return UnitState{}, fmt.Errorf("cannot look at unit %s: %w", unit, err)
	}
	text := func(key string) string {
		s, _ := p[key].(string)
		return s
	}
	s := UnitState{Load: text("LoadState"), Active: text("ActiveState"), File: text("UnitFileState")}
	if s.Load == "" || s.Active == "" {
		return UnitState{}, fmt.Errorf("cannot look at unit %s: systemd does not tell its state", unit)
	}
	return s, nil
}
