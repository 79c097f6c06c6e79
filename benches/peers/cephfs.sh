# CephFS: monitor, manager, one OSD (BlueStore in a sparse file) and a metadata server; messenger 2 in secure mode throughout;
# ceph-fuse as the client.
# Run in the guests of the bench's lab: serve ADDRESS DIRECTORY (prints what a client needs) | join | mount ADDRESS POINT
set -eu
own=/tmp/bench-ceph
conf() { # ADDRESS DIRECTORY
  cat <<C
[global]
fsid = 6f1d3c52-7a0e-4b7e-9a55-0b1c2d3e4f50
mon_host = [v2:$1:3300]
public_addr = $1
ms_bind_msgr1 = false
ms_cluster_mode = secure
ms_service_mode = secure
ms_client_mode = secure
ms_mon_cluster_mode = secure
ms_mon_service_mode = secure
ms_mon_client_mode = secure
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
osd_pool_default_pg_num = 16
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
bluestore_block_size = 21474836480
bluestore_default_buffered_write = true
mgr_initial_modules =
setuser_match_path =
run_dir = $own/run
admin_socket = $own/run/\$name.\$pid.asok
log_file = $own/log/\$name.log
mon_data = $2/mon
mgr_data = $2/mgr
osd_data = $2/osd
mds_data = $2/mds
pid_file = $own/run/\$name.pid
[client]
# A client that is being unmounted still holds it when the next one starts.
pid_file = $own/run/\$name.\$pid.pid
[mgr]
keyring = $2/mgr/keyring
[osd]
keyring = $2/osd/keyring
[mds]
keyring = $2/mds/keyring
[client.admin]
keyring = $own/admin.keyring
C
}
case $1 in
serve)
  dir=$3; mkdir -p "$own/run" "$own/log" "$dir/mon" "$dir/mgr" "$dir/osd" "$dir/mds"
  conf "$2" "$dir" > "$own/ceph.conf"
  c="-c $own/ceph.conf"
  ceph() { timeout 40 /usr/bin/ceph $c -n client.admin "$@"; }
  {
    ceph-authtool --create-keyring "$own/mon.keyring" --gen-key -n mon. --cap mon 'allow *'
    ceph-authtool --create-keyring "$own/admin.keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mds 'allow *' --cap mgr 'allow *'
    ceph-authtool "$own/mon.keyring" --import-keyring "$own/admin.keyring"
    monmaptool --create --fsid 6f1d3c52-7a0e-4b7e-9a55-0b1c2d3e4f50 --addv a "[v2:$2:3300]" "$own/monmap"
    ceph-mon $c -i a --mkfs --monmap "$own/monmap" --keyring "$own/mon.keyring"
    ceph-mon $c -i a
    ceph auth get-or-create mgr.x mon 'allow profile mgr' osd 'allow *' mds 'allow *' -o "$dir/mgr/keyring"
    ceph-mgr $c -i x
    ceph auth get-or-create mds.a mon 'allow profile mds' osd 'allow rwx' mds 'allow *' -o "$dir/mds/keyring"
    id=$(cat /proc/sys/kernel/random/uuid); key=$(ceph-authtool --gen-print-key)
    echo "{\"cephx_secret\": \"$key\"}" | ceph osd new "$id" -i -
    ceph-authtool --create-keyring "$dir/osd/keyring" -n osd.0 --add-key "$key"
    ceph-osd $c -i 0 --mkfs --osd-uuid "$id"
    ceph-osd $c -i 0
    ceph osd pool create meta 16
    ceph osd pool create data 16
    ceph fs new bench meta data
    ceph-mds $c -i a
    tries=0; until ceph mds stat | grep -q up:active; do tries=$((tries + 1)); [ $tries -lt 100 ]; sleep 0.3; done
  } > "$own/up.log" 2>&1 || { tail -n 5 "$own/up.log" >&2; exit 1; }
  tar -C "$own" -c ceph.conf admin.keyring | base64 -w 0;;
join) mkdir -p "$own/run" "$own/log"; base64 -d | tar -C "$own" -x;;
mount) ceph-fuse -c "$own/ceph.conf" -n client.admin "$3" >"$own/mount.log" 2>&1 || { code=$?; tail -n 5 "$own/mount.log" >&2; exit $code; };;
esac
