package doctor

import "slices"

// Checks are all checks of this package, in the order in which they are told.
func Checks() []Check {
	return slices.Concat(podmanChecks(), userChecks(), kernelChecks(), socketChecks(), networkChecks(), storageChecks(), mountChecks())
}
