package migrate

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/storagectl/storagectl/internal/report"
	"github.com/storagectl/storagectl/verify"
)

// checks are what the run made sure of, each with what it looked at.
func (g *gathering) checks() []report.Check {
	var list []report.Check
	add := func(step, what, text string) {
		if _, is := g.titles[step]; !is {
			return
		}
		c := report.Check{What: what, Result: report.NotMade}
		switch {
		case !g.st.Steps[step].Done.IsZero():
			c.Result, c.Text = report.Passed, text
		case g.course.failedIn(step):
			c.Result = report.NotPassed
		}
		list = append(list, c)
	}
	prove := ""
	if n := len(g.facts.Checked); n > 0 {
		prove = fmt.Sprintf("%s, each entry as the old store shows it and as the new one does", Count(n, "image", "images"))
	}
	add(stepProve, "The store that was built anew, before podman was stopped", prove)
	back := ""
	if c := g.facts.Copied; c != nil {
		back = fmt.Sprintf("%s, %s, by their checksums", Count(c.Files, "file", "files"), Bytes(c.Bytes))
	}
	add(stepReadBack, "The copy, read back from the disk", back)
	if g.in.DatabaseOnly() {
		add(stepVerify, "Podman's objects, compared with those of before", g.held())
	} else {
		add(stepVerify, "What the store held, compared with what it holds", g.held())
		add(stepVerify, "A sample of files, through the new driver", g.sampled())
	}
	add(stepVerify, "A container ran", g.smoked())
	add(stepSmoke, "A container ran", g.smoked())
	add(stepStart, "What ran before runs again, and podman's socket answers", "")
	calls := ""
	if n := len(g.facts.DockerAPI); n > 0 {
		calls = Count(n, "call", "calls")
	}
	add(StepDockerAPI, "A Docker client's calls on podman's socket", calls)
	add(stepUndrain, "The Nomad node is as it was before, its podman driver healthy", "")
	add(stepCanary, "A canary job ran through Nomad", g.in.Request.Outage.Canary)
	return list
}

// held counts what the manifest names.
func (g *gathering) held() string {
	if g.manifest == nil {
		return ""
	}
	count := map[string]int{}
	for _, o := range g.manifest.Podman.Objects {
		count[o.Kind]++
	}
	words := []string{Count(len(g.manifest.Store.Images), "image", "images"), Count(len(g.manifest.Store.Layers), "layer", "layers")}
	for _, kind := range []string{"container", "pod", "volume", "secret", "network"} {
		if n := count[kind]; n > 0 {
			words = append(words, Count(n, kind, kind+"s"))
		}
	}
	return strings.Join(words, ", ") + ": none is missing, none is otherwise"
}

func (g *gathering) sampled() string {
	if g.facts.Sample == nil {
		return ""
	}
	b, err := g.s.keptFile(g.facts.Sample)
	var sample verify.Sample
	if err == nil {
		err = json.Unmarshal(b, &sample)
	}
	if err != nil {
		g.miss("the sample of files", err)
		return ""
	}
	images := map[string]bool{}
	for _, e := range sample.Entries {
		images[e.Image] = true
	}
	return fmt.Sprintf("%s of %s, %s hashed", Count(len(sample.Entries), "entry", "entries"), Count(len(images), "image", "images"), Bytes(sample.Bytes()))
}

func (g *gathering) smoked() string {
	s := g.facts.Smoke
	if s == nil {
		return ""
	}
	text := fmt.Sprintf("podman %s on %s, the container's root on %s", s.PodmanVersion, s.Driver, s.RootFS)
	if s.Driver == overlay && s.Overlay.Native {
		text += ", mounted by the kernel"
	} else if s.Overlay.MountProgram != "" {
		text += ", mounted by " + s.Overlay.MountProgram
	}
	return text
}

func (g *gathering) calls() []report.Call {
	var list []report.Call
	for _, c := range g.facts.DockerAPI {
		list = append(list, report.Call{Name: c.Name, What: c.What, Saw: c.Saw, OK: c.OK, Left: c.Left, Odd: c.Odd, Seconds: c.Took.Seconds()})
	}
	return list
}
