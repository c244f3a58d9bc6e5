# Everything that is built, tested or checked. `make help` lists the targets.
# Each works by itself from a clean clone; what is missing on the machine is
# installed by `make deps`, which needs root.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# sudo leaves out where Go is installed by default.
export PATH := $(PATH):/usr/local/go/bin

# sudo -E leaves a user's home to root, who would leave files of root in that user's caches of Go.
ifeq ($(shell [ "$$(id -u)" = 0 ] && [ -d "$$HOME" ] && [ ! -O "$$HOME" ] && echo foreign),foreign)
export HOME := $(shell getent passwd 0 | cut -d: -f6)
endif

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
IMAGE ?= ghcr.io/btrfs-csi/btrfs-csi:$(VERSION)
DOCKER ?= docker

# The driver's module and those of the tests, which have dependencies of their own.
# The components of the tests' Kubernetes are others' code.
MODULES := $(patsubst %/,%,$(dir $(shell find . -name go.mod -not -path './bin/*' -not -path './dist/*' -not -path './test/e2e/components/*' | sort)))

# A static binary: cgo for the btrfs headers, names and users by Go alone.
GOTAGS := netgo osusergo
# Go's build ID would have the path of the compiler in it.
LDFLAGS := -linkmode external -extldflags -static -s -w -buildid= -X main.version=$(VERSION)
# Git refuses to read a checkout of somebody else's; the build need not fail for it. A
# release has its commit in the image's labels: what else lies in the checkout changes nothing.
BUILDVCS = $(shell [ -z "$(TOOLCHAIN)" ] && git rev-parse HEAD >/dev/null 2>&1 && echo auto || echo false)
# What root builds belongs to the owner of the checkout. Nothing is silent for long.
OWNED := $(CURDIR)/hack/owned.sh
PROGRESS := $(CURDIR)/hack/progress.sh
BUILD = CGO_ENABLED=1 CGO_CFLAGS= CGO_LDFLAGS= GOOS=linux GOFLAGS= GOAMD64=v1 GOARM64=v8.0 $(OWNED) $(PROGRESS) "building the driver" go build -trimpath -buildvcs=$(BUILDVCS) -tags "$(GOTAGS)" -ldflags "$(LDFLAGS)"

# renovate: github.com/golangci/golangci-lint/v2
GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT := $(CURDIR)/bin/golangci-lint-$(GOLANGCI_LINT_VERSION)

# renovate: sigs.k8s.io/controller-tools
CONTROLLER_GEN_VERSION := v0.23.0
CONTROLLER_GEN := $(CURDIR)/bin/controller-gen-$(CONTROLLER_GEN_VERSION)

# renovate: helm.sh/helm/v4
HELM_VERSION := v4.3.1
HELM := $(CURDIR)/bin/helm-$(HELM_VERSION)

PROMTOOL := $(CURDIR)/bin/promtool

# renovate: github.com/rhysd/actionlint
ACTIONLINT_VERSION := v1.7.12
ACTIONLINT := $(CURDIR)/bin/actionlint-$(ACTIONLINT_VERSION)

# renovate: github.com/CycloneDX/cyclonedx-gomod
CYCLONEDX_GOMOD_VERSION := v1.10.0
CYCLONEDX_GOMOD := $(CURDIR)/bin/cyclonedx-gomod-$(CYCLONEDX_GOMOD_VERSION)

# renovate: golang.org/x/vuln
GOVULNCHECK_VERSION := v1.9.0
GOVULNCHECK := $(CURDIR)/bin/govulncheck-$(GOVULNCHECK_VERSION)

INSTALL = GOFLAGS= GOBIN=$(CURDIR)/bin $(OWNED) $(PROGRESS) "building $(notdir $@)" go install

TEST_TIMEOUT ?= 60m
TESTFLAGS ?=
GOTEST_ENV := env CGO_ENABLED=1
GOTEST = $(GOTEST_ENV) go test -race -timeout $(TEST_TIMEOUT)

# With the race detector these tests run a sample of their cases.
EVERY_STEP := ^Test(Crash|Foreign|Fault)

E2E_TIMEOUT ?= 70m
E2E_PACKAGES ?= ./...
E2EFLAGS ?= -v -parallel 4

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: deps
deps: ## Install what building and testing need (Debian and Ubuntu, as root)
	@hack/deps.sh build test

.PHONY: deps-cross
deps-cross: ## Install what building for the other architecture needs
	@hack/deps.sh cross

##@ Build

.PHONY: build
build: ## Build bin/btrfs-csi, static, for this machine
	@hack/deps.sh build
	$(BUILD) -o bin/btrfs-csi ./cmd/btrfs-csi

# TOOLCHAIN is a directory of compilers to use in the place of this machine's: see
# release-images.
.PHONY: build-amd64
build-amd64: ## Build bin/btrfs-csi-amd64
	@$(if $(TOOLCHAIN),,hack/deps.sh build-amd64)
	CC=$(if $(TOOLCHAIN),$(TOOLCHAIN)/cc-amd64,$$(hack/cc.sh amd64)) GOARCH=amd64 $(BUILD) -o bin/btrfs-csi-amd64 ./cmd/btrfs-csi

.PHONY: build-arm64
build-arm64: ## Build bin/btrfs-csi-arm64
	@$(if $(TOOLCHAIN),,hack/deps.sh build-arm64)
	CC=$(if $(TOOLCHAIN),$(TOOLCHAIN)/cc-arm64,$$(hack/cc.sh arm64)) GOARCH=arm64 $(BUILD) -o bin/btrfs-csi-arm64 ./cmd/btrfs-csi

.PHONY: build-all
build-all: build build-amd64 build-arm64 ## Build for this machine, amd64 and arm64

# An archive of the image, without an engine: see build/image. APT_SOURCES names a
# sources file of apt, where those of this machine are not the ones to use. SNAPSHOT=1
# takes Debian's packages as they were on the day before the commit.
REVISION = $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
ARCHIVE = dist/btrfs-csi-image-$(VERSION)-$(@:image-%=%).tar
SOURCE_DATE = $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
IMAGE_TOOL = SOURCE_DATE_EPOCH=$(SOURCE_DATE) $(OWNED) $(PROGRESS) "making the $(1)" go -C build/image run .
DEBIAN = $(if $(APT_SOURCES),--sources "$(abspath $(APT_SOURCES))") $(if $(SNAPSHOT),--snapshot)
PACK = $(call IMAGE_TOOL,image) archive $(DEBIAN) --arch $(@:image-%=%) --work "$(CURDIR)/dist/image/$(@:image-%=%)" \
	--binary "$(CURDIR)/bin/btrfs-csi-$(@:image-%=%)" --license "$(CURDIR)/LICENSE" \
	--name $(IMAGE) --version $(VERSION) --revision $(REVISION) --output "$(CURDIR)/$(ARCHIVE)"

.PHONY: image
image: ## Build the container image for this machine, an archive in dist, without an engine
	@$(MAKE) --no-print-directory image-$$(go env GOHOSTARCH)

.PHONY: image-amd64
image-amd64: build-amd64 ## Build the container image for amd64
	$(PACK)

.PHONY: image-arm64
image-arm64: build-arm64 ## Build the container image for arm64
	$(PACK)

.PHONY: image-all
image-all: image-amd64 image-arm64 ## Build the container images for amd64 and arm64

.PHONY: image-docker
image-docker: ## Build the container image with an engine, and nothing but that
	@if ! command -v $(DOCKER) >/dev/null; then echo "make image-docker needs $(DOCKER); install it, name another with DOCKER=, or make image, which needs none" >&2; exit 1; fi
	@if ! $(DOCKER) info >/dev/null 2>&1; then echo "make image-docker: $(DOCKER) is installed, but its daemon does not answer; make image needs none" >&2; exit 1; fi
	$(DOCKER) build --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) -t $(IMAGE) .

##@ Release

# What is released has nothing of this machine in it. Go is the one that go.mod names. The
# C compiler, the C library and the image's packages are Debian's; with SNAPSHOT=1 they
# are of a day that follows from the commit.
.PHONY: release-images
release-images: export GOTOOLCHAIN = $(shell awk '$$1 == "toolchain" {print $$2}' go.mod)
release-images:
	@git rev-parse --verify --quiet HEAD > /dev/null || { echo "make $@ needs a git checkout: the commit and its time become part of the image" >&2; exit 1; }
	$(call IMAGE_TOOL,toolchain) toolchain $(DEBIAN) --work "$(CURDIR)/dist/toolchain"
	@$(MAKE) --no-print-directory $(or $(RELEASE_IMAGES),image-amd64 image-arm64) TOOLCHAIN="$(CURDIR)/dist/toolchain"

.PHONY: release
release: ## Build a release, without publishing it: .github/workflows/release.yml does that
	@$(MAKE) --no-print-directory release-dry-run SNAPSHOT=1

.PHONY: release-dry-run
release-dry-run: $(HELM) $(CYCLONEDX_GOMOD) release-images ## Build a release in dist/release, of what Debian has today, and test what came out
	$(call IMAGE_TOOL,release) bundle --source "$(CURDIR)" --version $(VERSION) --name $(IMAGE) --output "$(CURDIR)/dist/release" \
		--toolchain "$(CURDIR)/dist/toolchain" --helm $(HELM) --gomod $(CYCLONEDX_GOMOD)
	RELEASE_VERSION=$(VERSION) $(PROGRESS) "testing dist/release" go -C build/image test -count 1 -tags release -run '^TestRelease' .

.PHONY: image-verify
ifdef DIGEST
image-verify: ## Rebuild the images of the release that is checked out and compare with DIGEST=sha256:...; without DIGEST build this image twice
	@$(MAKE) --no-print-directory release-images SNAPSHOT=1
	@go -C build/image run . index --expect $(DIGEST) $(foreach arch,amd64 arm64,--archive "$(CURDIR)/dist/btrfs-csi-image-$(VERSION)-$(arch).tar")
else
image-verify:
	@$(MAKE) --no-print-directory release-images RELEASE_IMAGES=image-amd64
	@hack/image-verify.sh $(VERSION) $(IMAGE)
endif

$(CYCLONEDX_GOMOD):
	$(INSTALL) github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$(CYCLONEDX_GOMOD_VERSION)
	mv bin/cyclonedx-gomod $@

##@ Run

.PHONY: demo
demo: deps build ## Show volumes, snapshots and clones on a btrfs of its own (as root)
	CGO_ENABLED=1 $(OWNED) $(PROGRESS) "building bin/demo" go build -buildvcs=false -o bin/demo ./test/demo
	bin/demo --binary bin/btrfs-csi

# What the end-to-end tests and the cluster run: the chart as it stands, and the
# image, under a tag of its own.
E2E_TAG := e2e
E2E_ARCHIVE = $(CURDIR)/dist/btrfs-csi-image-$(E2E_TAG)-$$(go env GOHOSTARCH).tar
# What TestUpgrade upgrades from.
E2E_PREVIOUS_CHART := $(CURDIR)/dist/previous-chart

.PHONY: e2e-prepare
e2e-prepare: $(HELM)
	@hack/deps.sh build test e2e
	@$(MAKE) --no-print-directory image VERSION=$(E2E_TAG) IMAGE=ghcr.io/btrfs-csi/btrfs-csi:$(E2E_TAG)

.PHONY: cluster
cluster: e2e-prepare ## Start a Kubernetes of two nodes with the driver, until Ctrl-C (as root)
	$(OWNED) $(PROGRESS) "building bin/cluster" go build -C test/e2e -o $(CURDIR)/bin/cluster ./cmd/cluster
	cd test/e2e && HELM=$(HELM) $(CURDIR)/bin/cluster up --image $(E2E_ARCHIVE) --chart $(CURDIR)/charts/btrfs-csi \
		--set image.tag=$(E2E_TAG) --set snapshotController.enabled=true

##@ Check

.PHONY: test
test: deps ## Run go vet and all tests, on a real btrfs (as root); LEAVE_OUT=./a/module
	@failed=0; for module in $(filter-out $(LEAVE_OUT),$(MODULES)); do \
		echo "== $$module"; \
		[ "$$module" != ./test/e2e ] || echo "The end-to-end tests themselves are run by make e2e."; \
		(cd "$$module" && $(PROGRESS) "$$module: downloading modules, compiling and vetting" $(GOTEST_ENV) go vet -race ./... && \
			$(PROGRESS) "$$module: linking and testing" $(GOTEST) $(TESTFLAGS) ./...) || failed=1; \
	done; \
	$(PROGRESS) "./pkg/snapshot: crashes at every step" $(GOTEST_ENV) go test -timeout $(TEST_TIMEOUT) $(TESTFLAGS) -run '$(EVERY_STEP)' ./pkg/snapshot || failed=1; \
	exit $$failed

# Mounts are shared where systemd has made them, and private in the tests.
.PHONY: test-shared
test-shared: deps ## Run the tests of mounts once more, among shared mounts (as root)
	BTRFS_CSI_TEST_SHARED_MOUNTS=1 $(PROGRESS) "testing among shared mounts" $(GOTEST) -count 1 $(TESTFLAGS) ./pkg/mount ./pkg/driver ./cmd/btrfs-csi

# No test may depend on how fast the machine is.
.PHONY: test-busy
test-busy: deps ## Run the reliability tests once more, beside eight busy loops (as root)
	cd test/reliability && $(CURDIR)/hack/busy.sh 8 $(PROGRESS) "testing beside busy loops" $(GOTEST) -count 1 $(TESTFLAGS) ./...

.PHONY: e2e
e2e: e2e-prepare ## Run the end-to-end tests on a Kubernetes of two nodes (as root)
	@$(OWNED) hack/previous-chart.sh $(E2E_PREVIOUS_CHART)
	cd test/e2e && E2E_NUMBERS=$(abspath $(E2E_NUMBERS)) E2E_IMAGE=$(E2E_ARCHIVE) E2E_TAG=$(E2E_TAG) E2E_CHART=$(CURDIR)/charts/btrfs-csi \
		E2E_PREVIOUS_CHART=$(E2E_PREVIOUS_CHART) HELM=$(HELM) \
		$(PROGRESS) "running the end-to-end tests" go test -tags e2e -count 1 -p 1 -timeout $(E2E_TIMEOUT) $(E2EFLAGS) $(E2E_PACKAGES)

.PHONY: policies
policies: $(HELM) ## Attack the API server of a Kubernetes without nodes with the token of one node's driver (as root)
	@hack/deps.sh test e2e
	cd test/e2e && E2E_CHART=$(CURDIR)/charts/btrfs-csi HELM=$(HELM) \
		go test -tags e2e -count 1 -timeout $(E2E_TIMEOUT) $(TESTFLAGS) ./policies

.PHONY: e2e-kubelet
e2e-kubelet: ## Run some end-to-end tests with another directory of the kubelet, as with k0s, and pools in files (as root)
	@E2E_KUBELET_DIR=/var/lib/k0s/kubelet E2E_LOOP_POOL=2Gi $(MAKE) --no-print-directory e2e E2E_PACKAGES=. E2E_NUMBERS= \
		E2EFLAGS='-v -parallel 4 -run "^Test(Install|Provision|Restore|ExpandOnline|SubPath)"'

.PHONY: e2e-suite
e2e-suite: ## Run all of Kubernetes' External.Storage tests, slow ones too, on two nodes and on one (as root)
	@for nodes in 2 1; do \
		$(MAKE) --no-print-directory e2e E2E_SUITE=full E2E_NODES=$$nodes E2E_PACKAGES=. E2EFLAGS='-v -run TestExternalStorage' || exit 1; \
	done

# A whole soak writes its figures into docs/reliability.md.
SOAK ?= 30m
KILLS ?= 1000
CUTS ?= 500
FUZZ ?= 60s
.PHONY: soak
soak: deps build ## Kill a driver, cut its power and leave it alone, under load (as root); SOAK=5m KILLS= CUTS= FUZZ= SEED= OUT=FILE.json
	go -C test/reliability run ./cmd/soak --binary $(CURDIR)/bin/btrfs-csi --source $(CURDIR) --docs $(CURDIR)/docs \
		--time $(SOAK) --kills $(KILLS) --cuts $(CUTS) --fuzz $(FUZZ) $(if $(SEED),--seed $(SEED)) $(if $(OUT),--output json > $(abspath $(OUT)))

ROUNDS ?= 1000
.PHONY: groups
groups: deps ## Restore ROUNDS=1000 groups of snapshots taken of volumes that a counter is synced to in turn (as root)
	$(GOTEST_ENV) go test ./pkg/snapshot -count=1 -timeout $(TEST_TIMEOUT) -v -run 'TestGroupsAreOrdered' -groups $(ROUNDS)

# A whole run writes its figures into docs/reliability.md, and so does one of TRIPLES= histories.
TRIPLES ?= -1
INTERFERENCES ?= -1
.PHONY: crash-states
crash-states: deps build ## Start a driver on every state that a power cut leaves of short histories (as root); TRIPLES= INTERFERENCES= ONLY= SEED= OUT=FILE.json
	go -C test/reliability run ./cmd/soak crash-states --binary $(CURDIR)/bin/btrfs-csi $(if $(ONLY),--only '$(ONLY)',--mutants $(CURDIR) --docs $(CURDIR)/docs) \
		--triples $(TRIPLES) --interferences $(INTERFERENCES) $(if $(SEED),--seed $(SEED)) $(if $(OUT),--output json > $(abspath $(OUT)))

.PHONY: mutants
mutants: deps ## Put faults into copies of the driver, and have a power cut show each (as root); ONLY=REGEXP
	go -C test/reliability run ./cmd/soak mutants --source $(CURDIR) $(if $(ONLY),--only '$(ONLY)')

.PHONY: fuzz
fuzz: deps ## Run every fuzz target for FUZZ=60s (as root)
	go -C test/reliability run ./cmd/soak fuzz --source $(CURDIR) --time $(FUZZ)

# One kernel after the other, in a virtual machine without hardware support: hours for all,
# minutes with SHORT=1. A whole run writes docs/kernels.md. APT_SOURCES names a sources file of
# apt with the mirrors of Debian, and of Ubuntu for its kernel, where those of this machine are
# not the ones to use.
KERNELS ?=
ARCH ?= amd64
ACCEL ?= tcg
.PHONY: test-kernels
test-kernels: ## Run tests on the kernels of Debian and Ubuntu (as root); KERNELS=6.1,6.12 ARCH=arm64 SHORT=1 ONLY=STEPS ACCEL=kvm
	@hack/deps.sh build-$(ARCH) test kernels
	$(OWNED) $(PROGRESS) "building bin/kernels" go build -C test/kernels -buildvcs=false -o $(CURDIR)/bin/kernels .
	$(OWNED) $(PROGRESS) "testing on kernels" bin/kernels --source $(CURDIR) --work $(CURDIR)/dist/kernels --arch $(ARCH) --accel $(ACCEL) --kernels '$(KERNELS)' --only '$(ONLY)' \
		$(if $(SHORT),--short,$(if $(ONLY),,--docs $(CURDIR)/docs)) $(if $(APT_SOURCES),--sources "$(abspath $(APT_SOURCES))")

# A whole simulation writes its figures into docs/reliability.md.
SIMULATE ?= 1h
.PHONY: simulate
simulate: deps ## Simulate clusters, each from one seed, and find old faults again that are put in (as root); SIMULATE=5m, or SEED= of one that failed
	cd test/simulate && $(GOTEST_ENV) $(if $(SEED),SIMULATE_SEED=$(SEED),SIMULATE=$(SIMULATE) SIMULATE_MENDS=. SIMULATE_DOCS=$(CURDIR)/docs) \
		go test -count 1 -timeout 0 -v $(TESTFLAGS) .

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Check format, style and import rules
	@hack/deps.sh build
	@unformatted=$$(gofmt -l $$(find . -name '*.go' -not -path './bin/*')); \
	if [ -n "$$unformatted" ]; then printf 'not formatted, run gofmt -w:\n%s\n' "$$unformatted" >&2; exit 1; fi
	@if grep -rl '^import "C"' --include='*.go' . | grep -v '^./pkg/btrfs/'; then echo 'cgo belongs in pkg/btrfs' >&2; exit 1; fi
	@failed=0; for module in $(MODULES); do \
		echo "== $$module"; \
		(cd "$$module" && $(PROGRESS) "$$module: linting" $(GOLANGCI_LINT) run --config $(CURDIR)/.golangci.yml ./...) || failed=1; \
	done; exit $$failed

$(GOLANGCI_LINT):
	$(INSTALL) github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv bin/golangci-lint $@

.PHONY: vulnerabilities
vulnerabilities: $(GOVULNCHECK) ## Look for known vulnerabilities that what is released calls (needs the database of Go's)
	@for module in . build/image; do echo "== $$module"; $(GOVULNCHECK) -C $$module ./... || exit 1; done

$(GOVULNCHECK):
	$(INSTALL) golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
	mv bin/govulncheck $@

.PHONY: update
update: $(CONTROLLER_GEN) $(HELM) ## Bring up to date all that is generated
	@hack/each-module.sh go mod tidy
	@CONTROLLER_GEN=$(CONTROLLER_GEN) hack/api.sh update
	@HELM=$(HELM) hack/chart.sh update

.PHONY: verify
verify: $(CONTROLLER_GEN) $(HELM) $(PROMTOOL) $(ACTIONLINT) ## Prove that all that is generated is up to date, modules are genuine, alerts fire, links lead somewhere, workflows are sound and what should builds on every system
	@hack/each-module.sh go mod tidy -diff
	@hack/each-module.sh go mod verify
	@CONTROLLER_GEN=$(CONTROLLER_GEN) hack/api.sh verify
	@HELM=$(HELM) hack/chart.sh verify
	@HELM=$(HELM) PROMTOOL=$(PROMTOOL) hack/alerts.sh
	@hack/links.sh
	@ACTIONLINT=$(ACTIONLINT) hack/workflows.sh
	@hack/portable.sh

$(ACTIONLINT):
	$(INSTALL) github.com/rhysd/actionlint/cmd/actionlint@$(ACTIONLINT_VERSION)
	mv bin/actionlint $@

$(CONTROLLER_GEN):
	$(INSTALL) sigs.k8s.io/controller-tools/cmd/controller-gen@$(CONTROLLER_GEN_VERSION)
	mv bin/controller-gen $@

$(HELM):
	$(INSTALL) helm.sh/helm/v4/cmd/helm@$(HELM_VERSION)
	mv bin/helm $@

$(PROMTOOL):
	$(OWNED) hack/promtool.sh $@

##@ Measure

# OUT takes the numbers as JSON. A whole run, of an hour, writes docs/benchmarks.md.
BENCH_ONLY ?=
.PHONY: bench
bench: build ## Measure beside containerd's snapshotter, the raw ioctls and a copy (as root); QUICK=1 OUT=FILE.json
	@hack/deps.sh test bench
	go -C test/bench run . --binary $(CURDIR)/bin/btrfs-csi $(if $(QUICK),--quick,$(if $(BENCH_ONLY),,--docs $(CURDIR)/docs)) \
		$(if $(BENCH_ONLY),--only '$(BENCH_ONLY)') $(if $(OUT),--output $(abspath $(OUT)))

.PHONY: calls
calls: ## Count the calls of the driver's own functions in one CreateVolume and one start (as root)
	go -C test/bench run ./calls

.PHONY: clean
clean: ## Remove all that was built
	rm -rf bin dist
