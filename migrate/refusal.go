package migrate

// Refusal says why a job is not begun, or is taken back before it changed
// anything, and what would lift that.
type Refusal struct {
	ID   string `json:"id"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

func (r *Refusal) Error() string { return r.Text }
