// Package rbd handles one image of a Ceph pool as a disk of this host: looked
// at, made, grown, mapped so that nobody else has it, and given back.
//
// Two hosts that write to one image destroy its filesystem. What protects from
// that is the image's exclusive lock, taken without the usual readiness to pass
// it on; see [Host.Map].
package rbd

import (
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

// Link is the path under which udev, or the helper, shows a mapped image: it
// stays the same however the devices are numbered.
func (s Spec) Link() string { return "/dev/rbd/" + s.String() }
