package doctor

import (
	"context"
	"time"

	"github.com/storagectl/storagectl/verify/dockerapi"
)

const groupAPI = "docker api"

// ReplayDockerAPI makes the calls of a worker on the socket of the store's owner
// and gives each as a result. pull is an image to be pulled; empty: none.
func ReplayDockerAPI(ctx context.Context, h *Host, pull string) []Result {
	const why = "Workers of Prefect, and other clients of Docker's API, make this call."
	if err := h.canRun(); err != nil {
		return []Result{{Check: "replay", Group: groupAPI, Title: "The replay", Why: why, Finding: unknown(err)}}
	}
	began := time.Now()
	calls, err := askOwner[replayed](ctx, h, opReplay, dockerapi.Options{Socket: h.socketPath(), Pull: pull})
	if err == nil && calls.Why != "" {
		err = replayError(calls.Why)
	}
	var results []Result
	for _, c := range calls.Calls {
		f := ok("%s", c.Saw)
		switch {
		case c.Left:
			f.Outcome = Absent
		case c.Odd && c.Name == "memory":
			f = warning(c.Saw, "storagectl doctor"+h.userFlag()+" --check cgroups  # or set no mem_limit for work on this host")
		case c.Odd:
			f = warning(c.Saw, "a newer podman may answer as Docker does; until then a worker must not build on it")
		case !c.OK && c.Name == "version":
			f = problem(c.Saw, socketMends(h))
		case !c.OK:
			f = problem(c.Saw, h.as("podman --log-level=debug system service")+"  # shows the other side")
		}
		results = append(results, Result{Check: c.Name, Group: groupAPI, Title: c.What, Why: why, Seconds: c.Took.Seconds(), Finding: f})
	}
	if err != nil {
		results = append(results, Result{Check: "replay", Group: groupAPI, Title: "The replay", Why: why, Seconds: time.Since(began).Seconds(),
			Finding: problem(err.Error(), socketMends(h))})
	}
	return results
}

func socketMends(h *Host) string {
	return "storagectl doctor" + h.userFlag() + " --check socket-unit --check socket-answers --check socket-mode"
}

// replayed carries calls over the worker's pipe.
type replayed struct {
	Calls []dockerapi.Call `json:"calls"`
	Why   string           `json:"why,omitempty"` // it could not be tried, or not to its end
}

type replayError string

func (e replayError) Error() string { return string(e) }

func replay(ctx context.Context, o dockerapi.Options) replayed {
	calls, err := dockerapi.Replay(ctx, o)
	r := replayed{Calls: calls}
	if err != nil {
		r.Why = err.Error()
	}
	return r
}
