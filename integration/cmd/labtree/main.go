// Command labtree prints the tree of each folder it is given, one JSON array
// [folder, path, text] a line. The tests run it in a node, in the user
// namespace of a store's owner.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"github.com/storagectl/storagectl/integration/lab/tree"
)

func main() {
	out := bufio.NewWriter(os.Stdout)
	enc := json.NewEncoder(out)
	for _, dir := range os.Args[1:] {
		var werr error
		err := tree.Walk(dir, tree.Options{}, func(path, text string) {
			if err := enc.Encode([]string{dir, path, text}); err != nil && werr == nil {
				werr = err
			}
		})
		if err == nil {
			err = werr
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "error: %v\n", err)
			os.Exit(1)
		}
	}
	if err := out.Flush(); err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}
