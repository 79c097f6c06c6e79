#!/bin/sh
# Install what Strongroom's make targets need on Debian, or, without root, say exactly what to install.
#
#   tools/setup.sh [build] [lab] [test] [bench] [peers] [vm] [libvirt] [xen] [check]
#
# Default: all of them but peers, vm, libvirt, xen.
#
# Does nothing, quickly, when everything is there. Debian packages need root; cargo tools go to target/tools.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin
[ $# -gt 0 ] || set -- build lab test bench check
tools=$(pwd)/target/tools
[ -z "${CARGO_TARGET_DIR:-}" ] || tools=$CARGO_TARGET_DIR/tools

packages="" downgrade=""
# need COMMAND PACKAGE: the package is wanted when the command is missing.
need() {
  command -v "$1" >/dev/null 2>&1 || case " $packages " in *" $2 "*) ;; *) packages="$packages $2";; esac
}
crates=""
# tool CRATE VERSION: a program from crates.io, built once.
tool() {
  [ -x "$tools/bin/$1" ] && "$tools/bin/$1" --version 2>/dev/null | grep -qF "$2" || crates="$crates $1@$2"
}

real_guests() {
  need qemu-system-x86_64 qemu-system-x86; need busybox busybox-static; need cpio cpio; need mke2fs e2fsprogs
  need xz xz-utils; need lz4 lz4; need setsid util-linux; need depmod kmod
  # A busybox with libraries is of no use in a guest.
  if command -v busybox >/dev/null 2>&1 && ldd "$(command -v busybox)" >/dev/null 2>&1; then packages="$packages busybox-static"; fi
  # One from elsewhere (backports) keeps this release's emulator out; the release's own goes with it.
  if ! command -v qemu-system-x86_64 >/dev/null 2>&1 && command -v qemu-img >/dev/null 2>&1 && [ -r /etc/os-release ]; then
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    [ -z "$release" ] || { packages="$packages qemu-utils/$release"; downgrade=--allow-downgrades; }
  fi
}

for group; do
  case $group in
    build) need cc gcc; need make make; need ld binutils
      [ -e /usr/include/stdio.h ] || packages="$packages libc6-dev";;
    lab) need ip iproute2; need nft nftables; need fusermount3 fuse3; need setsid util-linux; need mount mount;;
    test) need git git; need hg mercurial; need sqlite3 sqlite3; need rsync rsync; need tar tar; need setfattr attr
      need pgrep procps; need python3 python3; need fio fio; need dbench dbench; need stress-ng stress-ng
      ls -d /usr/lib/postgresql/*/bin >/dev/null 2>&1 || packages="$packages postgresql"
      tool pjdfstest 0.2.2; tool fsx 0.3.2;;
    bench) need sshfs sshfs; need bindfs bindfs; need sshd openssh-server; need ssh openssh-client; need git git; need sqlite3 sqlite3
      need tar tar; need find findutils; need grep grep;;
    # Only on demand: some hundred megabytes.
    peers) need glusterd glusterfs-server; need glusterfs glusterfs-client; need openssl openssl
      need ceph-mon ceph-mon; need ceph-mgr ceph-mgr; need ceph-osd ceph-osd; need ceph-mds ceph-mds; need ceph ceph-common
      need ceph-fuse ceph-fuse; need mfsmaster moosefs-master; need mfschunkserver moosefs-chunkserver; need mfsmount moosefs-client;;
    # Only on demand: emulators. Kernels, and what runs on Xen, are downloaded by the stories themselves and not installed.
    vm) real_guests; need ip iproute2; need qemu-img qemu-utils; need debugfs e2fsprogs;;
    # The daemon without the package that has it started with the system.
    libvirt) need libvirtd libvirt-daemon; need virsh libvirt-clients; need unshare util-linux
      ls /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so >/dev/null 2>&1 || packages="$packages libvirt-daemon-driver-qemu";;
    xen) real_guests; need qemu-img qemu-utils;;
    check) tool cargo-deny 0.20.2;;
    *) echo "setup: there is no group \`$group\`: build, lab, test, bench, peers, vm, libvirt, xen, check" >&2; exit 2;;
  esac
done

# The oldest compiler that builds this, from Cargo.toml.
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
have=$(rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9]*\.[0-9]*\).*/\1/p' || true)
rust=""
if ! command -v cargo >/dev/null 2>&1 || [ -z "$have" ] ||
   [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" != "$wanted" ]; then
  rust=missing
  need curl curl
  [ -e /etc/ssl/certs/ca-certificates.crt ] || packages="$packages ca-certificates"
fi

if [ -n "$packages" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "setup: installing$packages"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of words
    apt-get install -y --no-install-recommends $downgrade $packages >/dev/null 2>&1 ||
      { apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends $downgrade $packages; }
  else
    echo "setup: these Debian packages are missing; as root, run:" >&2
    echo "  apt-get install --no-install-recommends$packages" >&2
    exit 1
  fi
fi

if [ -n "$rust" ]; then
  echo "setup: Rust $wanted or newer is missing${have:+ (here is $have)}" >&2
  echo "  install it with:  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy,rustfmt" >&2
  echo "  then open a new shell, or run:  . \"\$HOME/.cargo/env\"" >&2
  exit 1
fi

for crate in $crates; do
  echo "setup: building $crate into $tools (once; takes minutes)"
  # A workspace of their own lock files, so that what they are does not change under the tests.
  # They run for seconds: building them takes longer than what optimising them saves.
  CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_TARGET_DIR=$tools/build cargo install --quiet --locked --root "$tools" "$crate" ||
    { echo "setup: cannot build $crate; the tests that need it cannot run" >&2; exit 1; }
done
[ -z "$crates" ] || rm -rf "$tools/build"
