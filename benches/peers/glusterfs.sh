# GlusterFS with TLS on both its management and data connections: one brick, otherwise its own defaults.
# Run in the guests of the bench's lab: serve ADDRESS DIRECTORY (prints what a client needs) | join | mount ADDRESS POINT
set -eu
ssl=/usr/lib/ssl
export OPENSSL_CONF=/etc/ssl/openssl.cnf
# The guest sees the host's /usr/lib/ssl read-only; the keys' place is compiled into the programs.
own_ssl() { grep -q " $ssl " /proc/self/mounts || mount -t tmpfs -o mode=755 tmpfs "$ssl"; }
case $1 in
serve)
  own_ssl
  mkdir -p /var/run/gluster /var/log/glusterfs /var/lib/glusterd "$3"
  openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=bench -keyout "$ssl/glusterfs.key" -out "$ssl/glusterfs.pem" 2>/dev/null
  cp "$ssl/glusterfs.pem" "$ssl/glusterfs.ca"
  # Bricks take any port of thousands otherwise, and the lab's filter opens few.
  sed -i 's/.*option max-port.*/    option max-port 49160/; s/.*option base-port.*/    option base-port 49152/' /etc/glusterfs/glusterd.vol
  glusterd >/dev/null
  gluster() { command gluster --mode=script "$@" >/dev/null; }
  tries=0; until gluster volume info 2>/dev/null; do tries=$((tries + 1)); [ $tries -lt 100 ]; sleep 0.1; done
  gluster volume create bench transport tcp "$2:$3" force
  gluster volume set bench client.ssl on
  gluster volume set bench server.ssl on
  gluster volume set bench auth.ssl-allow bench
  gluster volume start bench
  # The brick tells its port a moment after the volume has started.
  tries=0; until command gluster volume status bench 2>/dev/null | grep -Eq ' Y +[0-9]'; do tries=$((tries + 1)); [ $tries -lt 100 ]; sleep 0.1; done
  tar -C "$ssl" -c glusterfs.key glusterfs.pem glusterfs.ca | base64 -w 0;;
join)
  own_ssl
  mkdir -p /var/log/glusterfs /var/run/gluster
  base64 -d | tar -C "$ssl" -x;;
mount)
  glusterfs --volfile-server="$2" --volfile-id=bench "$3"
  # The mount is there before the brick has answered.
  tries=0; until ls "$3" >/dev/null 2>&1; do tries=$((tries + 1)); [ $tries -lt 100 ]; sleep 0.1; done;;
esac
