#!/bin/bash
# `make xen`: the same recovery on a real Xen system. One emulated machine runs the hypervisor, dom0 as the base domain, and
# two paravirtual guests, the storage guest and the one that is attacked; `strongroom-recovery` in dom0 drives `xl`, and the
# enrolment secret goes through XenStore. No hardware virtualisation is needed, and none is used.
#
#   tests/guests/xen.sh
#
# STRONGROOM_GUEST_BIN   where the statically linked programs are
# STRONGROOM_GUEST_CACHE where kernels and packages are kept between runs
# STRONGROOM_XEN_KEEP    a file for the machine's console log, which otherwise goes with the rest
#
# Nothing is installed: Debian packages are unpacked into images. The guest that is attacked has a disk: a qcow2 overlay on a
# clean image, which QEMU in dom0 serves to it (qdisk). The storage guest runs from memory.
set -euo pipefail
GUESTS=$(cd "$(dirname "$0")" && pwd)
STORY=xen
. "$GUESTS/lib.sh"
BIN=${STRONGROOM_GUEST_BIN:-$GUESTS/../../target/x86_64-unknown-linux-gnu/release}
CACHE=${STRONGROOM_GUEST_CACHE:-$GUESTS/../../target/guests}
QEMU=qemu-system-x86_64
XEN=4.17
# What dom0 is made of, with all that these depend on but what LEFT_OUT matches.
PACKAGES="busybox-static bash coreutils diffutils findutils grep sed mawk util-linux kmod iproute2 bridge-utils
  xen-utils-$XEN xenstore-utils xen-utils-common qemu-system-xen qemu-utils e2fsprogs"
LEFT_OUT='^(python3|libpython3|perl|dpkg|debconf|passwd|adduser|udev|ucf|media-types|libsqlite3|libsemanage|libdb5|sensible|readline-common|tar|iso-codes|ipxe|seabios)'
# Only a guard against hanging for ever.
LIMIT=3600

[ $# = 0 ] || { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit 2; }
[ "$(id -u)" = 0 ] || die "it needs root, to make images whose files are root's"
need $QEMU qemu-img busybox cpio mke2fs xz lz4 apt-get dpkg dpkg-deb ldd chroot
statically "$BIN"/{contract,strongroom-gateway,strongroom-recovery,mount-strongroom}
BIN=$(cd "$BIN" && pwd)
mkdir -p "$CACHE"
CACHE=$(cd "$CACHE" && pwd)

WORK=$(mktemp -d "${TMPDIR:-/tmp}/strongroom-xen.XXXXXX")
qemu='' follower=''
finish() {
  local status=$?
  trap '' INT TERM
  trap - EXIT
  [ -z "$follower" ] || kill "$follower" 2>/dev/null || true
  [ -z "$qemu" ] || { kill -KILL "$qemu" 2>/dev/null && wait "$qemu" 2>/dev/null; } || true
  [ -z "${STRONGROOM_XEN_KEEP:-}" ] || cp "$WORK/console.log" "$STRONGROOM_XEN_KEEP" || true
  if [ $status != 0 ] && [ $status != 130 ] && [ -s "$WORK/console.log" ]; then
    { echo '--- the end of the console'; tail -n 25 "$WORK/console.log"; } >&2
  fi
  rm -rf "$WORK"
  exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

# dom0_packages DIR: the packages of dom0 and the hypervisor, unpacked to DIR/tree and DIR/xen, once for each version.
dom0_packages() {
  local dir=$1 part=$1.part version package name
  version=$(apt-cache policy xen-hypervisor-$XEN-amd64 | awk '/Candidate:/ { print $2 }')
  [ -n "$version" ] && [ "$version" != '(none)' ] || die "apt knows no package xen-hypervisor-$XEN-amd64: this story wants Debian 12"
  version="$version $(cksum <<<"$PACKAGES $LEFT_OUT")"
  [ "$(cat "$dir/version" 2>/dev/null)" != "$version" ] || return 0
  say "getting Xen $version and what dom0 is made of, once"
  rm -rf "$dir" "$part"
  mkdir -p "$part/archives/partial" "$part/tree" "$part/hypervisor"
  # To a system without any package, apt lists everything that is needed.
  : >"$part/no-packages"
  fetch() {
    # shellcheck disable=SC2086  # a list of words
    apt-get -q -y --no-install-recommends --download-only -o APT::Sandbox::User=root -o Dir::State::status="$part/no-packages" \
      -o Dir::Cache::archives="$part/archives" -o Debug::NoLocking=1 install $PACKAGES >"$part/apt.log" 2>&1
  }
  # A mirror keeps no package that an old list names.
  fetch || { apt-get update -q >/dev/null 2>&1 && fetch; } || { tail "$part/apt.log" >&2; die "dom0's packages cannot be downloaded"; }
  (cd "$part" && apt-get -q -o APT::Sandbox::User=root download xen-hypervisor-$XEN-amd64 >/dev/null) || die "the hypervisor cannot be downloaded"
  dpkg-deb -x "$part"/xen-hypervisor-*.deb "$part/hypervisor"
  # QEMU enters this file by its multiboot header.
  zcat "$part/hypervisor/boot/xen-$XEN-amd64.gz" >"$part/xen"
  # Directories of the merged /usr first, so that packages with the old ones go to the right place.
  mkdir -p "$part"/tree/usr/{bin,sbin,lib,lib64}
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$part/tree/$name"; done
  for package in "$part"/archives/*.deb; do
    name=${package##*/}
    [[ $name =~ $LEFT_OUT ]] || dpkg-deb --fsys-tarfile "$package" | busybox tar -x -C "$part/tree" -f - 2>/dev/null || dpkg -x "$package" "$part/tree"
  done
  # QEMU as a mere server of disks reads a keymap, and none of its firmware.
  find "$part/tree/usr/share/qemu" -mindepth 1 -maxdepth 1 ! -name keymaps -exec rm -r {} +
  for name in bin sbin lib lib64; do [ -L "$part/tree/$name" ] || die "dom0's /$name is not what it should be"; done
  rm -rf "$part"/tree/usr/share/{doc,man,locale,info,zoneinfo,i18n,lintian,bash-completion} "$part"/tree/usr/lib/systemd \
    "$part"/tree/usr/lib/x86_64-linux-gnu/{gconv,perl*} "$part"/tree/usr/lib/xen-$XEN/{lib,boot} "$part"/tree/usr/bin/qemu-{io,nbd} \
    "$part/archives" "$part/hypervisor" "$part"/*.deb
  echo "$version" >"$part/version"
  mv "$part" "$dir"
}

title "Strongroom on Xen"
say "$($QEMU --version | head -n 1), by emulation, one processor"
begun=$(now)
dom0_packages "$CACHE/xen"
kernel linux-image-cloud-amd64 "$CACHE/cloud"
# The cloud kernel cannot be dom0's (CONFIG_XEN_DOM0 is not set).
kernel linux-image-amd64 "$CACHE/full"

UNDO_SECS=120
house "$WORK/house" $UNDO_SECS
mkdir -p "$WORK/dom0"
cp -a "$CACHE/xen/tree/." "$WORK/dom0/"
mkdir -p "$WORK"/dom0/{proc,sys,dev,run,tmp,root,guests,story,etc/strongroom,usr/local/bin,var/log/xen/console,var/lib/xen}
rm -rf "$WORK/dom0/var/run" "$WORK/dom0/var/lock"
ln -s ../run "$WORK/dom0/var/run"
ln -s ../run/lock "$WORK/dom0/var/lock"

storage_tree "$WORK/storage"
modules "$CACHE/cloud" "$WORK/storage" xen_netfront loop ext4
mv "$WORK"/house/gateway/* "$WORK/storage/etc/strongroom/"
rmdir "$WORK/house/gateway"
rm "$WORK/house/policy.d/editor.toml"
mkdir -p "$WORK/storage/srv/strongroom" "$WORK/data"
users_data "$WORK/data"
mke2fs -q -t ext4 -d "$WORK/data" "$WORK/storage/srv/data.img" 48M >/dev/null 2>&1 || die "no data image can be made"
cpio_of "$WORK/storage" "$WORK/dom0/guests/storage.cpio"
rm -r "$WORK/storage" "$WORK/data"

app_tree "$WORK/mail"
modules "$CACHE/cloud" "$WORK/mail" xen_netfront fuse
# `contract enroll` reads XenStore by this program, which needs its libraries.
cp -L "$WORK/dom0/usr/bin/xenstore-read" "$WORK/mail/usr/bin/"
for library in $(chroot "$WORK/dom0" /lib64/ld-linux-x86-64.so.2 --list /usr/bin/xenstore-read | grep -o '/[^ ]*'); do
  mkdir -p "$WORK/mail$(dirname "$library")"
  cp -L "$WORK/dom0$library" "$WORK/mail$library"
done
disk "$WORK/mail" "$WORK/app.raw" 128
qemu-img convert -q -O qcow2 "$WORK/app.raw" "$WORK/dom0/guests/app-clean.qcow2"
rm "$WORK/app.raw"
chmod 444 "$WORK/dom0/guests/app-clean.qcow2"
first_stage "$CACHE/cloud" "$WORK/first" "$WORK/dom0/guests/mail.cpio" xen_blkfront
cp "$CACHE/cloud/vmlinux" "$WORK/dom0/guests/vmlinux"

cp -a "$WORK/house/." "$WORK/dom0/etc/strongroom/"
cat >"$WORK/dom0/etc/strongroom/base/recovery.toml" <<END
[enrol]
address = "$ENROL_ADDRESS"

[guest.mail-guest]
driver = "xl"
domain = "mail"
config = "/etc/xen/mail.cfg"
base = "/guests/app-clean.qcow2"
overlay = "/guests/mail.qcow2"
timeout = "5m"
END
# guest_config NAME MEMORY VIFS WORDS
guest_config() {
  cat <<END
name = "$1"
type = "pv"
kernel = "/guests/vmlinux"
ramdisk = "/guests/$1.cpio"
memory = $2
vcpus = 1
vif = [ $3 ]
extra = "console=hvc0 quiet loglevel=3 panic=5 mitigations=off sr.name=$1 $4"
on_poweroff = "destroy"
on_crash = "destroy"
END
}
guest_config storage 448 "'mac=00:16:3e:77:00:01,bridge=br-guests,vifname=v-storage', 'mac=00:16:3e:78:00:01,bridge=br-admin,vifname=v-storage-adm'" \
  "rdinit=/sbin/init sr.role=storage sr.net=$STORAGE_NET sr.admin=$STORAGE_ADMIN_NET sr.modules=xen_netfront" >"$WORK/dom0/etc/xen/storage.cfg"
guest_config mail 320 "'mac=00:16:3e:77:00:03,bridge=br-guests,vifname=v-mail'" \
  "sr.role=app sr.net=$MAIL_NET sr.gateway=$GATEWAY_ADDRESS sr.enrol=$ENROL_ADDRESS sr.secret=xenstore:strongroom/enrol sr.modules=xen_netfront" >"$WORK/dom0/etc/xen/mail.cfg"
echo "disk = [ 'format=qcow2, vdev=xvda, access=rw, target=/guests/mail.qcow2' ]" >>"$WORK/dom0/etc/xen/mail.cfg"

for applet in $(busybox --list); do ln -sfn /usr/bin/busybox "$WORK/dom0/usr/local/bin/$applet"; done
# Hotplug scripts set a PATH of their own, and want these (Debian: alternatives, and packages that were left out).
for applet in awk which logger ping poweroff; do [ -e "$WORK/dom0/usr/bin/$applet" ] || ln -s busybox "$WORK/dom0/usr/bin/$applet"; done
ln -sfn bash "$WORK/dom0/usr/bin/sh"
modules "$CACHE/full" "$WORK/dom0" xenfs xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xen-netback bridge
# kmod wants an index that busybox does not write.
chroot "$WORK/dom0" /usr/sbin/depmod "$(cat "$CACHE/full/release")"
install -s -m 755 "$BIN/contract" "$BIN/strongroom-recovery" "$WORK/dom0/usr/local/bin/"
cp "$GUESTS/lib.sh" "$GUESTS/story.sh" "$WORK/dom0/story/"
install -m 755 "$GUESTS/dom0-init" "$WORK/dom0/init"
echo "UNDO_SECS=$UNDO_SECS XEN=$XEN" >"$WORK/dom0/story/settings"
cpio_of "$WORK/dom0" "$WORK/dom0.cpio"
rm -r "$WORK/dom0"
say "Images made in $(since "$begun"): $(($(stat -c %s "$WORK/dom0.cpio") >> 20)) MiB. The machine starts; it needs some minutes."

begun=$(now)
: >"$WORK/console.log"
# The processor's newest features are left out: with `-cpu max` dom0's kernel dies before it has set its traps.
# The machine's clock counts instructions, two nanoseconds for each: a host with other work could let Xen's time limits (that of
# a hotplug script, say) run out otherwise. While its processor waits, it goes on to the next event.
nice -n 10 $QEMU -accel tcg -icount shift=1,sleep=off -machine q35 -cpu qemu64 -m 3072 -smp 1 -nodefaults -no-reboot -display none -monitor none \
  -serial "file:$WORK/console.log" -kernel "$CACHE/xen/xen" \
  -append "com1=115200,8n1 console=com1 dom0=pv dom0_mem=1600M,max:1600M loglvl=warning guest_loglvl=warning noreboot spec-ctrl=no xpti=no" \
  -initrd "$CACHE/full/vmlinux console=hvc0 mitigations=off apparmor=0 quiet loglevel=3 panic=5,$WORK/dom0.cpio" </dev/null &
qemu=$!
# What dom0 tells is marked; Xen may write its own words before the mark.
tail -f -n +1 "$WORK/console.log" --pid=$qemu 2>/dev/null | sed -un 's/\r$//; s/^.*%% \(.*\)$/\1/p; s/^.*%%$//p' &
follower=$!
over() { grep -aqE '%%%done [0-9]+|Panic on CPU|Hardware Dom0 crashed|Kernel panic' "$WORK/console.log" || ! kill -0 $qemu 2>/dev/null; }
wait_until $LIMIT "the story on Xen is over" over
sleep 1
status=$(sed -n 's/.*%%%done \([0-9]*\).*/\1/p' "$WORK/console.log" | head -n 1)
[ "$status" = 0 ] || die "the story on Xen did not come to its end (${status:-no status})"
title "Done in $(since "$begun") from power on: everything was as claimed, and the machine is gone"
