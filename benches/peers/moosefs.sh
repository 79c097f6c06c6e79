# MooseFS 3: a master and one chunk server, one copy. It has no encryption.
# Run in the guests of the bench's lab: serve ADDRESS DIRECTORY | join | mount ADDRESS POINT
set -eu
case $1 in
serve)
  dir=$3; mkdir -p "$dir/master" "$dir/server" "$dir/chunks"
  # The guest's /var/lib is its own: this is what the package puts there, the empty database of version 3.
  printf 'MFSM NEW' > "$dir/master/metadata.mfs"
  printf '* / rw,alldirs,admin,maproot=0\n* . rw\n' > "$dir/exports"
  echo "$dir/chunks" > "$dir/disks"
  for program in master:EXPORTS_FILENAME=exports server:HDD_CONF_FILENAME=disks; do
    part=${program%%:*}; setting=${program#*:}
    printf 'WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = %s\n%s = %s\nMASTER_HOST = %s\nLOCK_MEMORY = 0\n' \
      "$dir/$part" "${setting%%=*}" "$dir/${setting#*=}" "$2" > "$dir/$part.cfg"
  done
  { mfsmaster -c "$dir/master.cfg" start; mfschunkserver -c "$dir/server.cfg" start; } > "$dir/log" 2>&1 || { cat "$dir/log" >&2; exit 1; };;
join) cat > /dev/null;;
mount)
  # The chunk server registers a moment after it has started; until then there is no room for data.
  mfsmount -H "$2" "$3" >/dev/null 2>&1
  tries=0; until mountpoint -q "$3" && [ "$(df --output=size "$3" | tail -n 1)" -gt 0 ]; do tries=$((tries + 1)); [ $tries -lt 200 ]; sleep 0.1; done
  mfssetgoal 1 "$3" >/dev/null; mfssettrashtime 0 "$3" >/dev/null;;
esac
