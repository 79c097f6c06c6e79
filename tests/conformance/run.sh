#!/usr/bin/env bash
# Conformance: pjdfstest and fsx on a real mount of a grant with `preserve` ownership, through a real gateway on the loopback interface.
#
#   tests/conformance/run.sh [--ops N] [--seeds "1 2 3"] [--only pjdfstest|fsx] [--keep]
#
# Runs as root, in a mount namespace of its own: it leaves no mount, no user and no file behind. Binaries come from
# $STRONGROOM_BIN (default target/release), the suites from target/tools/bin or PATH. Fails if a test outside
# tests/conformance/expected.txt fails, or one inside it passes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
ops=100000 seeds="1" only="" keep=""
while [ $# -gt 0 ]; do
  case $1 in
    --ops) ops=$2; shift 2;;
    --seeds) seeds=$2; shift 2;;
    --only) only=$2; shift 2;;
    --keep) keep=1; shift;;
    *) echo "usage: $0 [--ops N] [--seeds \"1 2\"] [--only pjdfstest|fsx] [--keep]" >&2; exit 2;;
  esac
done
[ "$(id -u)" = 0 ] || { echo "conformance: pjdfstest changes users; run it as root (sudo make conformance)" >&2; exit 1; }
if [ -z "${STRONGROOM_CONFORMANCE_INSIDE:-}" ]; then
  args=(--ops "$ops" --seeds "$seeds")
  [ -z "$only" ] || args+=(--only "$only")
  [ -z "$keep" ] || args+=(--keep)
  STRONGROOM_CONFORMANCE_INSIDE=1 exec unshare --mount --propagation private -- "$0" "${args[@]}"
fi

bin=${STRONGROOM_BIN:-$top/target/release}
export PATH="$bin:$top/target/tools/bin:$PATH"
for tool in contract strongroom-gateway mount.strongroom pjdfstest fsx; do
  command -v $tool >/dev/null || { echo "conformance: $tool is missing; run: make build tools" >&2; exit 1; }
done

# A short name: the suite binds sockets below it, whose paths may have 107 bytes (unix(7)).
work=$(mktemp -d /tmp/sr.XXXXXX)
chmod 755 "$work"
gateway_pid=""
finish() {
  status=$?
  umount "$work/mnt" 2>/dev/null || umount -l "$work/mnt" 2>/dev/null || true
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
cat > "$work/admin/policy.d/suite.toml" <<'POLICY'
application = "suite"
lifetime = "8h"

[[grant]]
path = "suite"
mount = "/suite"
rights = "read-write"
ownership = "preserve"
POLICY
strongroom-gateway --config "$work/admin/gateway/gateway.toml" >"$work/gateway.log" 2>&1 &
gateway_pid=$!
until grep -q "administrators at" "$work/gateway.log"; do
  kill -0 $gateway_pid 2>/dev/null || { cat "$work/gateway.log" >&2; exit 1; }
  sleep 0.05
done
contract keygen --out "$work/holder.key" >>"$work/log" 2>&1
contract grant suite --holder "$(cat "$work/holder.pub")" --out "$work/suite.contract" >>"$work/log"
mount.strongroom "$work/suite.contract" "$work/mnt" \
  -o key="$work/holder.key",gateway=127.0.0.1:$port,allow_other,dev,suid,exec,log="$work/mount.log"

failed=0
if [ -z "$only" ] || [ "$only" = pjdfstest ]; then
  cat > "$work/pjdfstest.toml" <<'CONFIG'
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = false
CONFIG
  mkdir "$work/mnt/suite/pjd"; chmod 755 "$work/mnt/suite/pjd"
  pjdfstest -c "$work/pjdfstest.toml" -p "$work/mnt/suite/pjd" -s "$work/elsewhere" > "$work/pjdfstest.out" 2>&1 || true
  sed 's/\x1b\[[0-9;]*m//g' "$work/pjdfstest.out" > "$work/pjdfstest.txt"
  sed -nE 's/^([a-z0-9_:]+) +FAILED$/\1/p' "$work/pjdfstest.txt" | sort -u > "$work/failed.txt"
  sed -E 's/#.*//; s/[[:space:]]+$//; /^$/d' "$here/expected.txt" | sort -u > "$work/expected.txt"
  grep '^Summary: ' "$work/pjdfstest.txt" || { echo "pjdfstest did not finish: $work/pjdfstest.txt" >&2; tail -n 20 "$work/pjdfstest.txt" >&2; failed=1; }
  if ! diff -u "$work/expected.txt" "$work/failed.txt" > "$work/difference"; then
    echo "pjdfstest: not as tests/conformance/expected.txt says (+ fails unexpectedly, - passes unexpectedly):"
    grep -E '^[+-][a-z]' "$work/difference" || true
    while read -r name; do
      grep -A 2 "^$name .*FAILED" "$work/pjdfstest.txt" || true
    done < <(sed -nE 's/^\+([a-z].*)/\1/p' "$work/difference" | head -n 20)
    failed=1
  fi
fi
if [ -z "$only" ] || [ "$only" = fsx ]; then
  cat > "$work/fsx.toml" <<'CONFIG'
flen = 1048576
[opsize]
max = 131072
[weights]
close_open = 1
read = 10
write = 10
mapread = 5
mapwrite = 5
invalidate = 1
truncate = 2
fsync = 0.2
fdatasync = 0.2
sendfile = 1
posix_fadvise = 1
posix_fallocate = 1
copy_file_range = 1
punch_hole = 1
CONFIG
  mkdir -p "$work/fsx"
  for seed in $seeds; do
    if fsx -f "$work/fsx.toml" -N "$ops" -S "$seed" -P "$work/fsx" "$work/mnt/suite/fsx.$seed" > "$work/fsx.$seed.out" 2>&1; then
      echo "fsx: $ops operations with seed $seed passed"
    else
      echo "fsx: seed $seed FAILED"; tail -n 30 "$work/fsx.$seed.out"; failed=1
    fi
  done
fi
umount "$work/mnt"
exit $failed
