package convert

import "github.com/containers/storage/pkg/reexec"

// Reexec must be the first call of a program that uses this package or package
// verify: containers/storage runs the program again for mounts and for work in
// other roots. True: this was such a run, and it is over.
func Reexec() bool { return reexec.Init() }
