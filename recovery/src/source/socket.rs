//! A Unix socket on which Suricata delivers its lines (`filetype: unix_stream` or `unix_dgram`).

use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use strongroom_base::Failure;
use strongroom_base::files::parent;

use super::{Lines, Sensor};
use crate::config::SocketType;

const MAX_CONNECTIONS: usize = 8;
const MAX_DATAGRAM: usize = 1 << 20;

pub(super) enum Socket {
    Stream(UnixListener),
    Datagram(UnixDatagram),
}

/// Makes the socket. The group of its directory may write to it, so that the sensor need not be root.
pub(super) fn open(path: &Path, filetype: SocketType) -> Result<Socket, Failure> {
    let failed =
        |error: std::io::Error| Failure::other(format!("cannot listen on `{}`: {error}", path.display()));
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path).map_err(failed)?,
        Ok(_) => {
            return Err(Failure::bad(format!("`{}` is there and no socket", path.display()))
                .hint("remove it, or name another path in recovery.toml"));
        }
        Err(_) => {}
    }
    let socket = match filetype {
        SocketType::Stream => Socket::Stream(UnixListener::bind(path).map_err(failed)?),
        SocketType::Datagram => Socket::Datagram(UnixDatagram::bind(path).map_err(failed)?),
    };
    let group = std::fs::metadata(parent(path)).map(|meta| meta.gid()).ok();
    // Without the right to give it away, it stays its owner's.
    let _ = std::os::unix::fs::chown(path, None, group);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(socket)
}

/// Listens for as long as the process runs.
pub(super) fn listen(sensor: Arc<Sensor>, socket: Socket) {
    match socket {
        Socket::Stream(listener) => accept(&sensor, &listener),
        Socket::Datagram(socket) => receive(&sensor, &socket),
    }
}

fn accept(sensor: &Arc<Sensor>, listener: &UnixListener) {
    let open = Arc::new(AtomicUsize::new(0));
    while !sensor.daemon.is_stopping() {
        let Ok((stream, _)) = listener.accept() else {
            sensor.daemon.pause(Duration::from_millis(100));
            continue;
        };
        if open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (sensor, count) = (sensor.clone(), open.clone());
        let run = move || {
            read(&sensor, stream);
            count.fetch_sub(1, Ordering::Relaxed);
        };
        if std::thread::Builder::new().name("sensor".into()).spawn(run).is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn read(sensor: &Sensor, mut stream: UnixStream) {
    let (mut lines, mut buffer) = (Lines::default(), vec![0; 65_536]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        take(sensor, &mut lines, buffer.get(..count).unwrap_or_default());
    }
}

fn receive(sensor: &Sensor, socket: &UnixDatagram) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    while !sensor.daemon.is_stopping() {
        let Ok(count) = socket.recv(&mut buffer) else {
            sensor.daemon.pause(Duration::from_millis(100));
            continue;
        };
        // A datagram is whole in itself.
        let mut lines = Lines::default();
        take(sensor, &mut lines, buffer.get(..count).unwrap_or_default());
        take(sensor, &mut lines, b"\n");
    }
}

fn take(sensor: &Sensor, lines: &mut Lines, bytes: &[u8]) {
    lines.take(bytes, |line| line.map_or_else(|| sensor.too_long(), |line| sensor.line(line)));
}
