# dbench: the load of a file server with two clients.

suite_dbench() { # DIRECTORY
  need dbench "install the package dbench"
  if timeout 120 dbench -D "$1" -c /usr/share/dbench/client.txt -t 6 2 > "$work/dbench.out" 2>&1 && grep -q '^Throughput' "$work/dbench.out"; then
    grep '^Throughput' "$work/dbench.out" | sed 's/^/dbench: /'
  else
    echo "dbench: FAILED"; tail -n 10 "$work/dbench.out"; return 1
  fi
}
