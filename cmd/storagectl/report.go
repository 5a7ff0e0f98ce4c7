package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/storagectl/storagectl/internal/report"
	"github.com/storagectl/storagectl/migrate"
	"github.com/storagectl/storagectl/runbooks"
)

// The formats of a report.
const (
	formatHTML = "html"
	formatMD   = "md"
	formatJSON = "json"
)

func newReport(a *app) *cobra.Command {
	var format, output string
	cmd := &cobra.Command{
		Use:   "report [RUN]",
		Short: "Write what a run did, as a page to keep or to send",
		Long: `report writes what a run did, from its journal alone: the steps in time and the part in
which podman was stopped, the size of the store before and after by image, what was
verified, what went wrong, what became of each container, and how to go on. It works
for every run: under way, failed, cut off, rolled back, done. It asks nothing of the
host, changes nothing and needs no lock.

The page is one file that needs no network and runs no script. It names images,
containers, paths and nodes, and holds what hooks have said: look at it before you
send it to somebody. RUN left out is the latest run (docs/report.md).

` + exitHelp,
		Example: "  storagectl report --output report.html\n  storagectl report 0003-migrate-9f2c --format md\n  storagectl report 3 --format json",
		Args:    oneRun,
		RunE: func(_ *cobra.Command, args []string) error {
			if format == "" {
				format = formatOf(output, a.json)
			}
			write, err := writerOf(format)
			if err != nil {
				return err
			}
			if a.json && format != formatJSON && output == "" {
				return usagef("cannot write %s and JSON lines both to stdout: give --output FILE, or leave --json out", format)
			}
			run, st, err := a.find(runArg(args))
			if err != nil {
				return err
			}
			o := migrate.ReportOptions{Now: time.Now()}
			o.Host, _ = os.Hostname() // left out where it has none
			gather := migrate.Report
			if st.Header.Job == runbooks.Job {
				gather = runbooks.Report
			}
			d, err := gather(a.dir(), run, o)
			if err != nil {
				return err
			}
			for i, n := range d.Next {
				d.Next[i].Line = paste(n.Line, a.givenDir)
			}
			for _, t := range d.Tasks {
				if t.Made != nil {
					t.Made.More = paste(t.Made.More, a.givenDir)
				}
			}
			if a.json && output == "" {
				a.out.result("report", d, "")
				return nil
			}
			var b bytes.Buffer
			if err := write(&b, d); err != nil {
				return err
			}
			text := clean(b.String())
			if format == formatJSON {
				text = cleanDocument(b.String())
			}
			if output != "" {
				return a.writeReport(run, format, output, text)
			}
			_, err = io.WriteString(a.stdout, text)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&format, "format", "", "html, md or json (default: as the name of --output ends, else html)")
	f.StringVar(&output, "output", "", "the file to write, closed to others (default: stdout)")
	return cmd
}

// cleanDocument is cleanJSON for a document of many lines.
func cleanDocument(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(cleanJSON(strings.TrimSuffix(line, "\n")) + "\n")
	}
	return b.String()
}

// formatOf is the format that a file's name asks for.
func formatOf(output string, lines bool) string {
	switch ext := strings.TrimPrefix(filepath.Ext(output), "."); {
	case ext == formatMD, ext == formatJSON:
		return ext
	case lines && output == "":
		return formatJSON
	}
	return formatHTML
}

func writerOf(format string) (func(io.Writer, report.Data) error, error) {
	switch format {
	case formatHTML:
		return report.HTML, nil
	case formatMD:
		return report.Markdown, nil
	case formatJSON:
		return report.JSON, nil
	}
	return nil, usagef("cannot write a report as %q: html, md or json", format)
}

type writtenMessage struct {
	Run    string `json:"run"`
	Format string `json:"format"`
	Path   string `json:"path"`
	Bytes  int    `json:"bytes"`
}

// folderHint tells what a file needs to be written.
func folderHint(path string) string {
	return fmt.Sprintf("the folder %s must be there, and be one that you may write to", oneLine(filepath.Dir(path)))
}

func (a *app) writeReport(run, format, path, text string) error {
	if err := renameio.WriteFile(path, []byte(text), 0o600); err != nil {
		return &hintedError{fmt.Errorf("cannot write the report: %w", err), folderHint(path)}
	}
	a.out.result("written", writtenMessage{run, format, path, len(text)}, fmt.Sprintf("%s: the report of run %s\n", oneLine(path), run))
	return nil
}
