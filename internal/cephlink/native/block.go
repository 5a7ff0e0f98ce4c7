//go:build cgo

package native

import (
	"encoding/json"
	"errors"
	"fmt"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"github.com/storagectl/storagectl/internal/cephlink"
)

// MayBlock tells whether the monitors let this user put a client on the
// blocklist: an address that is none is refused as such (EINVAL) only after the
// user's right was looked at. Nothing is changed.
func MayBlock(conn *rados.Conn) error {
	err := blocklist(conn, map[string]any{"addr": "storagectl-probe/0"})
	switch num := syscall.Errno(cephlink.Errno(err)); {
	case errors.Is(num, syscall.EINVAL):
		return nil
	case errors.Is(num, syscall.EACCES), errors.Is(num, syscall.EPERM):
		return &cephlink.Fault{ID: cephlink.NoRight, Errno: int(num), Text: "the user may not put clients on the blocklist",
			Hint: "ceph auth caps client.… mon 'profile rbd' …"}
	case err == nil: // it took an address that is none
		return errors.New("the monitors do not check what is put on the blocklist")
	}
	return err
}

// Block shuts a client out for some seconds: the cluster refuses all that comes
// from its address, ADDRESS:PORT/NONCE. The monitors take no whole number for
// the time.
func Block(conn *rados.Conn, addr string, seconds int) error {
	addr, err := cephlink.OneClient(addr)
	if err != nil {
		return err
	}
	if err := blocklist(conn, map[string]any{"addr": addr, "expire": json.Number(fmt.Sprintf("%d.0", seconds))}); err != nil {
		return fmt.Errorf("cannot put %s on the blocklist: %w", addr, err)
	}
	return nil
}

func blocklist(conn *rados.Conn, more map[string]any) error {
	more["prefix"], more["blocklistop"] = "osd blocklist", "add"
	cmd, err := json.Marshal(more)
	if err != nil {
		return err
	}
	_, _, err = conn.MonCommand(cmd)
	return err
}
