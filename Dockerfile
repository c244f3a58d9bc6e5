# syntax=docker/dockerfile:1
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY pkg pkg
ARG VERSION=dev
RUN CGO_ENABLED=1 go build -trimpath -tags "netgo osusergo" \
	-ldflags "-linkmode external -extldflags -static -s -w -X main.version=${VERSION}" \
	-o /btrfs-csi ./cmd/btrfs-csi

FROM debian:bookworm-slim
# mount and mkfs.btrfs are what the driver calls; e2fsprogs and xfsprogs are for
# image volumes, which are not there yet.
RUN apt-get update \
	&& apt-get install -y --no-install-recommends mount btrfs-progs e2fsprogs xfsprogs \
	&& rm -rf /var/lib/apt/lists/*
COPY --from=build /btrfs-csi /usr/local/bin/btrfs-csi
COPY LICENSE /usr/share/doc/btrfs-csi/LICENSE
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="btrfs-csi" \
	org.opencontainers.image.description="Container Storage Interface driver for btrfs" \
	org.opencontainers.image.source="https://github.com/btrfs-csi/btrfs-csi" \
	org.opencontainers.image.licenses="Apache-2.0" \
	org.opencontainers.image.version="${VERSION}" \
	org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["/usr/local/bin/btrfs-csi"]
CMD ["serve"]
