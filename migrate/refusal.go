package migrate

// Refusal says why a job is not begun, or is taken back before it changed
// anything, and what would lift that.
type Refusal struct {
	ID   string `json:"id"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
	// Policy is Nomad's, as HCL: lines to be taken as they stand. Its names are
	// quoted.
	Policy string `json:"policy,omitempty"`
}

func (r *Refusal) Error() string { return r.Text }
