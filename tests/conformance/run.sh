#!/usr/bin/env bash
# Conformance: public suites and real programs on a real mount of a grant with `preserve` ownership, through a real gateway on the loopback
# interface.
#
#   tests/conformance/run.sh [--suites "pjdfstest fsx …"] [--ops N] [--seeds "1 2 3"] [--seconds N] [--rounds N] [--files N] [--fsx "buffered …"] [--keep]
#
# Suites (one file each in tests/conformance/suites): pjdfstest erofs fsx stress dbench fio postgres git sqlite. Default: all.
#   --ops      operations of fsx, with each of the seeds
#   --fsx      ways of fsx: buffered mapped direct two-guest. Default: all
#   --seconds  how long pgbench runs; stress-ng and dbench take a fixed short time
#   --rounds   how often SQLite's writer is killed
#   --files    files in git's history
#
# Runs as root, in a mount namespace of its own: it leaves no mount, no user and no file behind. Binaries come from
# $STRONGROOM_BIN (default target/release), the suites from target/tools/bin or PATH. Fails if a test outside
# tests/conformance/expected.txt fails, or one inside it passes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
all="pjdfstest erofs fsx stress dbench fio postgres git sqlite"
ops=100000 seeds="1" suites=$all seconds=5 rounds=10 files=2000 keep=""
all_fsx_ways="buffered mapped direct two-guest"
fsx_ways=$all_fsx_ways
while [ $# -gt 0 ]; do
  case $1 in
    --ops) ops=$2; shift 2;;
    --seeds) seeds=$2; shift 2;;
    --suites) suites=$2; shift 2;;
    --seconds) seconds=$2; shift 2;;
    --rounds) rounds=$2; shift 2;;
    --files) files=$2; shift 2;;
    --fsx) fsx_ways=$2; shift 2;;
    --keep) keep=1; shift;;
    *) echo "usage: $0 [--suites \"$all\"] [--ops N] [--seeds \"1 2\"] [--seconds N] [--rounds N] [--files N] [--fsx \"$all_fsx_ways\"] [--keep]" >&2; exit 2;;
  esac
done
[ "$(id -u)" = 0 ] || { echo "conformance: pjdfstest changes users; run it as root (sudo make conformance)" >&2; exit 1; }
if [ -z "${STRONGROOM_CONFORMANCE_INSIDE:-}" ]; then
  args=(--suites "$suites" --ops "$ops" --seeds "$seeds" --seconds "$seconds" --rounds "$rounds" --files "$files" --fsx "$fsx_ways")
  [ -z "$keep" ] || args+=(--keep)
  STRONGROOM_CONFORMANCE_INSIDE=1 exec unshare --mount --propagation private -- "$0" "${args[@]}"
fi

bin=${STRONGROOM_BIN:-$top/target/release}
export PATH="$bin:$top/target/tools/bin:$PATH"
# need COMMAND PACKAGE-OR-HOW
need() { command -v "$1" >/dev/null || { echo "conformance: \`$1\` is missing: $2" >&2; exit 1; }; }
for tool in contract strongroom-gateway mount.strongroom; do need $tool "run \`make build\`"; done
# The settings of pjdfstest, for the suites that run it: pjdfstest_config MAY-BE-REMOUNTED
pjdfstest_config() {
  cat <<CONFIG
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = $1
CONFIG
}
for suite in $suites; do
  case " $all " in *" $suite "*) . "$here/suites/$suite.sh";; *) echo "conformance: there is no suite \`$suite\`: $all" >&2; exit 2;; esac
done

# A short name: the suite binds sockets below it, whose paths may have 107 bytes (unix(7)).
work=$(mktemp -d /tmp/sr.XXXXXX)
chmod 755 "$work"
gateway_pid=""
finish() {
  status=$?
  for mounted in "$work"/mnt*; do umount "$mounted" 2>/dev/null || umount -l "$mounted" 2>/dev/null || true; done
  if [ -n "$gateway_pid" ]; then kill "$gateway_pid" 2>/dev/null || true; wait "$gateway_pid" 2>/dev/null || true; fi
  if [ -n "$keep" ]; then echo "kept: $work"; else rm -rf "$work"; fi
  exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

# The suite looks its users up by name; they exist in this namespace only.
cp /etc/passwd "$work/passwd"; cp /etc/group "$work/group"
grep -q '^tests:' "$work/passwd" || echo 'tests:x:64999:64999::/:/usr/sbin/nologin' >> "$work/passwd"
grep -q '^tests:' "$work/group" || echo 'tests:x:64999:' >> "$work/group"
mount --bind "$work/passwd" /etc/passwd; mount --bind "$work/group" /etc/group

mkdir -p "$work/data/suite" "$work/mnt" "$work/elsewhere" "$work/state"
chmod 755 "$work/data" "$work/data/suite" "$work/elsewhere"
port=$(( 20000 + RANDOM % 20000 ))
export STRONGROOM_DIR="$work/admin"
contract init "$work/admin" --interface lo --network 127.0.0.0/8 --address 127.0.0.1:$port \
  --admin-interface lo --admin-network 127.0.0.0/8 --admin 127.0.0.1:$((port + 1)) \
  --data "$work/data" --state "$work/state" --no-sample-policy >"$work/log" 2>&1
# Keep setuid bits and device nodes as metadata: the suite tests them (docs/adr/0005).
printf '\n[store]\nspecial-files = "store"\n' >> "$work/admin/gateway/gateway.toml"
mkdir -p "$work/admin/policy.d"
# Two guests with the same grant: the suites run in one, the other is for suites that need both.
for app in suite other; do
  cat > "$work/admin/policy.d/$app.toml" <<POLICY
application = "$app"
lifetime = "8h"

[[grant]]
path = "suite"
mount = "/suite"
rights = "read-write"
ownership = "preserve"
POLICY
done
strongroom-gateway --config "$work/admin/gateway/gateway.toml" >"$work/gateway.log" 2>&1 &
gateway_pid=$!
until grep -q "administrators at" "$work/gateway.log"; do
  kill -0 $gateway_pid 2>/dev/null || { cat "$work/gateway.log" >&2; exit 1; }
  sleep 0.05
done
# mount_guest APPLICATION DIRECTORY: a client with a key and a contract of its own
mount_guest() {
  mkdir -p "$2"
  contract keygen --out "$work/$1.key" >>"$work/log" 2>&1
  contract grant "$1" --holder "$(cat "$work/$1.pub")" --out "$work/$1.contract" >>"$work/log"
  mount.strongroom "$work/$1.contract" "$2" -o key="$work/$1.key",gateway=127.0.0.1:$port,allow_other,dev,suid,exec,log="$work/$1.log"
}
mount_guest suite "$work/mnt"

failed=0
for suite in $suites; do
  mkdir -m 755 "$work/mnt/suite/$suite"
  began=$SECONDS
  if ! "suite_$suite" "$work/mnt/suite/$suite"; then failed=1; fi
  rm -rf "$work/mnt/suite/$suite"
  echo "$suite: took $((SECONDS - began)) s"
done
umount "$work/mnt"
exit $failed
