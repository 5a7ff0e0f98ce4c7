# Everything here works from nothing on Debian 12, as root, with Go:
#   make demo    a migration before your eyes, on a throw-away node
#   make demo-nomad    the same on a node of a Nomad cluster
#   make test    all tests
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

export CGO_ENABLED := 0
export GOFLAGS := -buildvcs=false -tags=exclude_graphdriver_btrfs,exclude_graphdriver_devicemapper,containers_image_openpgp

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
# What links Ceph's libraries is built where their headers are.
CEPH    := $(and $(wildcard /usr/include/rbd/librbd.h),$(wildcard /usr/include/cephfs/libcephfs.h))
CGO     := CGO_ENABLED=1 GOFLAGS=-buildvcs=false go
LINT    := go tool -modfile=tools/go.mod golangci-lint

# What the lab and the tests start on the host itself.
PACKAGES := acl buildah busybox-static ca-certificates chromium containernetworking-plugins crun debian-archive-keyring e2fsprogs \
	fuse-overlayfs git iproute2 libcap2-bin mmdebstrap netavark aardvark-dns podman procps skopeo slirp4netns \
	systemd-container uidmap util-linux xfsprogs attr rsync \
	ceph-common ceph-fuse ceph-mds ceph-mgr ceph-mon ceph-osd gcc libc6-dev libcephfs-dev librados-dev librbd-dev

.PHONY: build deps generate lint test test-uml demo demo-nomad sweep matrix bench-nomad bench-migrate bench-relocate bench-relocate-rbd bench-relocate-down bench-verify bench-doctor clean

build: generate
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/storagectl ./cmd/storagectl
	@$(if $(CEPH),$(CGO) build -tags pacific -trimpath -ldflags '$(LDFLAGS)' -o bin/storagectl-ceph ./cmd/storagectl-ceph,\
		echo 'no bin/storagectl-ceph: it needs gcc, librados-dev, librbd-dev and libcephfs-dev')

generate:
	go generate ./verify/...

# Quick when nothing is missing.
deps:
	@missing=(); for p in $(PACKAGES); do \
		[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null)" = installed ] || missing+=($$p); \
	done; \
	if [ $${#missing[@]} -gt 0 ]; then \
		echo "installing $${missing[*]}"; \
		apt-get update -q; \
		DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$${missing[@]}"; \
	fi

lint: generate
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go vet $(GOFLAGS),uml ./rbd ./ceph ./integration # no other target of CI compiles their tests
	$(LINT) run --allow-parallel-runners ./...
	$(if $(CEPH),CGO_ENABLED=1 $(LINT) run --allow-parallel-runners --build-tags pacific ./ceph/... ./rbd/... ./internal/cephlink/... ./cmd/storagectl-ceph/...)

# The end-to-end tests build the binaries and the nodes that they need.
test: deps build lint
	go test -count=1 -timeout 75m -json ./... | go run ./integration/cmd/testsummary

# Every crash point, both ways on; the table goes to docs/sweep.md.
sweep: deps build
	STORAGECTL_SWEEP=full go test -count=1 -timeout 10h -v -run 'TestSweep|TestOtherDirections|TestNomadSweep|TestRelocateSweep|TestCephFSSweep|TestRBDSweep|TestRelocateRBD|TestDockerAPI$$|TestRebootInEachStep|TestUnattended' ./integration

# Every podman of Debian's releases, each with a container of every kind; the table goes to
# docs/compatibility.md.
matrix: deps build
	STORAGECTL_MATRIX=full go test -count=1 -timeout 3h -v -run 'TestContainersLive|TestMatrixTable|TestMigrateDB|TestPrune' ./integration

# What needs a kernel with Ceph's own clients: in User-Mode Linux, a quarter of an hour.
test-uml: deps build
	dpkg -s user-mode-linux rbd-nbd >/dev/null 2>&1 || apt-get install -q -y --no-install-recommends user-mode-linux rbd-nbd
	go test -count=1 -timeout 50m -p 1 $(GOFLAGS),uml -run UML -v ./rbd ./ceph ./integration

demo: deps build
	go run ./integration/cmd/demo

# The same on a node of a Nomad cluster, with a service that stays up.
demo-nomad: deps build
	go run ./integration/cmd/demonomad

bench-nomad: deps build
	go run ./integration/cmd/demonomad -rounds 3

bench-migrate: deps build
	go run ./integration/cmd/bench

bench-relocate: deps build
	go run ./integration/cmd/benchrelocate

# FLAGS, for example: -rounds 3 -down 8,2/1000000
bench-relocate-down: deps build
	go run ./integration/cmd/bench -relocate -down 0.2,2,8,2/1000000 $(FLAGS)

bench-verify: deps build
	go run ./integration/cmd/benchverify

bench-doctor: deps build
	go run ./integration/cmd/benchdoctor

# The cluster has its data in memory, two copies of the tree at a time: so the tree is a quarter of the above.
bench-relocate-rbd: deps build
	go run ./integration/cmd/benchrelocate -rbd 10 -files 50000 -large 4 -flat '' -out docs/benchmarks-relocate-rbd.md

clean:
	if [ -x bin/lab ] || go build -o bin/lab ./integration/lab/cmd/lab; then bin/lab clean -all; fi
	rm -rf bin
