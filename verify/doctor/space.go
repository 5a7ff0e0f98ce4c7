package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

func lookSpace(ctx context.Context, h *Host, graphRoot, _, _ string) Finding {
	s, err := h.store()
	if err != nil {
		return notSeen(err)
	}
	if s.Size == 0 {
		return Finding{Outcome: Unknown, Saw: "the filesystem does not tell its size"}
	}
	free := 100 * float64(s.Free) / float64(s.Size)
	saw := fmt.Sprintf("%s of %s free (%.0f %%) at %s", size(s.Free), size(s.Size), free, s.MountedOn)
	mend := func() []string { return []string{h.as("podman image prune"), h.moreRoom(ctx, s)} }
	if s.Inodes > 0 {
		if inodes := 100 * float64(s.InodesFree) / float64(s.Inodes); inodes < 5 {
			return problem(fmt.Sprintf("%s; %.0f %% of inodes free", saw, inodes), mend()...)
		}
	}
	switch {
	case free < 5 && s.Free < 20e9:
		return problem(saw, mend()...)
	case free < 15 && s.Free < 100e9:
		return warning(saw, mend()...)
	}
	return ok("%s", saw)
}

// moreRoom is the command that gives the store more room: where it is on an image of
// Ceph that can grow, it need not move.
func (h *Host) moreRoom(ctx context.Context, s storeSeen) string {
	if h.Images != nil && s.MountedOn == s.Root {
		images, err := h.Images(ctx)
		for _, i := range images {
			if err == nil && i.Device == s.Source {
				// Twice what it has, in the units of --size.
				size := fmt.Sprintf("%dG", max(1, 2*s.Size/1e9))
				return strings.Join(slices.Concat([]string{"storagectl", "relocate" + h.userFlag(), "--rbd", word(i.Name), "--size", size}, i.Flags, []string{"--dry-run"}), " ")
			}
		}
	}
	return "storagectl relocate" + h.userFlag() + " --path DIR --dry-run"
}

// size writes a number of bytes for people, in units of 1000.
func size(n uint64) string {
	f, units := float64(n), []string{"B", "kB", "MB", "GB", "TB", "PB"}
	for f >= 1000 && len(units) > 1 {
		f, units = f/1000, units[1:]
	}
	return fmt.Sprintf("%.3g %s", f, units[0])
}
