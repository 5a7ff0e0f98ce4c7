// Command treecopy is the library by itself, for benchmarks and for trying things:
//
//	treecopy -index FILE [-strict] [-verify | -last] SRC DST
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/storagectl/storagectl/migrate/treecopy"
)

func main() {
	o := treecopy.Options{}
	flag.StringVar(&o.Index, "index", "", "the index file")
	flag.IntVar(&o.Workers, "workers", 0, "workers; 0: the default")
	flag.Int64Var(&o.BytesPerSecond, "rate", 0, "bytes per second; 0: no limit")
	flag.BoolVar(&o.IdleIO, "idle", false, "idle class of I/O")
	flag.BoolVar(&o.Strict, "strict", false, "a change meanwhile is an error")
	verify := flag.Bool("verify", false, "do not copy, verify")
	last := flag.Bool("last", false, "verify what the last copy wrote")
	flag.Parse()
	if flag.NArg() != 2 || o.Index == "" {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o, *verify, *last); err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, o treecopy.Options, verify, last bool) error {
	src, err := os.Open(flag.Arg(0))
	if err != nil {
		return err
	}
	dst, err := os.Open(flag.Arg(1))
	if err != nil {
		return err
	}
	o.Skip = func(rel string) bool { return rel == "lost+found" }
	var report any
	if verify || last {
		report, err = treecopy.Verify(ctx, dst, treecopy.VerifyOptions{
			Index: o.Index, Skip: o.Skip, LastOnly: last, Workers: o.Workers, BytesPerSecond: o.BytesPerSecond, IdleIO: o.IdleIO,
		})
	} else {
		report, err = treecopy.Copy(ctx, src, dst, o)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}
