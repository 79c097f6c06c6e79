# The tests of pjdfstest that make the file system read-only. They want the mount itself, and `mount -o remount` would call
# mount.strongroom, which has nothing to remount: `-i` goes to the kernel at once.

suite_erofs() { # DIRECTORY
  local failed=0
  need pjdfstest "run \`make test\`, which builds it"
  mkdir -p "$work/erofs/bin" "$work/erofs/mnt"
  printf '#!/bin/sh\nexec %s -i "$@"\n' "$(command -v mount)" > "$work/erofs/bin/mount"
  chmod 755 "$work/erofs" "$work/erofs/bin" "$work/erofs/bin/mount"
  mount --bind "$1" "$work/erofs/mnt"
  pjdfstest_config true > "$work/erofs.toml"
  PATH="$work/erofs/bin:$PATH" pjdfstest -c "$work/erofs.toml" -p "$work/erofs/mnt" -s "$work/elsewhere" erofs > "$work/erofs.out" 2>&1 || failed=1
  sed -i 's/\x1b\[[0-9;]*m//g' "$work/erofs.out"
  umount "$work/erofs/mnt"
  grep '^Summary: ' "$work/erofs.out" | sed 's/^/erofs: /' || failed=1
  [ $failed = 0 ] || { echo "erofs: FAILED"; grep -B 1 -A 2 FAILED "$work/erofs.out" | head -n 40; }
  return $failed
}
