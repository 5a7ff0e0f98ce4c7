package ceph

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/storagectl/storagectl/internal/cephlink"
	"github.com/storagectl/storagectl/internal/host"
)

// TestKey: a key is found where Ceph's own programs find it, and what is given goes
// before that.
func TestKey(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	named := write("named", "[client.store]\n\tkey = NAMED==\n")
	given := write("given", "[client.store]\n\tkey = GIVEN==\n[client.other]\n\tkey = OTHER==\n")
	file := write("file", "FILE==\n")
	conf := write("ceph.conf", "[client.store]\nkeyring = "+filepath.Join(dir, "none")+","+named+"\n[client.other]\nkeyring = "+filepath.Join(dir, "none")+"\n")
	for want, c := range map[string]cephlink.Cluster{
		"NAMED==": {Conf: conf, User: "store"},
		"GIVEN==": {Conf: conf, User: "client.store", Keyring: given},
		"OTHER==": {Conf: conf, User: "other", Keyring: given},
		"FILE==":  {Conf: conf, User: "other", KeyFile: file},
	} {
		if key, err := Key(t.Context(), &host.Runner{}, c); err != nil || key != want {
			t.Errorf("%+v: %q, %v", c, key, err)
		}
	}
	for _, c := range []cephlink.Cluster{
		{Conf: conf, User: "other"},
		{Conf: conf, User: "store", Keyring: filepath.Join(dir, "none")},
		{Conf: filepath.Join(dir, "none"), User: "store"},
		{Conf: conf, User: "nobody", Keyring: given},
		{Conf: conf, KeyFile: filepath.Join(dir, "none")},
	} {
		if key, err := Key(t.Context(), &host.Runner{}, c); err == nil {
			t.Errorf("%+v: %q", c, key)
		}
	}
}
