// Package treecopy copies a tree of files to another filesystem in passes: first
// beside its users, then only what changed since; and proves that what arrived is
// what was read.
//
// # What is preserved
//
// Contents, owners as this user namespace sees them, modes, times to the
// nanosecond (of folders and symbolic links, too), extended attributes (user.*,
// security.*, trusted.*, POSIX ACLs), hard links across folders, holes, symbolic
// links, fifos, device files, names of any bytes. Sockets are left out and counted.
// Not preserved: inode flags (chattr), project ids, and attributes that are a
// filesystem's own (ceph.*, btrfs.*, system.nfs4_acl). What cannot be written as it
// was is an error that names the file: a device in a user namespace (whiteouts,
// 0:0, work), an owner without an id, an attribute that the destination refuses.
//
// # Crashes
//
// The index holds claims of the form "as long as the source has this inode, size,
// mtime and ctime under this name, the destination durably has it so". They are
// written so that no power cut leaves one that is false: see index.go for the
// file, folder.go for the case that the cut takes back a change in the source.
//
// One thing no index of times can see: if the source's own host loses power, its
// filesystem may keep data that was overwritten in place and lose the ctime that
// told of it. After such a cut an index must be given up, the destination emptied,
// and the copy begun anew; the caller knows it by the boot id.
//
// # Second pass
//
// Folders whose mtime and ctime stand are not listed again, only their files are
// looked at; the destination is not looked at where nothing changed. What changed
// after the pass before had begun is copied anew even if it looks the same: see
// copier.run for why.
//
// # Memory
//
// It does not grow with the number of files: only folders (about 25 bytes each)
// and files with several names (likewise) have something in memory. A single
// folder's list of names is held while it is copied.
package treecopy
