# PostgreSQL with its data on the mount: pgbench, kill -9 of all its processes, recovery, checks of every page and index.

suite_postgres() { # DIRECTORY
  local failed=0 pg data=$1/data sockets=$work/pg
  pg=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
  [ -n "$pg" ] || { echo "conformance: PostgreSQL is missing: install the package postgresql" >&2; return 1; }
  mkdir -m 700 "$sockets" "$data"; chown postgres "$sockets" "$data"; chmod 755 "$work"
  as() { setpriv --reuid postgres --regid postgres --init-groups env -i PATH="$pg:$PATH" PGHOST="$sockets" LC_ALL=C "$@"; }
  start() { as pg_ctl -D "$data" -l "$sockets/log" -w -t 120 -o "-c listen_addresses= -c unix_socket_directories=$sockets" start > "$work/pg.out" 2>&1; }
  step() { echo "postgres: $1 FAILED"; tail -n 10 "$work/pg.out" "$sockets/log" 2>/dev/null; failed=1; }
  if ! as initdb -D "$data" --data-checksums -A trust > "$work/pg.out" 2>&1; then step initdb
  elif ! start; then step start
  elif ! { as createdb bench && as pgbench -i -s 2 bench; } > "$work/pg.out" 2>&1; then step "filling the tables"
  elif ! as pgbench -n -c 4 -j 2 -T "$seconds" bench > "$work/pg.bench" 2>&1; then cp "$work/pg.bench" "$work/pg.out"; step pgbench
  else
    sed -n 's/^tps = \([0-9.]*\).*/postgres: \1 transactions a second/p' "$work/pg.bench"
    # In the middle of more of the same (-n: without emptying the history, which the sums are made of).
    as pgbench -n -c 4 -j 2 -T 600 bench > /dev/null 2>&1 &
    local load=$!
    local before after
    before=$(as psql -At -c 'select count(*) from pgbench_history' bench)
    after=$before
    while [ "$after" -lt $((before + 100)) ]; do after=$(as psql -At -c 'select count(*) from pgbench_history' bench) || break; done
    # The postmaster's children go when it does not answer for them any more; all at once is the harder case.
    pkill -9 -u postgres -f "$data|^postgres: " || true
    wait $load 2>/dev/null || true
    while pgrep -u postgres -f "^postgres: |$data" > /dev/null; do sleep 0.1; done
    rm -f "$data/postmaster.pid" "$sockets"/.s.PGSQL.*
    if ! start; then step recovery
    elif ! as psql -At -c 'create extension if not exists amcheck' bench > "$work/pg.out" 2>&1; then step amcheck
    elif ! as pg_amcheck --heapallindexed -d bench > "$work/pg.out" 2>&1; then step pg_amcheck
    elif [ "$(as psql -At -c 'select (select sum(delta) from pgbench_history) = (select sum(abalance) from pgbench_accounts) and (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches)' bench 2>"$work/pg.out")" != t ]; then step "the sums of the books"
    elif [ "$(as psql -At -c 'select count(*) from pgbench_history' bench)" -lt "$after" ]; then step "committed transactions"
    elif ! as pg_ctl -D "$data" -w -m fast stop > "$work/pg.out" 2>&1; then step stop
    elif ! as pg_checksums -D "$data" --check > "$work/pg.out" 2>&1; then step pg_checksums
    else echo "postgres: recovered after kill -9; amcheck, sums and checksums are right"
    fi
  fi
  as pg_ctl -D "$data" -w -m immediate stop > /dev/null 2>&1 || true
  return $failed
}
