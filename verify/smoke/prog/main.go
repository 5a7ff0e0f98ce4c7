// Command smoke is the program inside the smoke image. It is the only process
// of its container and answers one question: does a container work here?
//
//	smoke NONCE EXITCODE [layers|worker|memory|stay]
//
// It writes NONCE to /storagectl-smoke.out, reads it back, and prints one line
// of JSON with the nonce and the type of the root filesystem as the kernel
// says it. With "layers" it also looks at the files that the image's layers
// add, replace and delete; with "worker" it does that, and prints what it sees of
// what a client of Docker's API asked for; with "memory" it prints the limits that
// the kernel has for it; with "stay" it does not end by itself, nor by a SIGTERM. It ends with
// EXITCODE, or with 1 and a message on stderr when something is not as it must be.
// It uses as little of the standard library as it can, to stay small.
package main

import (
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

const out = "/storagectl-smoke.out"

func main() {
	if len(os.Args) < 3 {
		fail("usage: smoke NONCE EXITCODE [layers|worker|memory|stay]")
	}
	nonce := os.Args[1]
	code, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fail("exit code " + os.Args[2] + " is not a number")
	}
	mode := ""
	if len(os.Args) > 3 {
		mode = os.Args[3]
	}
	if mode == "layers" || mode == "worker" {
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
	switch mode {
	case "worker":
		tellWorker(nonce)
	case "memory":
		tell("memory.max", content("/sys/fs/cgroup/memory.max"))
		tell("memory.swap.max", content("/sys/fs/cgroup/memory.swap.max"))
	}
	if mode == "stay" {
		signal.Ignore(syscall.SIGTERM)
	}
	for mode == "stay" {
		_ = syscall.Nanosleep(&syscall.Timespec{Sec: 3600}, nil) // only a SIGKILL ends it
	}
	os.Exit(code)
}

// tellWorker prints, a line each, the environment that a worker gives, whether the
// volume can be written to, the line of an extra host, and the networks.
func tellWorker(nonce string) {
	tell("env", os.Getenv("REPLAY"))
	volume := "/data/" + nonce
	if err := os.WriteFile(volume, []byte(nonce), 0o600); err != nil {
		tell("volume", err.Error())
	} else {
		tell("volume", content(volume))
	}
	hosts, line := content("/etc/hosts"), ""
	for i := 0; i <= len(hosts); i++ {
		if i < len(hosts) && hosts[i] != '\n' {
			line += hosts[i : i+1]
			continue
		}
		if n := len(line) - len("worker"); n > 0 && line[n:] == "worker" {
			tell("host", line)
		}
		line = ""
	}
	nets, err := os.ReadDir("/sys/class/net")
	if err != nil {
		tell("net", err.Error())
	}
	for _, n := range nets {
		tell("net", n.Name())
	}
}

func tell(key, value string) { os.Stdout.WriteString(key + "=" + value + "\n") }

// content is what a file holds, without the last line's end; "" if it cannot be read.
func content(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
	}
	return string(b)
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
