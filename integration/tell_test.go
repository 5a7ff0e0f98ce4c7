package integration

import (
	"encoding/json"
	"slices"
	"strings"
)

// asksToBeTold gives the node a configuration: metrics, and a program that writes down
// what it is told.
func (w *world) asksToBeTold() {
	w.t.Helper()
	w.script("root", `
mkdir -p /etc/storagectl /var/lib/prometheus/node-exporter
# As Debian's package leaves it: not root's alone above, root's alone where it is written.
chown nobody /var/lib/prometheus
cat >/etc/storagectl/storagectl.toml <<'END'
[metrics]
dir = "/var/lib/prometheus/node-exporter"

[[notify]]
exec = ["/usr/local/bin/told"]
END
cat >/usr/local/bin/told <<'END'
#!/bin/sh
exec cat >>/var/told
END
chmod 755 /usr/local/bin/told
`)
}

// wasTold looks at what a migration that was committed at once has told: the program,
// systemd's journal, the metrics, the audit.
func (w *world) wasTold() {
	w.t.Helper()
	run := strings.TrimSpace(w.script("root", "ls /var/lib/storagectl/runs"))

	var points []string
	for line := range strings.Lines(w.script("root", "cat /var/told")) {
		var e struct{ Point, Run, Owner string }
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Run != run || e.Owner != w.user {
			w.t.Errorf("the program was told %s (%v)", line, err)
		}
		points = append(points, e.Point)
	}
	if want := []string{"begin", "stopped", "started", "done", "committed"}; !slices.Equal(points, want) {
		w.t.Errorf("the program was told of %v, want %v", points, want)
	}

	// The whole of the run stands in systemd's journal, once.
	got := map[string]int{}
	for line := range strings.Lines(w.script("root", "journalctl --sync; journalctl -o json STORAGECTL_RUN="+run)) {
		var e struct {
			Point string `json:"STORAGECTL_POINT"`
			Step  string `json:"STORAGECTL_STEP"`
			Event string `json:"STORAGECTL_EVENT"`
			Store string `json:"STORAGECTL_STORE"`
			Who   string `json:"SYSLOG_IDENTIFIER"`
			ID    string `json:"MESSAGE_ID"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Who != "storagectl" || e.Store != w.graphroot() || len(e.ID) != 32 {
			w.t.Errorf("an entry is %s (%v)", line, err)
		}
		got[e.Point+" "+e.Step+" "+e.Event]++
	}
	for _, want := range []string{"begin  ", "stopped stop ", "started start ", "done  ", "committed  ", " swap begin", " swap done", " commit done"} {
		if got[want] != 1 {
			w.t.Errorf("systemd's journal has %q %d times: %v", want, got[want], got)
		}
	}

	if out := w.script("root", "journalctl --no-pager -o cat -u job _TRANSPORT=stdout"); !strings.Contains(out, "and the old one is removed") || strings.Contains(out, "remove the old store") {
		w.t.Errorf("the unit itself wrote:\n%s", out)
	}

	store := `owner="` + w.user + `",store="` + w.graphroot() + `"`
	prom := w.script("root", "cd /var/lib/prometheus/node-exporter; stat -c '%a %U' *; cat *")
	for _, want := range []string{"644 root\n# HELP", `storagectl_store_info{driver="overlay",` + store + "} 1", `storagectl_run_phase{owner="` + w.user + `",phase="committed",store="` + w.graphroot() + `"} 1`,
		"storagectl_run_active{" + store + "} 0", "storagectl_store_filesystem_free_bytes{" + store, "storagectl_store_podman_down{" + store + "} 0",
		`storagectl_command_last_exit_code{command="migrate"} 0`} {
		if !strings.Contains(prom, want) {
			w.t.Errorf("no %q in the metrics:\n%s", want, prom)
		}
	}

	if r := w.must("history", "--verify"); !strings.Contains(r.stdout, "is whole: 5 records") {
		w.t.Errorf("the audit: %s", r)
	}
	// A tail that is cut, and a record that is changed, are found.
	w.script("root", "cd /var/lib/storagectl; cp -p audit.jsonl kept; sed -i '$d' audit.jsonl")
	if r := w.ctl("history", "--verify"); r.code != exitDamaged {
		w.t.Errorf("a tail was cut: %s", r)
	}
	w.script("root", `cd /var/lib/storagectl; sed '2s/"uid":0/"uid":1/' kept >audit.jsonl`)
	if r := w.ctl("history", "--verify"); r.code != exitDamaged || !strings.Contains(r.stderr, "broken at line 2") {
		w.t.Errorf("a record was changed: %s", r)
	}
	w.script("root", "cd /var/lib/storagectl; mv kept audit.jsonl")
	w.must("history", "--verify")
}
