# Everything that is built, tested or checked. `make help` lists the targets.
# Each works by itself from a clean clone; what is missing on the machine is
# installed by `make deps`, which needs root.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# sudo leaves out where Go is installed by default.
export PATH := $(PATH):/usr/local/go/bin

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
IMAGE ?= btrfs-csi:$(VERSION)
DOCKER ?= docker

# The driver's module and those of the tests, which have dependencies of their own.
MODULES := $(patsubst %/,%,$(dir $(shell find . -name go.mod -not -path './bin/*' | sort)))

# A static binary: cgo for the btrfs headers, names and users by Go alone.
GOTAGS := netgo osusergo
LDFLAGS := -linkmode external -extldflags -static -s -w -X main.version=$(VERSION)
# Git refuses to read a checkout of somebody else's; the build need not fail for it.
BUILDVCS := $(shell git rev-parse HEAD >/dev/null 2>&1 && echo auto || echo false)
BUILD = CGO_ENABLED=1 GOOS=linux go build -trimpath -buildvcs=$(BUILDVCS) -tags "$(GOTAGS)" -ldflags "$(LDFLAGS)"

GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT := $(CURDIR)/bin/golangci-lint-$(GOLANGCI_LINT_VERSION)

TEST_TIMEOUT ?= 20m
TESTFLAGS ?=

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

.PHONY: build-amd64
build-amd64: ## Build bin/btrfs-csi-amd64
	@hack/deps.sh build-amd64
	CC=$$(hack/cc.sh amd64) GOARCH=amd64 $(BUILD) -o bin/btrfs-csi-amd64 ./cmd/btrfs-csi

.PHONY: build-arm64
build-arm64: ## Build bin/btrfs-csi-arm64
	@hack/deps.sh build-arm64
	CC=$$(hack/cc.sh arm64) GOARCH=arm64 $(BUILD) -o bin/btrfs-csi-arm64 ./cmd/btrfs-csi

.PHONY: build-all
build-all: build build-amd64 build-arm64 ## Build for this machine, amd64 and arm64

.PHONY: image
image: ## Build the container image
	@if ! command -v $(DOCKER) >/dev/null; then echo "make image needs $(DOCKER); install it, or name another with DOCKER=" >&2; exit 1; fi
	@if ! $(DOCKER) info >/dev/null 2>&1; then echo "make image: $(DOCKER) is installed, but its daemon does not answer" >&2; exit 1; fi
	$(DOCKER) build --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) -t $(IMAGE) .

##@ Run

.PHONY: demo
demo: deps build ## Show volumes, snapshots and clones on a btrfs of its own (as root)
	bin/btrfs-csi demo

##@ Check

.PHONY: test
test: deps ## Run go vet and all tests, on a real btrfs (as root)
	@failed=0; for module in $(MODULES); do \
		echo "== $$module"; \
		(cd "$$module" && go vet ./... && CGO_ENABLED=1 go test -race -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./...) || failed=1; \
	done; exit $$failed

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Check format, style and import rules
	@hack/deps.sh build
	@unformatted=$$(gofmt -l $$(find . -name '*.go' -not -path './bin/*')); \
	if [ -n "$$unformatted" ]; then printf 'not formatted, run gofmt -w:\n%s\n' "$$unformatted" >&2; exit 1; fi
	@if grep -rl '^import "C"' --include='*.go' . | grep -v '^./pkg/btrfs/'; then echo 'cgo belongs in pkg/btrfs' >&2; exit 1; fi
	@failed=0; for module in $(MODULES); do \
		echo "== $$module"; \
		(cd "$$module" && $(GOLANGCI_LINT) run --config $(CURDIR)/.golangci.yml ./...) || failed=1; \
	done; exit $$failed

$(GOLANGCI_LINT):
	GOFLAGS= GOBIN=$(CURDIR)/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv bin/golangci-lint $@

.PHONY: update
update: ## Bring up to date all that is generated
	@hack/each-module.sh go mod tidy

.PHONY: verify
verify: ## Prove that all that is generated is up to date, modules are genuine and links lead somewhere
	@hack/each-module.sh go mod tidy -diff
	@hack/each-module.sh go mod verify
	@hack/links.sh

.PHONY: clean
clean: ## Remove all that was built
	rm -rf bin dist
