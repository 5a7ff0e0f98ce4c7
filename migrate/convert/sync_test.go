package convert

import (
	"strings"
	"testing"
	"time"
)

// rich makes two images whose layers hold every kind of change.
func rich(f *fixture) (top string) {
	base := f.layer("",
		dir("etc"), file("etc/passwd", "root"), file("etc/gone", "x"), dir("usr"), dir("usr/lib"), file("usr/lib/libc.so", strings.Repeat("c", 9000)),
		symlink("lib", "usr/lib"), dir("var"), dir("var/cache"), file("var/cache/a", "a"), file("var/cache/b", "b"),
		dir("home"), dir("home/user").perm(0o700).owner(1000), file("home/user/own", "o").owner(1000),
		file("bin/su", "#!su").perm(0o4755), file("bin/ping", "ping").attr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		file("attr", "v").attr("user.color", "green"), fifo("pipe"), device("null"),
		file("h1", "group"), hardlink("h2", "h1"), file("swap-file", "was file"), dir("swap-dir"), file("swap-dir/inner", "i"),
		file("odd\nname", "newline"), file("na\xffme", "not utf-8"), file(strings.Repeat("l", 200), "long"),
		file("tmp/later", "t").at(time.Unix(1500000000, 123456789)))
	middle := f.layer(base,
		dir("etc"), gonePath("etc/gone"), file("etc/passwd", "root2"), file("lib/libm.so", "through the link"),
		gonePath("var/cache"), dir("var/cache"), file("var/cache/c", "c"), hardlink("h3", "h1"),
		gonePath("swap-file"), dir("swap-file"), file("swap-file/in", "now dir"), gonePath("swap-dir"), file("swap-dir", "now file"),
		gonePath("nothing-there"), dir("opq"), file("opq/new", "n"), opaqueDir("opq"), dir("home"), opaqueDir("home"), file("home/fresh", "f"))
	return f.layer(middle, gonePath("bin/su"), file("bin/ls", "ls"), file("lib/late", "l"), file("a/b/c/d/deep", "no parents listed"))
}

func TestEveryKindOfChange(t *testing.T) {
	f := newFixture(t)
	top := rich(f)
	f.image(top, "localhost/rich:1", "localhost/rich:latest")
	empty := f.layer(top)
	f.image(empty)
	r := f.sync()
	if r.Copied != 0 || r.Linked == 0 || r.Regroup == 0 {
		t.Errorf("counts %+v", r.Counts)
	}
	p := f.prove()
	t.Logf("%+v %+v", r, p)
	if again := f.sync(); again.Changed || len(again.NewLayers) > 0 {
		t.Errorf("second sync was not idle: %+v", again)
	}
}
