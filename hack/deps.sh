#!/usr/bin/env bash
# Installs the missing dependencies of a task: build, build-amd64, build-arm64,
# cross, test, bench, e2e or kernels.
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: $0 build|build-amd64|build-arm64|cross|test|bench|e2e|kernels ..." >&2; exit 2; }

# The PATH of some users lacks the programs of administrators.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

missing=()

program() { # program, package
	command -v "$1" >/dev/null || missing+=("$2")
}

header() { # file, package; asks the compiler, since directories differ
	echo "#include <$1>" | gcc -E - >/dev/null 2>&1 || missing+=("$2")
}

# A compiler for another architecture, and a static C library.
cross() { # prefix of the tools, architecture of Debian's
	program "$1-gcc" "gcc-${1//_/-}"
	[ -e "/usr/$1/lib/libc.a" ] || missing+=("libc6-dev-$2-cross")
}

build() {
	program gcc gcc
	header stdio.h libc6-dev
	header linux/btrfs.h linux-libc-dev
	# Static linking wants libc.a, which is part of libc6-dev on Debian.
	gcc -print-file-name=libc.a 2>/dev/null | grep -q / || missing+=(libc6-dev)
}

target() { # architecture of Go's
	if [ "$(dpkg --print-architecture 2>/dev/null || uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')" = "$1" ]; then
		build
	elif [ "$1" = arm64 ]; then
		cross aarch64-linux-gnu arm64
	else
		cross x86_64-linux-gnu amd64
	fi
}

for task in "$@"; do
	case $task in
	build) build ;;
	build-amd64) target amd64 ;;
	build-arm64) target arm64 ;;
	cross) target amd64; target arm64 ;;
	test)
		program mkfs.btrfs btrfs-progs
		program mkfs.xfs xfsprogs # below a pool whose power is cut
		program mkfs.ext4 e2fsprogs # below a pool whose file finds no space
		program losetup util-linux # Ubuntu and Debian until 12; mount from 13 on
		program findmnt util-linux
		program mount mount
		;;
	e2e)
		program runc runc
		program busybox busybox-static
		program iptables iptables # of the CNI plugins bridge and portmap, and the kubelet
		program nft nftables
		program conntrack conntrack
		program ip iproute2
		program nsenter util-linux
		;;
	kernels)
		program qemu-system-x86_64 qemu-system-x86
		program qemu-system-aarch64 qemu-system-arm
		program cpio cpio
		program depmod kmod
		program mke2fs e2fsprogs
		[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
		;;
	bench)
		program fio fio
		program strace strace
		;;
	*) echo "$0: unknown task $task" >&2; exit 2 ;;
	esac
done

[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if ! command -v apt-get >/dev/null; then
	echo "missing: ${missing[*]} (as Debian calls them). Only Debian and Ubuntu are known here:" >&2
	echo "install what your distribution calls them: a C compiler, the headers of libc and of" >&2
	echo "Linux, a static libc, btrfs-progs and util-linux" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "missing: ${missing[*]}. Installing them needs root: sudo make deps" >&2
	exit 1
fi
echo "Installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -qy --no-install-recommends "${missing[@]}"
