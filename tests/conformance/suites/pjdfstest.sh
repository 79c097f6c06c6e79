# The crate pjdfstest: 398 tests of POSIX semantics, as root and as other users.

suite_pjdfstest() { # DIRECTORY
  local failed=0
  need pjdfstest "run \`make test\`, which builds it"
  pjdfstest_config false > "$work/pjdfstest.toml"
  # A short name: see the note on the length of paths in docs/conformance.md.
  mkdir -m 755 "$work/mnt/suite/pjd"
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
  rm -rf "$work/mnt/suite/pjd"
  return $failed
}
