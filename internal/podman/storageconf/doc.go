// Package storageconf knows which storage.conf podman reads for a store's
// owner, what its settings come to, and how to change the driver in it without
// touching anything else.
package storageconf
