//! The machine's own limits, measured in the same run: what no file system over this network can beat.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use strongroom_benches::statistics::median;
use strongroom_channel::{ClientTls, Frame, Peer, ServerTls, Socket};
use strongroom_contracts::SecretKey;
use strongroom_protocol::frame::MAX_DATA;

use crate::conductor::check_interrupted;
use crate::house::{ECHO_PORT, House};
use crate::results::Limits;
use crate::target::Guest;

/// Only a guard against hanging for ever.
const PATIENCE: Duration = Duration::from_secs(30);
const ROUND_TRIPS: usize = 5000;
const MESSAGE: usize = 128;
const SYNCS: u64 = 200;
/// First byte of a connection: what it is for.
const STREAM: u8 = b's';
const ECHO: u8 = b'e';
const CHANNEL: u8 = b'c';
const ALPN: &[u8] = b"bench";

/// What [`call`] found out.
#[derive(Debug, Serialize, Deserialize)]
struct Wire {
    mib_per_second: f64,
    channel_mib_per_second: f64,
    round_trip_us: f64,
}

/// Measure the network between the guests and the disk below the data root.
pub(crate) fn measure(house: &House, seconds: u64) -> Result<Limits> {
    eprintln!("the machine's limits");
    let wire = wire(house, seconds).context("cannot measure the network")?;
    check_interrupted()?;
    Ok(Limits {
        tcp_mib_per_second: wire.mib_per_second,
        channel_mib_per_second: wire.channel_mib_per_second,
        tcp_round_trip_us: wire.round_trip_us,
        fsyncs_per_second: syncs(house).context("cannot measure the disk")?,
        fuse_request_us: None,
    })
}

fn wire(house: &House, seconds: u64) -> Result<Wire> {
    let server =
        house.role(Guest::Storage, &["echo"])?.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut server = Killed(server);
    // It says a word once it listens.
    let mut word = [0; 6];
    server
        .0
        .stdout
        .take()
        .context("no output")?
        .read_exact(&mut word)
        .context("the echo server did not start")?;
    let seconds = seconds.to_string();
    let output = house.role(Guest::App, &["call", &seconds])?.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("the measurement is unreadable")
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// 4 KiB appended and synced on the disk, without anything in between.
fn syncs(house: &House) -> Result<f64> {
    let path = house.data().join("limit");
    let file = File::create_new(&path)?;
    let begun = Instant::now();
    for number in 0..SYNCS {
        file.write_all_at(&[b'x'; 4096], number * 4096)?;
        file.sync_all()?;
    }
    let rate = SYNCS as f64 / begun.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok(rate)
}

/// In the storage guest: serve three connections.
pub(crate) fn echo() -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, ECHO_PORT));
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let mut output = std::io::stdout();
    output.write_all(b"ready\n")?;
    output.flush()?;
    for _ in 0..3 {
        let (mut stream, _) = listener.accept()?;
        prepare(&stream)?;
        let mut purpose = [0];
        stream.read_exact(&mut purpose)?;
        let mut buffer = vec![0; 1 << 20];
        if purpose == [STREAM] {
            while stream.read(&mut buffer)? > 0 {}
            stream.write_all(&purpose)?;
        } else if purpose == [CHANNEL] {
            send_frames(stream)?;
        } else {
            let message = buffer.get_mut(..MESSAGE).context("no buffer")?;
            while stream.read_exact(message).is_ok() {
                stream.write_all(message)?;
            }
        }
    }
    Ok(())
}

/// In the app guest: measure a stream and round trips to [`echo`], and print them.
pub(crate) fn call(seconds: u64) -> Result<()> {
    let wire = Wire {
        mib_per_second: stream(seconds)?,
        channel_mib_per_second: frames(seconds)?,
        round_trip_us: round_trips()?,
    };
    serde_json::to_writer(std::io::stdout(), &wire)?;
    Ok(())
}

fn connect(purpose: u8) -> Result<TcpStream> {
    let host: SocketAddr = strongroom_tests::lab::GATEWAY_ADDRESS.parse()?;
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(host.ip(), ECHO_PORT), PATIENCE)?;
    prepare(&stream)?;
    stream.write_all(&[purpose])?;
    Ok(stream)
}

fn prepare(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(())
}

fn stream(seconds: u64) -> Result<f64> {
    let mut stream = connect(STREAM)?;
    let buffer = vec![0; 1 << 20];
    let begun = Instant::now();
    let mut mib = 0_u32;
    while begun.elapsed() < Duration::from_secs(seconds) {
        stream.write_all(&buffer)?;
        mib += 1;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // The last byte counts when it has arrived.
    stream.read_exact(&mut [0])?;
    Ok(f64::from(mib) / begun.elapsed().as_secs_f64())
}

/// Encrypted frames of 1 MiB, as the gateway answers reads, from memory that is in the cache; until nobody takes them.
fn send_frames(mut stream: TcpStream) -> Result<()> {
    let key = SecretKey::generate()?;
    stream.write_all(format!("{}\n", key.public()).as_bytes())?;
    let tls = ServerTls::new(&key, &[ALPN])?;
    let channel = tls.accept(Socket::Tcp(stream), PATIENCE)?;
    let data = vec![0; MAX_DATA];
    while channel.sender.send(&[1], &data).is_ok() {}
    Ok(())
}

fn frames(seconds: u64) -> Result<f64> {
    let mut stream = connect(CHANNEL)?;
    let mut key = vec![];
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        key.extend(byte);
    }
    let peer = Peer::Key(std::str::from_utf8(&key)?.trim().parse()?);
    let tls = ClientTls::new(&SecretKey::generate()?, peer, ALPN)?;
    let mut channel = tls.handshake(Socket::Tcp(stream), PATIENCE)?;
    let mut frame = Frame::new();
    let begun = Instant::now();
    let mut bytes = 0;
    while begun.elapsed() < Duration::from_secs(seconds) && channel.receiver.recv(&mut frame)? {
        bytes += frame.data().len();
    }
    channel.closer.close();
    Ok(bytes as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64())
}

fn round_trips() -> Result<f64> {
    let mut stream = connect(ECHO)?;
    let mut message = [0; MESSAGE];
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    median(&times).context("no round trips")
}
