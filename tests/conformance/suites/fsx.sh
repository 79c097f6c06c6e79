# The crate fsx: random operations on one file, each compared with a copy in memory. Four ways: buffered, through mappings too,
# with O_DIRECT, and on two mounts of the same grant, call by call at random (tests/conformance/fsx-ways.c does the last two).

# From one byte on: posix_fallocate of none is an error anywhere, and fsx comes to it in every hundred thousandth operation.
fsx_config() { # MAPPED INVALIDATE
  cat <<CONFIG
flen = 1048576
[opsize]
min = 1
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
  need cc "install the package gcc"
  fsx_config 5 1 > "$work/fsx.mapped.toml"
  fsx_config 0 0 > "$work/fsx.unmapped.toml"
  mkdir -p "$work/fsx"
  cc -shared -fPIC -O2 -o "$work/fsx-ways.so" "$here/fsx-ways.c" -ldl || return 1
  case " $fsx_ways " in *" two-guest "*) mount_guest other "$work/mnt.other" || return 1;; esac
  for way in $fsx_ways; do
    for seed in $seeds; do
      local file=$1/$way.$seed began=$SECONDS config=unmapped settings=()
      case $way in
        buffered) ;;
        mapped) config=mapped;;
        direct) settings=(FSX_DIRECT=1);;
        two-guest) config=mapped settings=(FSX_OTHER="$work/mnt.other/suite/fsx/$way.$seed");;
        *) echo "fsx: there is no way \`$way\`: $all_fsx_ways" >&2; return 1;;
      esac
      if env LD_PRELOAD="$work/fsx-ways.so" FSX_FILE="$file" FSX_SEED="$seed" "${settings[@]}" \
          fsx -f "$work/fsx.$config.toml" -N "$ops" -S "$seed" -P "$work/fsx" "$file" > "$work/fsx.out" 2>&1; then
        echo "fsx: $ops operations, $way, with seed $seed passed in $((SECONDS - began)) s"
      else
        echo "fsx: $way, seed $seed FAILED"; head -n 5 "$work/fsx.out"; tail -n 20 "$work/fsx.out"; failed=1
      fi
    done
  done
  return $failed
}
