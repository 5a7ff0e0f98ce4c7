// Command testsummary reads the output of go test -json and prints what a
// person wants of it: the output of tests that failed, a line for each package,
// the slowest tests, the totals. It exits 1 when anything failed.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
	// ImportPath stands in for Package in the events of a failed build.
	ImportPath string
}

type result struct {
	name    string
	seconds float64
}

func main() {
	ok, err := summarize(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: cannot read the test output: %v\n", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}

func summarize(in io.Reader, out io.Writer) (ok bool, err error) {
	output := map[string]*strings.Builder{}
	var slow []result
	count := map[string]int{}
	ok = true
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			_, _ = fmt.Fprintln(out, sc.Text()) // not an event: the go command itself speaks
			continue
		}
		key := e.Package + e.ImportPath + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			if output[key] == nil {
				output[key] = &strings.Builder{}
			}
			output[key].WriteString(e.Output)
			continue
		case "build-fail":
			ok = false
		case "pass", "fail", "skip":
		default:
			continue
		}
		if e.Action == "fail" || e.Action == "build-fail" {
			ok = false
			if b := output[key]; b != nil {
				_, _ = fmt.Fprint(out, b.String())
			}
		}
		delete(output, key)
		if e.Test != "" {
			count[e.Action]++
			slow = append(slow, result{strings.TrimSpace(e.Package + " " + e.Test), e.Elapsed})
		} else if e.Action != "build-fail" {
			_, _ = fmt.Fprintf(out, "%-5s %7.1f s  %s\n", e.Action, e.Elapsed, e.Package)
		}
	}
	slices.SortFunc(slow, func(a, b result) int { return cmp.Compare(b.seconds, a.seconds) })
	_, _ = fmt.Fprintln(out, "slowest:")
	for _, r := range slow[:min(10, len(slow))] {
		_, _ = fmt.Fprintf(out, "      %7.1f s  %s\n", r.seconds, r.name)
	}
	_, _ = fmt.Fprintf(out, "tests: %d passed, %d failed, %d skipped\n", count["pass"], count["fail"], count["skip"])
	return ok && count["fail"] == 0 && sc.Err() == nil, sc.Err()
}
