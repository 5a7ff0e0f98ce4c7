//go:build cgo

// Command storagectl-ceph is storagectl's hand in a Ceph cluster: it links
// librados, librbd and libcephfs, which storagectl itself does not. Storagectl
// starts it; no person needs to.
package main

import (
	"fmt"
	"maps"
	"os"

	ceph "github.com/storagectl/storagectl/ceph/native"
	"github.com/storagectl/storagectl/internal/cephlink"
	link "github.com/storagectl/storagectl/internal/cephlink/native"
	rbd "github.com/storagectl/storagectl/rbd/native"
)

var version = "unknown" // the linker sets it

const usage = "usage: storagectl-ceph requests | rbd-serve [FILE] | version\nstoragectl starts it; see storagectl relocate --help\n"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "requests":
		s := &link.Session{}
		handlers := s.Handlers(version)
		maps.Copy(handlers, ceph.Handlers(s))
		maps.Copy(handlers, rbd.Handlers(s))
		return cephlink.Serve(os.Stdin, os.Stdout, handlers)
	case len(args) == 1 && args[0] == "rbd-serve":
		return rbd.Serve(os.Stdin, os.Stdout)
	case len(args) == 2 && args[0] == "rbd-serve":
		f, err := os.Open(args[1])
		if err != nil {
			return fmt.Errorf("cannot read what to serve: %w", err)
		}
		defer f.Close()
		return rbd.Serve(f, os.Stdout)
	case len(args) == 1 && args[0] == "version":
		fmt.Println(version)
		return nil
	}
	fmt.Fprint(os.Stderr, usage)
	os.Exit(2)
	return nil
}
