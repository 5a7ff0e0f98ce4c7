package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/archive"
)

func storageUncompressed() *storage.DiffOptions {
	c := archive.Uncompressed
	return &storage.DiffOptions{Compression: &c}
}

const childVar = "STORAGECTL_CONVERT_TEST_CHILD"

// runChild runs one Sync (or what a second variable says) when this binary was
// started as a test's child. It answers with the report as JSON, or fails with
// status 3. By hand it measures a real store.
func runChild() bool {
	spec := os.Getenv(childVar)
	if spec == "" {
		return false
	}
	var o Options
	err := json.Unmarshal([]byte(spec), &o)
	if err == nil {
		var r any
		switch os.Getenv(childVar + "_DOES") {
		case "":
			r, err = Sync(context.Background(), o)
		case "survey":
			r, err = Survey(context.Background(), o)
		case "compare":
			r, err = Compare(context.Background(), o, nil, CompareOptions{})
		}
		if err == nil {
			err = json.NewEncoder(os.Stdout).Encode(r)
		}
	}
	if err != nil {
		var damaged *DamageError
		fmt.Fprintln(os.Stderr, err, errors.As(err, &damaged))
		os.Exit(3)
	}
	return true
}
