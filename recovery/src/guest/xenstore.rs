//! One write to XenStore, over its own protocol (Xen, `docs/misc/xenstore.txt`, `xen/include/public/io/xs_wire.h`): the
//! tool `xenstore-write` would show the secret to everyone who lists processes.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The node of a secret, below the guest's own directory.
pub(super) const SECRET_NODE: &str = "strongroom/enrol";

const SOCKETS: [&str; 2] = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
const DEVICE: &str = "/dev/xen/xenbus";
const XS_WRITE: u32 = 11;
const XS_ERROR: u32 = 16;
const HEADER: usize = 16;
/// XENSTORE_PAYLOAD_MAX.
const MAX_PAYLOAD: usize = 4096;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Writes the secret for a domain. New nodes have the permissions of the one above: this guest and dom0 may read.
pub(super) fn write_secret(domain: u32, secret: &str) -> Result<(), String> {
    let path = format!("/local/domain/{domain}/{SECRET_NODE}");
    if let Some(socket) = SOCKETS.into_iter().find(|path| Path::new(path).exists()) {
        let failed = |error: std::io::Error| format!("cannot reach XenStore at {socket}: {error}");
        let stream = UnixStream::connect(socket).map_err(failed)?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
        stream.set_write_timeout(Some(TIMEOUT)).map_err(failed)?;
        return write(stream, &path, secret);
    }
    let device = OpenOptions::new().read(true).write(true).open(DEVICE);
    write(device.map_err(|error| format!("cannot reach XenStore at {DEVICE}: {error}"))?, &path, secret)
}

fn write(mut to: impl Read + Write, path: &str, value: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("XenStore: {error}");
    let payload = [path.as_bytes(), b"\0", value.as_bytes()].concat();
    if payload.len() > MAX_PAYLOAD {
        return Err("XenStore: the value is too long".to_owned());
    }
    let length = u32::try_from(payload.len()).unwrap_or(0);
    let mut message: Vec<u8> = [XS_WRITE, 1, 0, length].iter().flat_map(|word| word.to_le_bytes()).collect();
    message.extend_from_slice(&payload);
    to.write_all(&message).map_err(failed)?;
    let mut header = [0; HEADER];
    to.read_exact(&mut header).map_err(failed)?;
    let word = |n: usize| {
        let bytes = header.get(4 * n..4 * n + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    };
    let mut answer = vec![0; usize::try_from(word(3)).unwrap_or(0).min(MAX_PAYLOAD)];
    to.read_exact(&mut answer).map_err(failed)?;
    match word(0) {
        XS_WRITE => Ok(()),
        XS_ERROR => {
            Err(format!("XenStore refused: {}", String::from_utf8_lossy(&answer).trim_end_matches('\0')))
        }
        other => Err(format!("XenStore gave an answer of type {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store that reads one message and gives one answer.
    fn store(kind: u32, answer: &'static [u8]) -> (UnixStream, std::thread::JoinHandle<Vec<u8>>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            let mut header = [0; HEADER];
            theirs.read_exact(&mut header).unwrap();
            let length = u32::from_le_bytes(header[12..].try_into().unwrap());
            let mut payload = vec![0; length as usize];
            theirs.read_exact(&mut payload).unwrap();
            let reply = [kind, 1, 0, answer.len() as u32];
            theirs.write_all(&reply.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>()).unwrap();
            theirs.write_all(answer).unwrap();
            [&header[..4], &payload].concat()
        });
        (ours, thread)
    }

    #[test]
    fn a_write_is_one_message_and_its_answer() {
        let (stream, thread) = store(XS_WRITE, b"OK\0");
        write(stream, "/local/domain/3/strongroom/enrol", "value").unwrap();
        assert_eq!(thread.join().unwrap(), b"\x0b\0\0\0/local/domain/3/strongroom/enrol\0value");
        let (stream, thread) = store(XS_ERROR, b"EACCES\0");
        assert_eq!(write(stream, "/x", "y").unwrap_err(), "XenStore refused: EACCES");
        thread.join().unwrap();
    }
}
