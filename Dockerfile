# The same image as `make image` makes, for machines that have an engine and
# nothing else. The file build/image/packages lists what it has of Debian.
# Everything is built on the machine's own architecture, for the one asked for.
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
ARG TARGETARCH
WORKDIR /src
COPY hack/deps.sh hack/cc.sh hack/
RUN hack/deps.sh build-${TARGETARCH}
COPY go.mod go.sum ./
COPY build/image/go.mod build/image/go.sum build/image/
RUN go mod download && go -C build/image mod download
COPY build/image build/image
RUN go -C build/image run . root --arch=${TARGETARCH} --work=/image
COPY Makefile ./
COPY hack/owned.sh hack/progress.sh hack/
COPY api api
COPY cmd cmd
COPY internal internal
COPY pkg pkg
ARG VERSION=dev
RUN make build-${TARGETARCH} VERSION=${VERSION} && mv bin/btrfs-csi-${TARGETARCH} /btrfs-csi

FROM scratch
COPY --from=build /image/root/ /
COPY --from=build /btrfs-csi /usr/local/bin/btrfs-csi
COPY LICENSE /usr/share/doc/btrfs-csi/LICENSE
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
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
