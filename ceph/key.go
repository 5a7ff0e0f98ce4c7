package ceph

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/host"
)

// Key is the key of a cluster's user, in base64: from the file that c names, else from
// the first keyring that is there of those that ceph.conf names for this user, or that
// Ceph looks for by itself, as its libraries do.
func Key(ctx context.Context, run *host.Runner, c cephlink.Cluster) (string, error) {
	key, err := keyOf(ctx, run, c)
	if err != nil {
		return "", fmt.Errorf("cannot read the key of client.%s: %w", c.ID(), err)
	}
	return key, nil
}

func keyOf(ctx context.Context, run *host.Runner, c cephlink.Cluster) (string, error) {
	if c.KeyFile != "" {
		b, err := os.ReadFile(c.KeyFile)
		key := strings.TrimSpace(string(b))
		if err == nil && (key == "" || strings.ContainsAny(key, " \t\r\n")) {
			err = fmt.Errorf("%s holds more than a key, or none", c.KeyFile)
		}
		return key, err
	}
	rings := []string{c.Keyring}
	if c.Keyring == "" {
		argv := []string{"ceph-conf", "--conf", c.ConfPath(), "--cluster", c.NameOf(), "--name", "client." + c.ID(), "--show-config-value", "keyring"}
		out, err := run.Run(ctx, host.Cmd{Argv: argv, Env: toolEnv(), Timeout: toolTime})
		if err != nil {
			return "", err
		}
		rings = strings.Split(strings.Trim(strings.TrimSpace(string(out)), ","), ",")
	}
	for _, path := range rings {
		b, err := os.ReadFile(strings.TrimSpace(path))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		return KeyOf(b, c.ID())
	}
	return "", fmt.Errorf("there is no keyring: %s", strings.Join(rings, ", "))
}

// WriteSecret writes a key into a file that only root reads, as mount.ceph's
// secretfile takes it. The file is whole or not there.
func WriteSecret(path, key string) error {
	if key = strings.TrimSpace(key); key == "" || strings.ContainsAny(key, " \t\r\n\x00") {
		return fmt.Errorf("cannot write the secret %s: what is given is no key", path)
	}
	if err := writeSecret(path, key); err != nil {
		return fmt.Errorf("cannot write the secret %s: %w", path, err)
	}
	return nil
}

// writeSecret does not use renameio.WriteFile, which keeps the mode of a file
// that is there, open to others or not.
func writeSecret(path, key string) error {
	f, err := renameio.NewPendingFile(path, renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	if _, err := f.WriteString(key + "\n"); err != nil {
		return errors.Join(err, f.Cleanup())
	}
	return f.CloseAtomicallyReplace()
}

// KeyOf finds the key of a user in the text of a keyring.
func KeyOf(keyring []byte, user string) (string, error) {
	section := ""
	for _, line := range strings.Split(string(keyring), "\n") {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			section = line[1 : len(line)-1]
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		if ok && strings.TrimSpace(k) == "key" && section == "client."+strings.TrimPrefix(user, "client.") {
			return strings.TrimSpace(v), nil
		}
	}
	return "", fmt.Errorf("the keyring has no key of client.%s", strings.TrimPrefix(user, "client."))
}
