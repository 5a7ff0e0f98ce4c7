// Package rbd handles one image of a Ceph pool as a disk of this host: looked
// at, made, grown, mapped so that nobody else has it, and given back.
//
// Two hosts that write to one image destroy its filesystem. What protects from
// that is the image's exclusive lock, taken without the usual readiness to pass
// it on; see [Host.Map].
package rbd

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Spec names an image.
type Spec struct {
	Pool      string `json:"pool"`
	Namespace string `json:"namespace,omitempty"`
	Image     string `json:"image"`
}

// ParseSpec reads POOL/IMAGE or POOL/NAMESPACE/IMAGE.
func ParseSpec(s string) (Spec, error) {
	w := strings.Split(s, "/")
	for _, part := range w {
		// '@' would name a snapshot; the rest would end a line or a field of rbdmap.
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "@#,\\ \t\r\n\x00'\"") || strings.HasPrefix(part, "-") {
			return Spec{}, fmt.Errorf("cannot take %q as an image: want POOL/IMAGE or POOL/NAMESPACE/IMAGE", s)
		}
	}
	switch len(w) {
	case 2:
		return Spec{Pool: w[0], Image: w[1]}, nil
	case 3:
		return Spec{Pool: w[0], Namespace: w[1], Image: w[2]}, nil
	}
	return Spec{}, fmt.Errorf("cannot take %q as an image: want POOL/IMAGE or POOL/NAMESPACE/IMAGE", s)
}

func (s Spec) String() string {
	if s.Namespace != "" {
		return s.Pool + "/" + s.Namespace + "/" + s.Image
	}
	return s.Pool + "/" + s.Image
}

// name is the image as the name of a file or unit, with no character that
// systemd, udev or fstab would have to have escaped. Two images never share one.
func (s Spec) name() string {
	usual := true
	clean := func(part string) string {
		return strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r) {
				return r
			}
			usual = false
			return '_'
		}, part)
	}
	out := clean(s.Pool) + ":"
	if s.Namespace != "" {
		out += clean(s.Namespace) + ":"
	}
	if out += clean(s.Image); !usual {
		sum := sha256.Sum256([]byte(s.String()))
		out += ":" + hex.EncodeToString(sum[:6])
	}
	return out
}

// Link is the path under which udev, or the helper, shows a mapped image: it
// stays the same however the devices are numbered.
func (s Spec) Link() string { return "/dev/rbd/" + s.String() }
