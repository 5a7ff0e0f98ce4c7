package runbooks

import "time"

// Patience is how long a task may give no sign of life before it counts as hung. A job
// tells each minute that it lives, a command only when it has ended; others wait by
// their own deadlines, which may be long.
func (in Inputs) Patience(task string, _ bool) time.Duration {
	const usual, others = 30 * time.Minute, 25 * time.Hour
	for _, t := range in.Plan.Tasks {
		switch {
		case t.ID != task:
		case t.Run == runExec && t.Timeout == 0:
			return usual + execTimeout + in.Plan.WindowWait
		case t.Run == runExec:
			return usual + t.Timeout + in.Plan.WindowWait
		case !job(t.Run):
			return others + in.Plan.WindowWait
		}
	}
	return usual
}
