#!/bin/bash
# `make vm`: the whole recovery with real guests. QEMU runs a storage guest, the guest that is attacked, and one that must
# not notice, on two bridges in a network namespace, which is the base domain: `contract` and `strongroom-recovery` run there,
# and restart the guest by the driver `qemu`, from a new overlay on the clean image. With the driver `libvirt` a libvirtd of
# its own has the app guests (libvirt.sh).
#
#   tests/guests/vm.sh [--can]      --can: only tell (by the exit status) whether guests can run here
#
# STRONGROOM_VM_DRIVER   by what guests are restarted: qemu (default) or libvirt
# STRONGROOM_GUEST_BIN   where the programs are; libraries that they want are copied with them
# STRONGROOM_VM_ACCEL    kvm or tcg; otherwise kvm where it works
# STRONGROOM_VM_KEEP     a directory for the logs of guests and daemons, which otherwise go with the rest
# STRONGROOM_GUEST_CACHE where the kernel is kept between runs
#
# Needs root, for the namespace and its interfaces. All that it makes is in one new directory and one new namespace, both
# gone at the end, however it ends.
set -euo pipefail
GUESTS=$(cd "$(dirname "$0")" && pwd)
STORY=vm
. "$GUESTS/lib.sh"
BIN=${STRONGROOM_GUEST_BIN:-$GUESTS/../../target/x86_64-unknown-linux-gnu/release}
CACHE=${STRONGROOM_GUEST_CACHE:-$GUESTS/../../target/guests}
QEMU=qemu-system-x86_64
NEEDED="$QEMU qemu-img busybox cpio mke2fs e2fsck debugfs ip xz lz4 apt-get dpkg setsid"
DRIVER=${STRONGROOM_VM_DRIVER:-qemu}
case $DRIVER in
  qemu) ;;
  libvirt) . "$GUESTS/libvirt.sh" && NEEDED="$NEEDED $LIBVIRT_NEEDED" ;;
  *) die "STRONGROOM_VM_DRIVER: qemu or libvirt, not $DRIVER" ;;
esac
# Seconds. Only a guard against hanging for ever.
LIMIT=900
RELEASE_OF=linux-image-cloud-amd64

why_not() {
  [ "$(id -u)" = 0 ] || { echo "it needs root"; return; }
  [ -c /dev/net/tun ] || { echo "there is no /dev/net/tun"; return; }
  local program probe="strongroom-probe-$$"
  for program in $NEEDED; do
    command -v "$program" >/dev/null || { echo "$program is missing (tools/setup.sh vm$([ $DRIVER = qemu ] || echo " $DRIVER"))"; return; }
  done
  if ip netns add $probe 2>/dev/null; then ip netns del $probe; else echo "no network namespace can be made"; return; fi
  [ -e "$CACHE/cloud/package" ] || [ -n "$(package_of $RELEASE_OF)" ] || { apt-get update -q && [ -n "$(package_of $RELEASE_OF)" ]; } >/dev/null 2>&1 ||
    echo "apt knows no package $RELEASE_OF, which has the guests' kernel"
}
if [ "${1:-}" = --can ]; then
  reason=$(why_not)
  [ -z "$reason" ] || { echo "real guests cannot run here: $reason"; exit 1; }
  exit 0
fi
[ $# = 0 ] || { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit 2; }
reason=$(why_not)
[ -z "$reason" ] || die "real guests cannot run here: $reason"
for program in contract strongroom-gateway strongroom-recovery mount-strongroom; do
  [ -x "$BIN/$program" ] || die "$BIN/$program is missing: run it as make vm"
done
BIN=$(cd "$BIN" && pwd)

WORK=$(mktemp -d "${TMPDIR:-/tmp}/strongroom-vm.XXXXXX")
NS=${WORK##*/}
export TMPDIR=$WORK
finish() {
  local status=$? pid tries
  trap '' INT TERM
  trap - EXIT
  kill $guard 2>/dev/null || true
  # They write to the directory, and end by themselves within seconds.
  [ -z "$first_stage" ] || wait $probe $first_stage 2>/dev/null || true
  if [ $status != 0 ] && [ $status != 130 ]; then
    for log in "$WORK"/logs/*.log; do
      [ ! -s "$log" ] || { echo "--- the end of ${log##*/}"; tail -n 15 "$log"; } >&2
    done
  fi
  if [ -n "${STRONGROOM_VM_KEEP:-}" ]; then mkdir -p "$STRONGROOM_VM_KEEP" && cp -rL "$WORK"/logs/. "$STRONGROOM_VM_KEEP/" || true; fi
  # Whatever runs in the namespace is ours: QEMU, the daemon, a command that was under way.
  for tries in 1 2 3 4 5 6 7 8 9 10; do
    pid=$(ip netns pids "$NS" 2>/dev/null) || break
    [ -n "$pid" ] || break
    # shellcheck disable=SC2086  # a list of numbers
    kill -KILL $pid 2>/dev/null || true
    sleep 0.1
  done
  ip netns del "$NS" 2>/dev/null || true
  rm -rf "$WORK"
  exit $status
}
# hang_guard PID: ends what runs in the namespace, and with it whatever this script waits for, and then the script.
hang_guard() {
  trap 'kill $! 2>/dev/null; exit' TERM
  trap - EXIT INT
  sleep $LIMIT &
  wait $!
  echo "vm: not over after $LIMIT s" >&2
  # shellcheck disable=SC2046  # a list of numbers
  kill -KILL $(ip netns pids "$NS") 2>/dev/null
  kill -TERM "$1"
}
hang_guard $$ >/dev/null &
guard=$! probe='' first_stage=''
trap finish EXIT
trap 'exit 130' INT TERM

IN_BASE=(ip netns exec "$NS") HOUSE=$WORK/house APPS="mail editor" SECRET_PLACE=fw_cfg:opt/strongroom/enrol
IMAGES=$WORK/images IMPLANT="implant-$RANDOM$RANDOM" UNDO_SECS=20 LOOK_EVERY=0.2
. "$GUESTS/story.sh"
mkdir -p "$WORK"/{logs,run,images,notes}

title "Strongroom with real guests"
begun=$(now)
mkdir -p "$CACHE"
KERNEL=$(cd "$CACHE" && pwd)/cloud
kernel $RELEASE_OF "$KERNEL"
release=$(cat "$KERNEL/release")

accel=${STRONGROOM_VM_ACCEL:-}
[ $DRIVER = qemu ] || accel=tcg
# Within another virtual machine the processor may claim a register (IA32_ARCH_CAPABILITIES) that cannot be set.
with_kvm=(-accel kvm -cpu host,-arch-capabilities)
# kvm_works: whether a kernel says its first words. Some machines offer /dev/kvm, and guests then stand still.
kvm_works() {
  [ -w /dev/kvm ] || return 1
  timeout 4 $QEMU "${with_kvm[@]}" -machine q35 -m 256 -nodefaults -no-reboot -display none -monitor none -serial stdio \
    -kernel "$KERNEL/vmlinux" -append "console=ttyS0 earlyprintk=ttyS0 panic=-1" </dev/null 2>/dev/null | grep -am 1 -q 'Linux version'
}
# Both take seconds, and are done while the first disk is made.
[ -n "$accel" ] || { if kvm_works; then echo kvm; else echo tcg; fi >"$WORK/notes/accel"; } &
probe=$!
# The first stage is the same for all guests; each has its own disk.
first_stage "$KERNEL" "$WORK/first" "$WORK/images/first.cpio" virtio_pci virtio_blk &
first_stage=$!

house "$HOUSE" $UNDO_SECS
storage_tree "$WORK/storage"
modules "$KERNEL" "$WORK/storage" virtio_net
mv "$HOUSE"/gateway/* "$WORK/storage/etc/strongroom/"
rmdir "$HOUSE/gateway"
mkdir -p "$WORK/storage/srv/strongroom"
users_data "$WORK/storage/srv/strongroom"
disk "$WORK/storage" "$WORK/images/storage.raw" 512
ip netns add "$NS"
in_ns() { ip -n "$NS" "$@"; }
in_ns link set lo up
# No uplink on either bridge.
in_ns link add br-guests type bridge stp_state 0 forward_delay 0
in_ns link add br-admin type bridge stp_state 0 forward_delay 0
in_ns address add $BASE_NET dev br-guests
in_ns address add $BASE_ADMIN_NET dev br-admin
in_ns link set br-guests up
in_ns link set br-admin up
taps="guests:t-storage admin:t-storage-adm"
# libvirt makes those of its domains itself.
[ $DRIVER = libvirt ] || taps="$taps guests:t-mail guests:t-editor"
for tap in $taps; do
  in_ns tuntap add "${tap#*:}" mode tap
  in_ns link set "${tap#*:}" master "br-${tap%%:*}" up
done

# line_of NAME WORDS: its kernel's command line.
line_of() {
  printf '%s' "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off sr.name=$1 $2"
  [ $accel = kvm ] || printf ' tsc=reliable no_timer_check'
}
# command_of NAME MEMORY DISK FORMAT WORDS: the words by which a guest is started, one a line.
command_of() {
  local name=$1 memory=$2 disk=$3 format=$4
  printf '%s\n' nice -n 10 $QEMU -name "$name" -machine q35 "${machine[@]}" -m "$memory" -nodefaults -no-user-config -no-reboot \
    -display none -monitor none -serial "file:$WORK/logs/$name.log" -kernel "$KERNEL/vmlinux" -initrd "$WORK/images/first.cpio" \
    -append "$(line_of "$name" "$5")" -drive "file=$disk,format=$format,if=virtio" -device virtio-rng-pci
}
net_of() { printf '%s\n' -netdev "tap,id=$1,ifname=$1,script=no,downscript=no" -device "virtio-net-pci,netdev=$1,mac=$2,romfile="; }
toml_words() { sed 's/\\/\\\\/g; s/"/\\"/g; s/.*/"&"/' | paste -sd,; }

wait $first_stage || die "the guests' first stage cannot be made"
wait $probe
accel=${accel:-$(cat "$WORK/notes/accel")}
case $accel in
  kvm) machine=("${with_kvm[@]}") ;;
  tcg) machine=(-accel tcg,thread=multi -cpu max) ;;
  *) die "STRONGROOM_VM_ACCEL: kvm or tcg, not $accel" ;;
esac
say "$($QEMU --version | head -n 1), $([ $accel = kvm ] && echo 'with hardware virtualisation (KVM)' || echo 'by emulation (TCG)'), $(nproc) processors"
say "The storage guest's image is made and the networks are laid, in $(since "$begun"); guest kernel $release."

begun=$(now)
mapfile -t words < <(
  command_of storage 384 "$WORK/images/storage.raw" raw "sr.role=storage sr.net=$STORAGE_NET sr.admin=$STORAGE_ADMIN_NET sr.modules=virtio_net"
  net_of t-storage 52:54:00:77:00:01
  net_of t-storage-adm 52:54:00:78:00:01
)
"${IN_BASE[@]}" "${words[@]}" -daemonize -pidfile "$WORK/run/storage.pid" || die "QEMU does not start"

# While that guest boots:
[ $DRIVER = qemu ] || "${DRIVER}_up"
app_tree "$WORK/app"
modules "$KERNEL" "$WORK/app" virtio_net qemu_fw_cfg fuse
disk "$WORK/app" "$WORK/images/app.raw" 128
qemu-img convert -q -O qcow2 "$WORK/images/app.raw" "$WORK/images/app-clean.qcow2"
rm "$WORK/images/app.raw"
chmod 444 "$WORK/images/app-clean.qcow2"
CLEAN_SUM=$(sha256sum <"$WORK/images/app-clean.qcow2")
{
  echo "secrets = \"$WORK/run\""
  printf '[enrol]\naddress = "%s"\n' $ENROL_ADDRESS
  n=2
  for app in $APPS; do
    n=$((n + 1))
    net=${app^^}_NET
    line="sr.role=app sr.net=${!net} sr.gateway=$GATEWAY_ADDRESS sr.enrol=$ENROL_ADDRESS sr.secret=$SECRET_PLACE sr.modules=virtio_net,qemu_fw_cfg"
    printf '\n[guest.%s-guest]\ndriver = "%s"\nbase = "%s"\noverlay = "%s"\n' \
      "$app" $DRIVER "$WORK/images/app-clean.qcow2" "$WORK/images/$app.qcow2"
    case $DRIVER in
      qemu)
        printf 'pidfile = "%s"\n' "$WORK/run/$app.pid"
        printf 'command = [%s]\n' "$({
          command_of "$app" 256 '{overlay}' qcow2 "$line"
          net_of "t-$app" "52:54:00:77:00:0$n"
        } | toml_words)"
        ;;
      libvirt)
        libvirt_guest "$app"
        libvirt_domain "$app" 256 "52:54:00:77:00:0$n" "$(line_of "$app" "$line")" >&2
        ;;
    esac
  done
} >"$HOUSE/base/recovery.toml"
"${IN_BASE[@]}" "$BIN/strongroom-recovery" --dir "$HOUSE" --check || die "the configuration is refused"

how_started() { sed -n 's/\r$//; s/^strongroom-guest '"$1"' //p' "$WORK/logs/$1.log" | grep -E '^(userspace|enrolled|mounted)' | sed "s/^/   $1: /"; }
mkdir -p "$WORK/notes"
ln -s ../notes/recovery.log "$WORK/logs/recovery.log"
story "$WORK/notes"
how_started mail
[ $DRIVER = qemu ] || "${DRIVER}_more"
title "Done in $(since "$begun") from the first boot, $SECONDS s in all: everything was as claimed, and the guests are gone"
