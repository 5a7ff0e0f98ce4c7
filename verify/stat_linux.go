package verify

import (
	"io/fs"
	"syscall"
)

// inodeOf is the inode number of what info describes.
func inodeOf(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
