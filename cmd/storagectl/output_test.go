package main

import (
	"bytes"
	"fmt"
	"testing"
)

// TestClean: text of other people's making cannot steer the terminal.
func TestClean(t *testing.T) {
	var b bytes.Buffer
	fmt.Fprintf(printable{&b}, "a\x1b]0;owned\x07b\tü\n\u009b1m\xff")
	if got, want := b.String(), "a\\x1b]0;owned\\x07b\tü\n\\x9b1m\\xfffd"; got != want {
		t.Fatalf("%q, want %q", got, want)
	}
}
