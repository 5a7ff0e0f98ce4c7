package doctor

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/podman"
	"github.com/storagectl/storagectl/internal/podman/libpoddb"
)

const groupPodman = "podman"

func podmanChecks() []Check {
	return []Check{
		{
			ID: "podman", Group: groupPodman, Title: "Podman is installed",
			Why:   "storagectl knows the stores of podman 3.0 to 5.8. An older one keeps them in another form.",
			Mends: "Install podman, or a newer one.",
			Look: func(_ context.Context, h *Host) Finding {
				v, err := h.version()
				if errors.Is(err, podman.ErrNoPodman) {
					return problem("podman is not installed", "apt-get install podman")
				}
				if err != nil {
					return unknown(err)
				}
				if major, _ := strconv.Atoi(strings.SplitN(v, ".", 2)[0]); major < 3 {
					return problem("podman "+v+" is too old", "apt-get install podman")
				}
				return ok("podman %s", v)
			},
		},
		{
			ID: "podman-info", Group: groupPodman, Title: "Podman answers, and says what it uses",
			Why:   "Only podman's own word tells which store it really uses. It is asked only where it has been used before, since its first call makes a store.",
			Mends: "See what podman info says.",
			Limit: podmanLimit + 5*time.Second,
			Look: func(_ context.Context, h *Host) Finding {
				i, err := h.info()
				if errors.Is(err, errNoStore) || errors.Is(err, podman.ErrNoPodman) || h.canRun() != nil {
					return notSeen(err)
				}
				if errors.Is(err, context.DeadlineExceeded) { // a long pull holds podman's lock for as long
					return unknown(fmt.Errorf("it does not answer within %s; it may wait for one that works on the store (see locks)", brief.Time(podmanLimit)))
				}
				if err != nil {
					return problem(err.Error(), h.as("podman info"))
				}
				return ok("driver %s, graphroot %s, runroot %s", i.Store.GraphDriverName, i.Store.GraphRoot, i.Store.RunRoot)
			},
		},
		{
			ID: "storage-conf", Group: groupPodman, Title: "storage.conf can be read, and it is known which one counts",
			Why:   "Podman reads several files in a fixed order. One that it cannot read it leaves aside, and goes on with a store elsewhere: podman ps is empty then, without an error.",
			Mends: "Mend or remove the file that is named.",
			Look:  lookStorageConf,
		},
		{
			ID: "conf-against-database", Group: groupPodman, Title: "storage.conf and podman's database agree",
			Why:   "The database outranks storage.conf. What was changed there has no effect, or will have a surprising one when the database is gone.",
			Mends: "Let storage.conf say what the database says, or convert or move the store.",
			Look:  lookConfAgainstDatabase,
		},
		{
			ID: "database", Group: groupPodman, Title: "Podman's database",
			Why:   "Podman 6 cannot read BoltDB, and 5.8 moves it to SQLite by itself, which is not safe while several podman processes run. Where two databases hold objects, one half of the containers is not seen.",
			Mends: "Move to SQLite while podman 5.8 is installed: storagectl migrate --to overlay --migrate-db.",
			Look:  lookDatabase,
		},
	}
}

func lookStorageConf(_ context.Context, h *Host) Finding {
	c, err := h.conf()
	if err != nil {
		return notSeen(err)
	}
	for _, l := range c.Layers {
		if l.Exists && l.Problem != "" {
			return problem(fmt.Sprintf("%s: %s", l.Path, l.Problem), "mend or remove "+l.Path)
		}
	}
	for _, l := range c.Layers {
		if l.Used && l.RootlessStoragePath != "" {
			return warning(fmt.Sprintf("%s sets rootless_storage_path, which newer podman does not read", l.Path),
				fmt.Sprintf("set graphroot in %s's own storage.conf instead", h.Owner.Name))
		}
	}
	var words []string
	for _, s := range c.Asked {
		if s.Name == "driver" || s.Name == "graphroot" || s.Name == "mount_program" {
			if s.Value == "" {
				words = append(words, s.Name+" left to podman")
				continue
			}
			words = append(words, fmt.Sprintf("%s %s by %s", s.Name, s.Value, s.Source))
		}
	}
	return ok("%s", strings.Join(words, "; "))
}

func lookConfAgainstDatabase(_ context.Context, h *Host) Finding {
	c, err := h.conf()
	if err != nil {
		return notSeen(err)
	}
	if len(c.Databases) == 0 {
		return absent("podman has no database yet")
	}
	for _, l := range c.Layers {
		if l.Exists && l.Problem != "" {
			return Finding{Outcome: Unknown, Saw: l.Path + " cannot be read (see storage-conf)"}
		}
	}
	var apart []string
	driver := false
	for _, name := range []string{"driver", "graphroot", "runroot"} {
		asked, now := setting(c.Asked, name), c.effective(name)
		if asked.Value != "" && now.Value != "" && asked.Value != now.Value {
			apart = append(apart, fmt.Sprintf("%s is %s by %s, and %s by the database", name, asked.Value, asked.Source, now.Value))
			driver = driver || name == "driver"
		}
	}
	if len(apart) == 0 {
		return ok("they agree")
	}
	mend := fmt.Sprintf("set %s in %s to %s", "driver", setting(c.Asked, "driver").Source, c.effective("driver").Value)
	switch {
	case driver && setting(c.Asked, "driver").Value == "overlay" && c.effective("driver").Value == "vfs":
		mend = "storagectl migrate --to overlay" + h.userFlag() + " --dry-run"
	case !driver:
		mend = "let storage.conf say what the database says; to move a store: storagectl relocate" + h.userFlag() + " --path DIR"
	}
	return problem(strings.Join(apart, "; "), mend)
}

func lookDatabase(_ context.Context, h *Host) Finding {
	c, err := h.conf()
	if err != nil {
		return notSeen(err)
	}
	if c.DBProblem != "" {
		return problem(c.DBProblem, "find out which database podman uses ("+h.as("podman info --format '{{.Host.DatabaseBackend}}'")+") and move the other away")
	}
	if len(c.Databases) == 0 {
		return absent("podman has no database yet")
	}
	version, err := h.version()
	if err != nil {
		return notSeen(err)
	}
	db, err := libpoddb.Choose(c.Databases, version, "")
	if err != nil {
		return problem(err.Error())
	}
	saw := fmt.Sprintf("%s in %s, containers: %d, volumes: %d", db.Kind, db.Path, len(db.Containers), len(db.Volumes))
	major, minor := majorMinor(version)
	if db.Kind == libpoddb.BoltDB && (major > 4 || major == 4 && minor >= 8) {
		mend := "storagectl migrate --to overlay --migrate-db" + h.userFlag() + "  # before an upgrade to podman 6"
		if major < 5 || major == 5 && minor < 8 {
			mend = "upgrade to podman 5.8 before podman 6; it can move the database (storagectl migrate --to overlay --migrate-db" + h.userFlag() + ")"
		}
		return warning(saw+"; podman 6 cannot read BoltDB", mend)
	}
	return ok("%s", saw)
}

func majorMinor(version string) (major, minor int) {
	parts := strings.SplitN(version, ".", 3)
	major, _ = strconv.Atoi(parts[0])
	if len(parts) > 1 {
		minor, _ = strconv.Atoi(parts[1])
	}
	return major, minor
}
