package host

import (
	"path/filepath"
	"strings"
)

// A line of fstab is parked by making a comment of it that names a run: systemd
// and mount(8) do not see it any more, a person does, and it can be given back
// byte for byte whatever else has become of the file.
func parkMark(run string) string { return runComment + run + " has parked: " }

// ParkFstab makes comments of the lines for a mount point. Every other line stays
// byte for byte as it is. A text that cannot be understood is a [*FstabError].
func ParkFstab(text []byte, run, path string) ([]byte, error) {
	if err := checkRun(run); err != nil {
		return nil, err
	}
	if _, err := ParseFstab(text); err != nil {
		return nil, err
	}
	lines := fstabLines(text)
	for i, l := range lines {
		if e, ok, _ := parseFstabLine(l); ok && filepath.Clean(e.Path) == filepath.Clean(path) && e.Run != run {
			lines[i] = parkMark(run) + l
		}
	}
	return []byte(strings.Join(lines, "")), nil
}

// UnparkFstab is the text with the lines that a run has parked as they were.
func UnparkFstab(text []byte, run string) []byte {
	lines := fstabLines(text)
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, parkMark(run))
	}
	return []byte(strings.Join(lines, ""))
}

// DropParked is the text without the lines that a run has parked, nor the comment
// that storagectl has put above one of its own.
func DropParked(text []byte, run string) []byte {
	var keep []string
	for _, l := range fstabLines(text) {
		was, parked := strings.CutPrefix(l, parkMark(run))
		if !parked {
			keep = append(keep, l)
			continue
		}
		if e, ok, _ := parseFstabLine(was); ok && e.Run != "" && len(keep) > 0 && strings.TrimRight(keep[len(keep)-1], "\r\n") == runComment+e.Run {
			keep = keep[:len(keep)-1]
		}
	}
	return []byte(strings.Join(keep, ""))
}

// HasParked reports whether a run has parked lines in the text.
func HasParked(text []byte, run string) bool {
	for _, l := range fstabLines(text) {
		if strings.HasPrefix(l, parkMark(run)) {
			return true
		}
	}
	return false
}
