// Package convert turns a vfs store into an overlay store by hard links, beside
// the live store and without changing it. It also makes a vfs store of an overlay
// store, by copies, and an overlay store for the kernel of one for fuse-overlayfs.
//
// # The idea
//
// The vfs driver keeps for each layer the whole tree that the image shows up to
// there: vfs/dir/<layer>. The overlay driver keeps only what each layer adds,
// overlay/<layer>/diff, and lets the kernel merge. So a layer's diff is made of
// names for the very files of its vfs tree. No file data is copied, and the vfs
// store stays whole: going back is a rename.
//
// Which paths a layer touched is told by its tar-split list, the headers of the
// tar that it came as. The list is not believed further than that. For each
// listed path the layer's vfs tree says what is there now; if nothing is, and
// the parent's tree has the path, it is hidden by a whiteout. A folder that was
// deleted or was another thing in between is put whole and made opaque. So tars
// that list a path twice, delete and recreate, or write through a symlink come
// out as vfs shows them. Where a list is missing or does not explain its tree,
// where owners were shifted, and for containers' writable layers, the layer's
// tree is compared with its parent's instead (walk.go).
//
// Records (layers.json, images.json, containers.json) hold nothing of the
// driver's, so they are taken over byte for byte. Only the layers' folders are
// made through containers/storage's driver and its Differ.
//
// # The other directions
//
// To vfs, a layer's tree is what a read-only mount of it shows (view.go, whole.go);
// all is copied, and read back when it is compared. From fuse-overlayfs to the
// kernel's overlay (translate.go) each diff is made of links to the program's diff,
// and its marks of what is hidden are translated; image and container are then
// compared by a mount of either kind.
//
// # Files
//
//	convert.go   types            records.go   reading the source
//	survey.go    Survey           staged.go    Staged
//	sync.go      Sync: which layers are to be made, workers
//	stage.go     one layer        seal.go      images, containers, records
//	target.go    the staged store: overlay or vfs
//	overlay.go   containers/storage's driver on the staged store
//	view.go      a layer's tree as the source shows it
//	whole.go, translate.go  the other directions
//	filler.go, put.go  putting entries into a diff by folder descriptors
//	list.go, unpack.go  from a list      walk.go  from two trees
//	whiteout.go  hiding, and keeping hard-link groups whole
//	copyfile.go  where linking cannot be
//	compare.go, pair.go, facts.go  Compare, the proof by a mounted overlay
//	apart.go     a stage on another filesystem
//
// # Interruption and power cuts
//
// A layer is filled in the driver's staging folder, renamed into place, and
// then a receipt is written. No receipt: the layer is thrown away and made
// anew. Receipts hold while the machine is up, for a killed process loses no
// page cache. Before the records are written everything is flushed by one
// syncfs; after a reboot only layers that the records name are believed.
//
// # What is shared
//
// After Sync a file of an image layer has one more name, where the stage is on the
// filesystem of the source; else it is a copy, which counts only when it was read
// back (apart.go). Such a file is never written
// through: podman writes only to containers' writable layers, which vfs
// makes by copying and Sync copies too. Linking changes ctime and link count.
package convert
