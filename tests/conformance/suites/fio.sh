# fio: what was written is read back and compared, by several ways of doing I/O, O_DIRECT among them.
# Blocks differ in length and may overlap; what overlaps is not under way at the same time, for then nothing is promised about the order.

suite_fio() { # DIRECTORY
  local failed=0 way
  need fio "install the package fio"
  for way in "psync 0" "psync 1" "mmap 0" "libaio 0" "libaio 1" "io_uring 0"; do
    local engine=${way% *} direct=${way#* }
    # It writes the state of its checks to where it is run.
    if (cd "$work" && timeout 300 fio --name="$engine$direct" --directory="$1" --size=16m --rw=randwrite --bs=4k-64k --blockalign=4k --ioengine="$engine" \
        --direct="$direct" --iodepth=8 --serialize_overlap=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1) > "$work/fio.out" 2>&1; then
      echo "fio: $engine, direct=$direct passed"
    elif grep -qi 'engine.*not loadable\|Function not implemented' "$work/fio.out"; then
      echo "fio: $engine is not to be had here"
    else
      echo "fio: $engine, direct=$direct FAILED"; tail -n 10 "$work/fio.out"; failed=1
    fi
    rm -f "$1/$engine$direct".*
  done
  return $failed
}
