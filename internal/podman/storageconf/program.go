package storageconf

import (
	"fmt"
	"path/filepath"
	"strings"
	"unicode"
)

const (
	programKey = "storage.options.overlay.mount_program"
	whyProgram = "the filesystem cannot hold overlay natively"
)

// EditProgram gives src with the program that mounts overlays, by changing as few
// bytes as it can, and with the same guarantees as [Edit].
func EditProgram(src []byte, program string) (out []byte, changes []Change, err error) {
	if !filepath.IsAbs(program) || strings.ContainsFunc(program, unicode.IsControl) {
		return nil, nil, fmt.Errorf("cannot set mount_program in storage.conf: %w: %q is no path of a program", ErrInvalid, program)
	}
	out, changes, err = change(src, func(e *editor, s *scanned) error { return e.setProgram(s, program) })
	if err != nil {
		return nil, nil, fmt.Errorf("cannot set mount_program in storage.conf: %w", err)
	}
	return out, changes, nil
}

func (e *editor) setProgram(s *scanned, program string) error {
	value := quoted(program)
	if it := s.find(programKey); it != nil {
		now, ok := stringAt(e.want, it.path)
		if !ok {
			return fmt.Errorf("%w: line %d: mount_program is not a string", ErrInvalid, e.line(it.start))
		}
		if now == program {
			return nil
		}
		e.patches = append(e.patches, patch{it.valueStart, it.end, value})
		e.changes = append(e.changes, Change{e.line(it.start), programKey, string(e.doc[it.valueStart:it.end]), value, whyProgram})
		setAt(e.want, it.path, program)
		return nil
	}
	nl := e.newline()
	at, text := len(e.doc), "[storage.options.overlay]"+nl+"mount_program = "+value+nl
	if s.overlay >= 0 { // the line after the table's name
		at, text = e.lineEnd(s.overlay), "mount_program = "+value+nl
	} else if at > 0 {
		text = nl + text
	}
	if at > 0 && e.doc[at-1] != '\n' {
		text = nl + text
	}
	e.patches = append(e.patches, patch{at, at, text})
	e.changes = append(e.changes, Change{e.line(at), programKey, "", value, whyProgram})
	// Spelled as the file spells it, where it has such tables.
	path := []string{"storage", "options", "overlay", "mount_program"}
	for _, it := range s.items {
		for i := 0; i < len(it.path)-1 && i < 3 && strings.EqualFold(it.path[i], path[i]); i++ {
			path[i] = it.path[i]
		}
	}
	setAt(e.want, path, program)
	return nil
}
