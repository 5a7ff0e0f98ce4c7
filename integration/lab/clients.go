package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
)

// DockerClients fetches the programs that talk of Docker images from Debian's archive,
// unless the cache has them: the docker command, a registry, and docker-py with what
// it imports. They are not installed: the folder that is returned is like a small
// root, for Options.Binds, and a node's own libc and Python run what is in it.
func DockerClients(ctx context.Context) (string, error) {
	packages := []string{
		"docker.io", "docker-registry", "python3-docker", "python3-requests", "python3-urllib3", "python3-websocket",
		"python3-six", "python3-chardet", "python3-charset-normalizer", "python3-idna", "python3-certifi",
		"python3-distutils",
	}
	const script = `
cd "$TMP"
apt-get download -q "$@" >log 2>&1 || { apt-get update -q >>log 2>&1; apt-get download -q "$@" >>log 2>&1; } || { cat log; exit 1; }
for deb in *.deb; do dpkg-deb -x "$deb" all; done
mkdir -p usr/bin usr/lib
mv all/usr/bin/docker all/usr/bin/docker-registry usr/bin/
mv all/usr/lib/python3/dist-packages usr/lib/python
mv all/usr/lib/python3.*/distutils usr/lib/python/
rm -r all log ./*.deb
chmod -R a+rX .
`
	sum := sha256.Sum256([]byte(strings.Join(packages, "\n") + script))
	dir := filepath.Join(Cache(), "tools", "docker-"+hex.EncodeToString(sum[:6]))
	err := once(ctx, dir, func(tmp string) error {
		return run(ctx, []string{"TMP=" + tmp}, "sh", append([]string{"-euc", script, "sh"}, packages...)...)
	})
	if err != nil {
		return "", fmt.Errorf("cannot fetch the docker clients: %w", err)
	}
	return dir, nil
}
