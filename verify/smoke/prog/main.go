// Command smoke is the program inside the smoke image. It is the only process
// of its container and answers one question: does a container work here?
//
//	smoke NONCE EXITCODE [layers|stay]
//
// It writes NONCE to /storagectl-smoke.out, reads it back, and prints one line
// of JSON with the nonce and the type of the root filesystem as the kernel
// says it. With "layers" it also looks at the files that the image's layers
// add, replace and delete; with "stay" it does not end by itself. It ends with EXITCODE, or with 1 and a message on
// stderr when something is not as it must be. It uses as little of the
// standard library as it can, to stay small.
package main

import (
	"os"
	"strconv"
	"syscall"
)

const out = "/storagectl-smoke.out"

func main() {
	if len(os.Args) < 3 {
		fail("usage: smoke NONCE EXITCODE [layers]")
	}
	nonce := os.Args[1]
	code, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fail("exit code " + os.Args[2] + " is not a number")
	}
	if len(os.Args) > 3 && os.Args[3] == "layers" {
		expect("/storagectl-smoke/kept", "lower")
		expect("/storagectl-smoke/replaced", "upper")
		if _, err := os.Lstat("/storagectl-smoke/deleted"); !os.IsNotExist(err) {
			fail("/storagectl-smoke/deleted is there, although a layer deletes it")
		}
	}
	if err := os.WriteFile(out, []byte(nonce), 0o600); err != nil {
		fail(err.Error())
	}
	expect(out, nonce)
	var fs syscall.Statfs_t
	if err := syscall.Statfs("/", &fs); err != nil {
		fail("statfs /: " + err.Error())
	}
	os.Stdout.WriteString(`{"smoke":"` + nonce + `","root_fs_magic":` + strconv.FormatInt(int64(fs.Type), 10) + "}\n") //nolint:unconvert // of another type on other machines
	for len(os.Args) > 3 && os.Args[3] == "stay" {
		_ = syscall.Nanosleep(&syscall.Timespec{Sec: 3600}, nil) // a signal ends it
	}
	os.Exit(code)
}

// expect fails unless the file at path holds exactly want.
func expect(path, want string) {
	got, err := os.ReadFile(path)
	if err != nil {
		fail(err.Error())
	}
	if string(got) != want {
		fail(path + " holds something else than was written")
	}
}

func fail(message string) {
	os.Stderr.WriteString("smoke: " + message + "\n")
	os.Exit(1)
}
