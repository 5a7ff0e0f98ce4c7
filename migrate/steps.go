package migrate

import (
	"github.com/storagectl/storagectl/internal/engine"
)

// The steps of a migrate job, by the names that journals know.
const (
	stepStage     = "stage"
	stepProve     = "prove"
	stepStop      = StepStop
	stepStageRest = "stage-rest"
	stepSwap      = "swap"
	stepRepoint   = "repoint"
	stepConf      = "storage-conf"
	stepUnitFiles = "unit-files"
	stepMigrateDB = "migrate-db"
	stepClear     = "clear-run-state"
	stepVerify    = "verify"
	stepDrop      = "drop-containers"
	stepStart     = StepStart
	stepCommit    = StepCommit
	stepReset     = "reset"
	stepSmoke     = "smoke-test"
)

// StepCommit is the step that removes the old store.
const StepCommit = "commit"

// StepStop stops podman, and StepStart has it work again.
const (
	StepStop  = "stop"
	StepStart = "start"
)

// steps is the plan. It depends on the inputs alone, so that the same journal
// always gives the same plan.
func (s *Session) steps() []engine.Step {
	switch {
	case s.Inputs.Growing():
		return s.growSteps()
	case s.relocating():
		return s.around(s.relocateSteps())
	case s.Inputs.DatabaseOnly():
		return s.around(s.databaseOnlySteps())
	case s.Inputs.Request.Images == Discard:
		return s.around(s.discardSteps())
	}
	return s.around(s.keepSteps())
}

// keepSteps converts the store and keeps everything in it. Until the last step,
// the old store is whole in the run's folder.
func (s *Session) keepSteps() []engine.Step {
	stopped := []string{stepStop}
	plan := []engine.Step{
		{Name: stepStage, Title: "stage the new store beside the live one", Pausable: true,
			Do: s.stage, Undo: s.unstage},
		{Name: stepProve, Title: "compare the staged store with the live one", Pausable: true,
			Do: s.prove},
		{Name: stepStop, Title: "stop podman", Pausable: true,
			Holds: s.stopped, Do: s.stop, Undo: s.putBack},
	}
	plan = append(append(plan, s.databaseSteps()...), []engine.Step{
		{Name: stepStageRest, Title: "stage what changed since", Needs: stopped,
			Holds: s.stagedAll, Do: s.stageRest},
		{Name: stepSwap, Title: "move the new store in and the old one aside", Needs: stopped,
			Holds: s.swapped, Do: s.swapIn, Undo: s.swapBack},
		{Name: stepRepoint, Title: "point podman's database to the new driver", Needs: stopped,
			Holds: s.repointed, Do: s.repoint, Undo: s.restoreDB},
		{Name: stepConf, Title: "write storage.conf", Needs: stopped,
			Holds: s.configured, Do: s.configure, Undo: s.unconfigure},
	}...)
	plan = append(append(plan, s.unitFileSteps()...), []engine.Step{
		{Name: stepClear, Title: "clear the old driver's run state", Needs: stopped,
			Holds: s.cleared, Do: s.clear, Undo: s.unclear},
		{Name: stepVerify, Title: "verify against the manifest and run a container", Needs: stopped,
			Do: s.verify},
	}...)
	if s.Inputs.Request.Containers == Discard {
		plan = append(plan, engine.Step{Name: stepDrop, Title: "remove the containers", Needs: stopped,
			Holds: s.containersDropped, Do: s.dropContainers})
	}
	return append(plan,
		engine.Step{Name: stepStart, Title: "start what ran before",
			Holds: s.started, Do: s.startUnits},
		engine.Step{Name: stepCommit, Title: "remove the old store", Final: true,
			Holds: s.folderGone, Do: s.removeOld},
	)
}

// discardSteps is the classic way, for those who want an empty store. Its reset
// cannot be undone; the operator's word to discard is the word to commit.
func (s *Session) discardSteps() []engine.Step {
	stopped := []string{stepStop}
	return []engine.Step{
		{Name: stepStop, Title: "stop podman", Pausable: true,
			Holds: s.stopped, Do: s.stop, Undo: s.startUnits},
		{Name: stepReset, Title: "podman system reset", Needs: stopped, Final: true,
			Holds: s.isReset, Do: s.reset},
		{Name: stepConf, Title: "write storage.conf", Needs: stopped,
			Holds: s.configured, Do: s.configure},
		{Name: stepClear, Title: "clear the old driver's run state", Needs: stopped,
			Holds: s.cleared, Do: s.clear},
		{Name: stepSmoke, Title: "run a container", Needs: stopped,
			Do: s.smoke},
		{Name: stepStart, Title: "start what ran before",
			Holds: s.started, Do: s.startUnits},
	}
}
