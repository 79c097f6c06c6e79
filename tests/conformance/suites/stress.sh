# stress-ng's file stressors, a second each, with --verify.

# What a FUSE file system cannot have: fiemap and chattr are ioctls that the kernel does not hand on.
stressors="access chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup fallocate fcntl file-ioctl filename flock fpunch
  fsize fstat getdent handle hdd inode-flags inotify io iomix lease link locka lockf lockofd mknod open rename symlink sync-file
  touch utime xattr"

suite_stress() { # DIRECTORY
  local failed=0 stressor count=0
  need stress-ng "install the package stress-ng"
  for stressor in $stressors; do
    # 3: not implemented here; 4: skipped for want of resources.
    local status=0
    timeout 120 stress-ng --$stressor 1 --timeout 1s --verify --temp-path "$1" > "$work/stress.out" 2>&1 || status=$?
    count=$((count + 1))
    if [ $status != 0 ] || grep -q 'skipp' "$work/stress.out"; then
      case $status in
        0) echo "stress-ng: $stressor skipped itself: $(grep -m 1 skipp "$work/stress.out" | sed 's/^stress-ng: [a-z]*: *\[[0-9]*\] *//')";;
        *) echo "stress-ng: $stressor FAILED ($status)"; grep -E 'fail|error' "$work/stress.out" | head -n 5; failed=1;;
      esac
    fi
  done
  echo "stress-ng: $count stressors"
  return $failed
}
