package prune

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unitTree writes units and files of Quadlet, and reads which names they have, by the
// file.
func unitTree(t *testing.T, dir string, files map[string]string) map[string]string {
	t.Helper()
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if target, is := strings.CutPrefix(text, "-> "); is {
			if err := os.Symlink(target, filepath.Join(dir, path)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	units, unread, err := readUnits([]unitFolder{{filepath.Join(dir, "user"), false, dir}, {filepath.Join(dir, "quadlet"), true, dir}, {filepath.Join(dir, "none"), true, dir}})
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]string{}
	for _, w := range append(namesInUnits(units, readHanded), closedUnits(unread)...) {
		by[w.Name] = w.By
	}
	return by
}

// TestWords: images and containers that units and Quadlet's files name are found.
func TestWords(t *testing.T) {
	t.Parallel()
	by := unitTree(t, t.TempDir(), map[string]string{
		"user/a.service":                    "[Service]\nExecStart=/usr/bin/podman run --rm -v db:/data \\\n  \"quay.io/x/app:1\" serve\n# podman run commented:1\n",
		"user/b.service":                    "[Service]\nExecStart=/usr/bin/other quay.io/x/other:1\n",
		"user/c.service.d/over.conf":        "[Service]\nExecStart=podman start web\n",
		"user/d.timer":                      "podman timer:1\n",
		"quadlet/e.container":               "[Container]\nImage=docker.io/library/redis:7\nVolume=cache.volume:/c\n",
		"quadlet/users/1000/pod.yml":        "containers:\n- image: localhost/y:2\n",
		"user/multi-user.target.wants/none": "podman none:1\n",
		"user/masked.service":               "-> /dev/null",
		"user/gone.service":                 "-> /nowhere/gone.service",
		"user/loop.service":                 "-> loop.service",
	})
	for name, want := range map[string]string{"quay.io/x/app:1": "a.service", "db:/data": "a.service", "web": "over.conf", "docker.io/library/redis:7": "e.container",
		"cache.volume:/c": "e.container", "localhost/y:2": "pod.yml", "quay.io/x/other:1": "", "commented:1": "", "timer:1": "", "none:1": "", "*": ""} {
		if by[name] != want {
			t.Errorf("%s is named by %q, not %q", name, by[name], want)
		}
	}
}

// TestWordsFilledIn: what systemd fills in is known, or stands for any text; and no unit
// that podman brings makes prune keep all.
func TestWordsFilledIn(t *testing.T) {
	t.Parallel()
	podmans := map[string]string{
		"user/podman.service":         "[Service]\nEnvironment=LOGGING=\"--log-level=info\"\nExecStart=/usr/bin/podman $LOGGING system service\n",
		"user/podman-restart.service": "[Service]\nEnvironment=LOGGING=\"--log-level=info\"\nExecStart=/usr/bin/podman $LOGGING start --all --filter restart-policy=always\nExecStop=/bin/sh -c '/usr/bin/podman $LOGGING stop $(/usr/bin/podman container ls --filter restart-policy=always -q)'\n",
		"user/podman-kube@.service":   "[Service]\nEnvironment=PODMAN_SYSTEMD_UNIT=%n\nExecStart=/usr/bin/podman kube play --replace --service-container=true %I\nExecStop=/usr/bin/podman kube down %I\n",
		"user/container-web.service":  "[Service]\nEnvironment=PODMAN_SYSTEMD_UNIT=%n\nExecStart=/usr/bin/podman run --cidfile=%t/%n.ctr-id --name web reg/web:1\nExecStopPost=/usr/bin/podman rm -f --ignore -t 10 --cidfile=%t/%n.ctr-id\nExecStopPost=/usr/bin/podman rm %n\n",
	}
	for name, c := range map[string]struct {
		files map[string]string
		names []string
		not   []string
	}{
		"podman's own":            {not: []string{"*"}},
		"a specifier":             {files: map[string]string{"quadlet/a@.container": "Image=reg/app:%i\nVolume=data-%i:/data\nContainerName=%p\nEnvironment=A=%H\n"}, names: []string{"reg/app:*", "data-*:/data", "a"}, not: []string{"*"}},
		"of an instance":          {files: map[string]string{"user/a@.service": "ExecStart=podman start web-%i\n", "user/x.wants/a@b-c.service": "-> ../a@.service"}, names: []string{"web-b-c", "web-*"}, not: []string{"*"}},
		"only a specifier":        {files: map[string]string{"user/a@.service": "ExecStart=podman start %i\n"}, names: []string{"*"}},
		"two percent signs":       {files: map[string]string{"user/a.service": "ExecStart=podman start a%%b %N\n"}, names: []string{"a%b", "a"}, not: []string{"*"}},
		"a folder":                {files: map[string]string{"quadlet/a.container": "Volume=%h/x:/x\nVolume=%S/y:/y\n"}, not: []string{"*"}},
		"a variable":              {files: map[string]string{"user/a.service": "Environment=IMAGE=reg/a:1 'OTHER=x y'\nExecStart=podman run $IMAGE\n"}, names: []string{"reg/a:1"}, not: []string{"*", "$IMAGE"}},
		"one of a drop-in's":      {files: map[string]string{"user/a.service": "Environment=\"TAG=1\"\nExecStart=podman run reg/a:$TAG\n", "user/a.service.d/t.conf": "[Service]\nEnvironment=TAG=2\n"}, names: []string{"reg/a:*"}},
		"one of a file":           {files: map[string]string{"user/a.service": "Environment=TAG=1\nEnvironmentFile=-/etc/a\nExecStart=podman run reg/a:${TAG}\n"}, names: []string{"reg/a:*"}},
		"one that nobody sets":    {files: map[string]string{"user/a.service": "ExecStart=podman run $IMAGE\n"}, names: []string{"*"}},
		"a shell's":               {files: map[string]string{"user/a.service": "ExecStart=sh -c 'podman run $${IMAGE:-reg/a:1}; podman run reg/b:1;'\n"}, names: []string{"*", "reg/b:1"}},
		"Quadlet's YAML":          {files: map[string]string{"quadlet/a.kube": "[Kube]\nYaml=DIR/srv/a.yml\n", "srv/a.yml": "{image: reg/a:1, claimName: data}\n"}, names: []string{"reg/a:1", "data"}, not: []string{"*"}},
		"beside it":               {files: map[string]string{"quadlet/a.kube": "[Kube]\nYaml=../srv/a.yml\n", "srv/a.yml": "image: 'reg/a:1'\n"}, names: []string{"reg/a:1"}, not: []string{"*"}},
		"that is not there":       {files: map[string]string{"quadlet/a.kube": "[Kube]\nYaml=DIR/none.yml\n"}, names: []string{"*"}},
		"a unit's YAML":           {files: map[string]string{"user/a.service": "ExecStart=podman kube play %h/srv/a.yaml\n", "srv/a.yaml": "claimName: data\n"}, names: []string{"data"}, not: []string{"*"}},
		"play kube":               {files: map[string]string{"user/a.service": "ExecStart=podman play kube a.yaml\n"}, names: []string{"*"}},
		"an instance of podman's": {files: map[string]string{"user/x.wants/podman-kube@-nowhere-a\\x2db.yml.service": "-> ../podman-kube@.service"}, names: []string{"*"}},
		"compose":                 {files: map[string]string{"user/a.service": "WorkingDirectory=/srv/a\nExecStart=podman-compose up\n"}, names: []string{"*"}},
		"a linked folder":         {files: map[string]string{"quadlet/app": "-> ../git/app", "quadlet/sub/again": "-> ../../git/app", "git/app/a.container": "Image=reg/a:1\n", "git/app/up": "-> .."}, names: []string{"reg/a:1"}, not: []string{"*"}},
		"a star that is written":  {files: map[string]string{"quadlet/a.yml": "schedule: \"* * * * *\"\norigin: '*'\n"}, not: []string{"*"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := map[string]string{}
			for _, m := range []map[string]string{podmans, c.files} {
				for path, text := range m {
					files[path] = text
				}
			}
			by := unitTree(t, t.TempDir(), files)
			for _, n := range append(c.names, "reg/web:1") {
				if by[n] == "" {
					t.Errorf("%s is not found: %v", n, by)
				}
			}
			for _, n := range c.not {
				if by[n] != "" {
					t.Errorf("%s is found, by %s", n, by[n])
				}
			}
		})
	}
}

// TestClosedUnit: what a unit names that nobody may read is not known.
func TestClosedUnit(t *testing.T) {
	t.Parallel()
	all := closedUnits([]unitFile{{Path: filepath.Join(t.TempDir(), "a.service")}})
	if len(all) != 1 || all[0].Name != "*" || !strings.HasPrefix(all[0].By, "a.service") {
		t.Errorf("%v", all)
	}
}

// TestTooManyUnits: what a user has among units does not fill root's memory.
func TestTooManyUnits(t *testing.T) {
	dir := t.TempDir()
	first := filepath.Join(dir, "0.container")
	if err := os.WriteFile(first, make([]byte, maxUnitFile), 0o600); err != nil {
		t.Fatal(err)
	}
	folders := []unitFolder{{dir, true, dir}}
	for n := 1; n < maxUnitBytes/maxUnitFile; n++ {
		if err := os.Link(first, filepath.Join(dir, fmt.Sprintf("%d.container", n))); err != nil {
			t.Fatal(err)
		}
	}
	if files, _, err := readUnits(folders); err != nil || len(files) != maxUnitBytes/maxUnitFile {
		t.Fatal(len(files), err)
	}
	if err := os.Link(first, filepath.Join(dir, "more.container")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readUnits(folders); err == nil {
		t.Error("all of it was read")
	}
}
