package runbooks

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/storagectl/storagectl/internal/engine"
)

// ChangedError reports a runbook that is not any more what a run of it was begun with.
// It is an [engine.ErrPlanChanged].
type ChangedError struct {
	Name, Origin string
	// Diff are the lines that differ, with - and + and their numbers; none: the file
	// is gone.
	Diff []string
}

func (e *ChangedError) Error() string {
	if len(e.Diff) == 0 {
		return fmt.Sprintf("the plan changed since the run began: runbook %s is no longer there (%s)", e.Name, e.Origin)
	}
	return fmt.Sprintf("the plan changed since the run began: runbook %s (%s) has\n%s", e.Name, e.Origin, strings.Join(e.Diff, "\n"))
}

// Unwrap makes it an [engine.ErrPlanChanged].
func (e *ChangedError) Unwrap() error { return engine.ErrPlanChanged }

// Changed returns a [*ChangedError] if the runbook is not what the run was begun with.
func (in Inputs) Changed() error {
	var text []byte
	var err error
	if in.Origin == Embedded {
		text, err = embedded.ReadFile("embedded/" + in.Name + ".toml")
	} else {
		text, err = read(in.Origin)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &ChangedError{Name: in.Name, Origin: in.Origin}
	case err != nil:
		return err
	case sum(string(text)) == in.SHA256:
		return nil
	}
	return &ChangedError{Name: in.Name, Origin: in.Origin, Diff: diff(in.Text, string(text))}
}

// mostLines is how many lines are compared one by one.
const mostLines = 2000

// diff lists the lines that went and those that came.
func diff(old, now string) []string {
	a, b := strings.Split(old, "\n"), strings.Split(now, "\n")
	first := 0
	for first < len(a) && first < len(b) && a[first] == b[first] {
		first++
	}
	for len(a) > first && len(b) > first && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	a, b = a[first:], b[first:]
	if len(a) > mostLines || len(b) > mostLines {
		return []string{fmt.Sprintf("%d other lines than the %d from line %d on", len(b), len(a), first+1)}
	}
	// common[i][k] is how many lines a[i:] and b[k:] have in common, in order.
	common := make([][]int, len(a)+1)
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for k := len(b) - 1; k >= 0; k-- {
			if a[i] == b[k] {
				common[i][k] = common[i+1][k+1] + 1
			} else {
				common[i][k] = max(common[i+1][k], common[i][k+1])
			}
		}
	}
	var lines []string
	for i, k := 0, 0; i < len(a) || k < len(b); {
		switch {
		case i < len(a) && k < len(b) && a[i] == b[k]:
			i, k = i+1, k+1
		case i < len(a) && (k == len(b) || common[i+1][k] >= common[i][k+1]):
			lines = append(lines, fmt.Sprintf("-%4d %s", first+i+1, a[i]))
			i++
		default:
			lines = append(lines, fmt.Sprintf("+%4d %s", first+k+1, b[k]))
			k++
		}
	}
	return lines
}
