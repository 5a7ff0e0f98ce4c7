package cephlink

import (
	"fmt"
	"strings"
	"syscall"
)

// OneClient is an address as the blocklist takes it, ADDRESS:PORT/NONCE, if it names
// one client. Without a nonce, or with 0, the cluster takes it for all clients of that
// host, whose disks would be lost with the one that is meant: that is a [*Fault].
func OneClient(addr string) (string, error) {
	for _, kind := range []string{"v1:", "v2:", "any:"} { // monitors take no prefix
		addr = strings.TrimPrefix(addr, kind)
	}
	at, nonce, _ := strings.Cut(addr, "/")
	if at == "" || strings.Trim(nonce, "0") == "" || strings.Trim(nonce, "0123456789") != "" {
		return "", &Fault{ID: Held, Errno: int(syscall.EINVAL), Text: fmt.Sprintf("cannot shut out the client at %q: that address names no single client", addr),
			Hint: "rbd lock list and rbd status tell who it is; unmap the image there"}
	}
	return addr, nil
}
