package libpoddb

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The test binary starts itself with this variable set to do one thing as a
// process of its own, one that can hold locks or be killed.
const childEnv = "LIBPODDB_TEST_CHILD"

func child(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(args, "\n"), "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	return cmd
}

func TestMain(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		if err := runChild(strings.Split(args, "\n")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runChild(args []string) error {
	ctx := context.Background()
	switch args[0] {
	case "hold": // begin a transaction and keep it until stdin closes
		db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: args[1]}).EscapedPath()+"?mode=rw")
		if err != nil {
			return err
		}
		db.SetMaxOpenConns(1)
		for _, s := range []string{args[2], "UPDATE DBConfig SET GraphDriver = 'half'"} {
			if _, err := db.Exec(s); err != nil {
				return err
			}
		}
		fmt.Print("x")
		_, err = io.ReadAll(os.Stdin)
		return err
	case "set":
		return SetDriver(ctx, args[1], args[2], args[3], Moves{})
	case "save":
		return Save(ctx, args[1], args[2])
	case "restore":
		return Restore(ctx, args[1], args[2])
	}
	return fmt.Errorf("unknown child %q", args[0])
}
