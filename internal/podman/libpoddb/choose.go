package libpoddb

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Choose gives the one database among found that podman of this version really
// uses. backend is databaseBackend of `podman info` ("" where podman is too old
// to say, before 4.6): it settles what an option in containers.conf may have
// set. No database gives Facts of Kind None.
//
// Without that word the rules are podman's own (getDBState in
// libpod/runtime.go): before 4.8 BoltDB; from 4.8 db.sql if there, else
// BoltDB if there; from 6 only SQLite.
//
// Refusals: ErrBoth when two databases hold objects; ErrBackend when the
// database in use cannot be read by this podman, or holds nothing while one that
// podman does not look at holds objects.
func Choose(found []Facts, podmanVersion, backend string) (Facts, error) {
	major, minor, err := parseVersion(podmanVersion)
	if err != nil {
		return Facts{}, err
	}
	var full []Facts
	for _, f := range found {
		if f.Objects() > 0 {
			full = append(full, f)
		}
	}
	if len(full) > 1 {
		return Facts{}, fmt.Errorf("%w: %s (%d) and %s (%d)", ErrBoth, full[0].Path, full[0].Objects(), full[1].Path, full[1].Objects())
	}
	if len(found) == 0 {
		return Facts{Kind: None, Containers: []Container{}, Pods: []string{}, Volumes: []string{}}, nil
	}

	use := Kind(backend)
	if use != BoltDB && use != SQLite {
		has := func(k Kind) bool {
			return slices.ContainsFunc(found, func(f Facts) bool { return f.Kind == k })
		}
		use = SQLite
		if major < 4 || major == 4 && minor < 8 || major < 6 && !has(SQLite) && has(BoltDB) {
			use = BoltDB
		}
	}
	// Of two files of one kind the one with objects is in use: both places are
	// looked at by the same podman, depending on its options only.
	candidates := append(slices.Clone(full), found...)
	i := slices.IndexFunc(candidates, func(f Facts) bool { return f.Kind == use })
	if i < 0 {
		return Facts{}, fmt.Errorf("%w: podman %s uses %s, but the store has only %s", ErrBackend, podmanVersion, use, found[0].Path)
	}
	chosen := candidates[i]
	if len(full) == 1 && full[0].Path != chosen.Path {
		return Facts{}, fmt.Errorf("%w: podman %s uses %s, which is empty, while %s holds %d objects", ErrBackend, podmanVersion, chosen.Path, full[0].Path, full[0].Objects())
	}
	return chosen, nil
}

func parseVersion(v string) (major, minor int, err error) {
	parts := strings.SplitN(v, ".", 3)
	if len(parts) >= 2 {
		if major, err = strconv.Atoi(parts[0]); err == nil {
			if minor, err = strconv.Atoi(parts[1]); err == nil {
				return major, minor, nil
			}
		}
	}
	return 0, 0, fmt.Errorf("cannot read podman version %q: %w", v, ErrBackend)
}
