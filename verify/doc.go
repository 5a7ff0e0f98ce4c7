// Package verify proves that a container store still holds what it held, and
// that podman works on it.
//
// It offers plain verbs and knows nothing of runs or steps:
//
//   - [StoreManifest] lists what is in a store, from the store's own records,
//     and [PodmanManifest] what podman says of volumes, secrets, networks, pods
//     and containers. Together they are a [Manifest]; two of them are compared
//     with [Diff].
//   - [TakeSample] hashes a bounded, deterministic choice of files of some
//     images, and [Sample.Again] hashes the same files through another driver.
//   - [Smoke] runs a container of an image that it brings along.
//   - [ProbeTarget] tries what a filesystem is good for.
//
// Store verbs open paths inside the store and so belong in a process with the
// owner's uid, in the owner's user namespace. Podman verbs are given a [Podman]
// that runs podman as the owner.
package verify
