# The crate fsx: random operations on one file, each compared with a copy in memory. Two ways: through mappings too, and
# buffered only.

fsx_config() { # MAPPED MAXIMUM
  cat <<CONFIG
flen = 1048576
[opsize]
max = 131072
[weights]
close_open = 1
read = 10
write = 10
mapread = $1
mapwrite = $1
invalidate = $2
truncate = 2
fsync = 0.2
fdatasync = 0.2
sendfile = 1
posix_fadvise = 1
posix_fallocate = 1
copy_file_range = 1
punch_hole = 1
CONFIG
}

suite_fsx() { # DIRECTORY
  local failed=0 way seed
  need fsx "run \`make test\`, which builds it"
  fsx_config 5 1 > "$work/fsx.mapped.toml"
  fsx_config 0 0 > "$work/fsx.buffered.toml"
  mkdir -p "$work/fsx"
  for way in mapped buffered; do
    for seed in $seeds; do
      if fsx -f "$work/fsx.$way.toml" -N "$ops" -S "$seed" -P "$work/fsx" "$1/$way.$seed" > "$work/fsx.out" 2>&1; then
        echo "fsx: $ops operations, $way, with seed $seed passed"
      else
        echo "fsx: $way, seed $seed FAILED"; tail -n 30 "$work/fsx.out"; failed=1
      fi
    done
  done
  return $failed
}
