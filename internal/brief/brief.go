// Package brief writes values as briefly as they can be read again.
package brief

import (
	"strings"
	"time"
)

// Time writes a length of time without the parts that are zero: 15m, not 15m0s. It is
// for people and for flags; time.ParseDuration reads it.
func Time(d time.Duration) string {
	text := strings.Replace(d.String(), "m0s", "m", 1)
	return strings.Replace(text, "h0m", "h", 1)
}
