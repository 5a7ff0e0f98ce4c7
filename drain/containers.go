package drain

import "slices"

// IsNomads says whether a container was started by Nomad: by the labels that
// newer drivers set, or by the driver's way to name it, task-allocation (all
// that nomad-driver-podman 0.4 sets). alloc is "" where only a label tells.
func IsNomads(names []string, labels map[string]string) (alloc string, is bool) {
	for k, v := range labels {
		if k == labelAlloc {
			return v, true
		}
		is = is || (len(k) > len(labelPrefix) && k[:len(labelPrefix)] == labelPrefix)
	}
	for _, name := range names {
		if len(name) > uuidLen+1 && name[len(name)-uuidLen-1] == '-' && isUUID(name[len(name)-uuidLen:]) {
			return name[len(name)-uuidLen:], true
		}
	}
	return "", is
}

const (
	labelPrefix = "com.hashicorp.nomad."
	labelAlloc  = labelPrefix + "alloc_id"
	// LabelNamespace is set by newer drivers where extra_labels asks for it.
	LabelNamespace = labelPrefix + "namespace"
	uuidLen        = 36
)

func isUUID(s string) bool {
	for i, r := range []byte(s) {
		dash := slices.Contains([]int{8, 13, 18, 23}, i)
		if dash != (r == '-') || (!dash && (r < '0' || (r > '9' && r < 'a') || r > 'f')) {
			return false
		}
	}
	return true
}
