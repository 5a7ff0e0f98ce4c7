package migrate

import (
	"path/filepath"
	"strings"

	"github.com/storagectl/storagectl/verify"
)

// folder is the run's folder, beside what the run makes: in the store, or on the
// target of a relocation.
func (s *Session) folder() string {
	if s.relocating() {
		return runFolder(s.targetFolder(), s.ID)
	}
	return runFolder(s.Inputs.Store.GraphRoot, s.ID)
}

func (s *Session) storeRef(driver string) verify.StoreRef {
	st := s.Inputs.Store
	return verify.StoreRef{GraphRoot: st.GraphRoot, RunRoot: st.RunRoot, Driver: driver, ImageStores: st.ImageStores}
}

func (s *Session) swap() swap {
	major, _, _ := strings.Cut(s.Inputs.Podman, ".")
	root := s.Inputs.Store.GraphRoot
	if s.relocating() {
		root = s.targetFolder()
	}
	return swap{GraphRoot: root, Folder: s.folder(), From: s.Inputs.Store.Driver, To: s.Inputs.Request.To,
		Native: s.Inputs.Request.To == "overlay" && major != "3"}
}

func (s *Session) db() dbArgs {
	st := s.Inputs.Store
	return dbArgs{Path: s.dbPath(), Saved: filepath.Join(s.folder(), "db"), From: st.Driver, To: s.Inputs.Request.To}
}
