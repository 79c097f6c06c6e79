# SQLite: a writer is killed at random points of its transactions, in both journal modes; every committed one must be there.

suite_sqlite() { # DIRECTORY
  local round mode db=$1/torture.db
  need sqlite3 "install the package sqlite3"
  for mode in delete wal; do
    rm -f "$db"*; : > "$work/sqlite.acknowledged"
    sqlite3 "$db" "pragma journal_mode=$mode; create table t(n integer primary key, filler blob);" > /dev/null
    for round in $(seq "$rounds"); do
      local from
      from=$(sqlite3 "$db" 'select coalesce(max(n), 0) from t')
      # The shell prints a number once its transaction is committed.
      awk -v from="$from" 'BEGIN { print ".bail on\npragma synchronous=full;"
        for (n = from + 1; n < from + 100000; n++) print "begin; insert into t values(" n ", randomblob(" 100 + n * 7919 % 9000 ")); commit; select " n ";" }' |
        sqlite3 "$db" > "$work/sqlite.out" 2>/dev/null &
      local writer=$!
      # At a random count of commits, in the middle of whatever comes next.
      local target=$((RANDOM % 12 + 1))
      while kill -0 $writer 2>/dev/null && [ "$(wc -l < "$work/sqlite.out")" -lt $target ]; do :; done
      pkill -9 -P $writer 2>/dev/null || true; kill -9 $writer 2>/dev/null || true
      wait $writer 2>/dev/null || true
      local acknowledged last
      acknowledged=$(grep -E '^[0-9]+$' "$work/sqlite.out" | tail -n 1)
      last=$(sqlite3 "$db" 'select coalesce(max(n), 0) from t') || { echo "sqlite: $mode: round $round: cannot read the database"; return 1; }
      if [ "${acknowledged:-0}" -gt "$last" ]; then
        echo "sqlite: $mode: round $round: transaction $acknowledged was committed and is gone ($last is the last)"; return 1
      fi
      if [ "$(sqlite3 "$db" 'pragma integrity_check')" != ok ] || [ "$(sqlite3 "$db" 'select count(*) = max(n) from t')" != 1 ]; then
        echo "sqlite: $mode: round $round: the database is damaged: $(sqlite3 "$db" 'pragma integrity_check' | head -n 3)"; return 1
      fi
    done
    echo "sqlite: $mode: $rounds writers killed, every committed transaction is there"
  done
}
