package libpoddb

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"sort"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/storagectl/storagectl/internal/brief"
)

// The buckets at the top of podman's BoltDB (libpod/boltdb_state_internal.go,
// podman 3.0.1 to 5.8); the needed ones exist in all of these versions.
const (
	bucketContainers = "ctr"
	bucketPods       = "pod"
	bucketVolumes    = "vol"
	bucketSettings   = "runtime-config"
	keyDriver        = "graph-driver-name"
)

func knownBuckets() (needed, other []string) {
	return []string{bucketContainers, bucketPods, bucketVolumes, bucketSettings, "id-registry", "name-registry", "all-ctrs", "allPods", "allVolumes"},
		[]string{"ns-registry", "exec", "aliases", "volume-ctrs", "exit-code", "exit-code-time-stamp", "networks"}
}

func isBoltMeta(head []byte) bool {
	// A page header is 16 bytes long, then comes the meta page's magic.
	return len(head) >= 20 && binary.NativeEndian.Uint32(head[16:]) == 0xED0CDAED
}

// openBolt opens an existing bolt file, waiting for its flock until the
// deadline.
func openBolt(ctx context.Context, path string, readOnly bool) (*bolt.DB, error) {
	wait := time.Until(deadline(ctx))
	if wait <= 0 {
		return nil, fmt.Errorf("%w: %w", ErrBusy, context.DeadlineExceeded)
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		ReadOnly: readOnly,
		Timeout:  wait,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			return os.OpenFile(name, flag&^os.O_CREATE, mode)
		},
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("%w (waited %s)", ErrBusy, brief.Time(wait.Round(time.Second)))
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return db, err
}

// guardBolt runs f and turns what bolt does on a broken file, a panic or a
// fault in its memory map, into ErrDamaged.
func guardBolt(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damaged("%v", p)
		}
	}()
	return f()
}

func damaged(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, a...))
}

func unknown(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrSchema, fmt.Sprintf(format, a...))
}

// viewBolt runs f in a read transaction. An empty file, which podman would take
// for a new database, is not opened: f is not called.
func viewBolt(ctx context.Context, path string, f func(*bolt.Tx) error) error {
	if info, err := os.Stat(path); err != nil {
		return err
	} else if info.Size() == 0 {
		return nil
	}
	return guardBolt(func() (err error) {
		db, err := openBolt(ctx, path, true)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		return db.View(f)
	})
}

func readBolt(ctx context.Context, path string) (Facts, error) {
	facts := Facts{Kind: BoltDB, Path: path, Containers: []Container{}, Pods: []string{}, Volumes: []string{}}
	err := viewBolt(ctx, path, func(tx *bolt.Tx) error {
		fresh, err := checkBolt(tx)
		if err != nil || fresh {
			return err
		}
		return boltFacts(tx, &facts)
	})
	return facts, err
}

// checkBolt refuses a database with pages out of order or buckets not known. A
// database without any bucket is fresh: podman has not filled it yet.
func checkBolt(tx *bolt.Tx) (fresh bool, err error) {
	var problem error
	for e := range tx.Check() {
		if problem == nil {
			problem = damaged("%v", e)
		}
	}
	if problem != nil {
		return false, problem
	}
	needed, other := knownBuckets()
	var names []string
	err = tx.ForEach(func(name []byte, _ *bolt.Bucket) error {
		names = append(names, string(name))
		if !slices.Contains(needed, string(name)) && !slices.Contains(other, string(name)) {
			return unknown("bucket %q", name)
		}
		return nil
	})
	if err != nil || len(names) == 0 {
		return len(names) == 0, err
	}
	for _, name := range needed {
		if !slices.Contains(names, name) {
			return false, unknown("bucket %q is missing", name)
		}
	}
	return false, nil
}

func boltFacts(tx *bolt.Tx, facts *Facts) error {
	settings := tx.Bucket([]byte(bucketSettings))
	for key, field := range map[string]*string{
		"os": &facts.OS, keyDriver: &facts.GraphDriver, "graph-root": &facts.GraphRoot, "run-root": &facts.RunRoot,
		"static-dir": &facts.StaticDir, "tmp-dir": &facts.TmpDir, "volume-path": &facts.VolumeDir,
	} {
		*field = string(settings.Get([]byte(key)))
	}
	podNames := map[string]string{}
	err := eachRecord(tx, bucketPods, func(id string, record *bolt.Bucket) error {
		var pod struct {
			Name string `json:"name"`
		}
		if err := json.Unmarshal(record.Get([]byte("config")), &pod); err != nil {
			return damaged("pod %s: config: %v", id, err)
		}
		podNames[id] = pod.Name
		facts.Pods = append(facts.Pods, pod.Name)
		return nil
	})
	if err != nil {
		return err
	}
	err = eachRecord(tx, bucketVolumes, func(name string, _ *bolt.Bucket) error {
		facts.Volumes = append(facts.Volumes, name)
		return nil
	})
	if err != nil {
		return err
	}
	err = eachRecord(tx, bucketContainers, func(id string, record *bolt.Bucket) error {
		c, err := containerFacts(id, record.Get([]byte("config")), record.Get([]byte("state")))
		if err != nil {
			return err
		}
		c.PodName = podNames[c.Pod]
		facts.Containers = append(facts.Containers, c)
		return nil
	})
	sort.Strings(facts.Pods)
	sort.Strings(facts.Volumes)
	return err
}

// eachRecord calls f for each nested bucket of a top bucket; bolt gives them in
// the order of their names.
func eachRecord(tx *bolt.Tx, bucket string, f func(name string, record *bolt.Bucket) error) error {
	top := tx.Bucket([]byte(bucket))
	return top.ForEach(func(name, value []byte) error {
		record := top.Bucket(name)
		if value != nil || record == nil {
			return unknown("bucket %q holds a plain value %q", bucket, name)
		}
		return f(string(name), record)
	})
}

// containerFacts reads the two records of a container.
func containerFacts(id string, config, state []byte) (Container, error) {
	var c struct {
		ID          string   `json:"id"`
		Name        string   `json:"name"`
		Pod         string   `json:"pod"`
		Infra       bool     `json:"pause"`
		Init        string   `json:"init_container_type"`
		Image       string   `json:"rootfsImageID"`
		ExitCommand []string `json:"exitCommand"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return Container{}, damaged("container %s: config: %v", id, err)
	}
	var s struct {
		State        int  `json:"state"`
		Mounted      bool `json:"mounted"`
		Checkpointed bool `json:"checkpointed"`
	}
	if err := json.Unmarshal(state, &s); err != nil {
		return Container{}, damaged("container %s: state: %v", id, err)
	}
	if c.ID != id {
		return Container{}, damaged("container %s: its config names the id %q", id, c.ID)
	}
	return Container{ID: id, Name: c.Name, State: stateName(s.State), Pod: c.Pod, Infra: c.Infra, Init: c.Init,
		Image: c.Image, Mounted: s.Mounted, Checkpointed: s.Checkpointed, ExitCommand: len(c.ExitCommand) > 0}, nil
}

// planBolt computes the new records. Nothing is written.
func planBolt(tx *bolt.Tx, m *mover) (records []record, driver bool, err error) {
	settings := tx.Bucket([]byte(bucketSettings))
	driver, err = m.driver(string(settings.Get([]byte(keyDriver))))
	if err != nil {
		return nil, false, err
	}
	m.addRoot(string(settings.Get([]byte("graph-root"))))
	m.addRoot(string(settings.Get([]byte("run-root"))))
	err = eachRecord(tx, bucketContainers, func(id string, b *bolt.Bucket) error {
		records = append(records, record{id: id, config: b.Get([]byte("config")), state: b.Get([]byte("state"))})
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	return records, driver, m.all(records)
}

func previewBolt(ctx context.Context, path string, m *mover) error {
	return viewBolt(ctx, path, func(tx *bolt.Tx) error {
		fresh, err := checkBolt(tx)
		if err != nil || fresh {
			return err
		}
		_, _, err = planBolt(tx, m)
		return err
	})
}

func setBolt(ctx context.Context, path string, m *mover) error {
	return guardBolt(func() (err error) {
		db, err := openBolt(ctx, path, false)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		return db.Update(func(tx *bolt.Tx) error {
			fresh, err := checkBolt(tx)
			if err != nil || fresh {
				return err
			}
			records, driver, err := planBolt(tx, m)
			if err != nil {
				return err
			}
			if driver {
				if err := tx.Bucket([]byte(bucketSettings)).Put([]byte(keyDriver), []byte(m.to)); err != nil {
					return err
				}
			}
			containers := tx.Bucket([]byte(bucketContainers))
			for _, r := range records {
				b := containers.Bucket([]byte(r.id))
				if r.newConfig != nil {
					if err := b.Put([]byte("config"), r.newConfig); err != nil {
						return err
					}
				}
				if r.newState != nil {
					if err := b.Put([]byte("state"), r.newState); err != nil {
						return err
					}
				}
			}
			return ctx.Err()
		})
	})
}
