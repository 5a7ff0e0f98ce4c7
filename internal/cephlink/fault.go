package cephlink

import (
	"errors"
	"syscall"
)

// Fault is an error that the helper met. Where Ceph gave a number, it is kept:
// errors.Is tells syscall.ENOENT (or fs.ErrNotExist), syscall.EACCES and so on.
type Fault struct {
	Op    string `json:"op,omitempty"`
	Errno int    `json:"errno,omitempty"`
	ID    string `json:"id,omitempty"`   // the helper's own word for what it is, such as "no-pool"
	Text  string `json:"text"`           // says what, and why
	Hint  string `json:"hint,omitempty"` // what would lift it
	Said  string `json:"-"`              // what the libraries wrote meanwhile, which may say more
}

func (f *Fault) Error() string {
	if f.Said != "" && f.ID == "" {
		return f.Text + " (" + f.Said + ")"
	}
	return f.Text
}

// Unwrap gives the number as a syscall.Errno, where there is one.
func (f *Fault) Unwrap() error {
	if f.Errno == 0 {
		return nil
	}
	return syscall.Errno(f.Errno)
}

// The words in Fault.ID and [LinkError.ID].
const (
	NoHelper    = "no-helper"   // storagectl-ceph is not installed, or of another version
	HelperDied  = "helper-died" // it ended, or was ended, in a request
	TooSlow     = "too-slow"    // a request had no answer at its deadline
	NoConf      = "no-conf"     // ceph.conf cannot be read
	NoKey       = "no-key"      // no key for the user
	WrongKey    = "wrong-key"   // the cluster does not take it
	Unreachable = "unreachable" // no monitor answers
	NoPool      = "no-pool"
	NoNamespace = "no-namespace"
	NoImage     = "no-image"
	NoRight     = "no-right" // the user's caps do not allow it
	Held        = "held"     // somebody else has the image
	Full        = "full"
)

// IDOf is the word for err, "" where it has none.
func IDOf(err error) string {
	var f *Fault
	var l *LinkError
	switch {
	case errors.As(err, &f):
		return f.ID
	case errors.As(err, &l):
		return l.ID
	}
	return ""
}

// HintOf is what would lift err, "" where nothing is known.
func HintOf(err error) string {
	var f *Fault
	var l *LinkError
	switch {
	case errors.As(err, &f):
		return f.Hint
	case errors.As(err, &l):
		return l.Hint
	}
	return ""
}

// LinkError is a failure of the wire itself: no helper, or one that ended.
type LinkError struct {
	ID, Text, Hint string
	Err            error
}

func (e *LinkError) Error() string {
	if e.Err == nil {
		return e.Text
	}
	return e.Text + ": " + e.Err.Error()
}

func (e *LinkError) Unwrap() error { return e.Err }
