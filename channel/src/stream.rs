//! The two halves of an established connection.
//!
//! One mutex guards the TLS state; it is held to encrypt or decrypt a slice, never across a system call. A second one
//! orders senders, from encryption to the write of the bytes. A third one guards what is queued for whoever sends at the time.
//! INVARIANT: the send lock is taken before the two others, which are not taken together.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use strongroom_contracts::PublicKey;
use strongroom_protocol::frame::{Lengths, MAX_DATA, MAX_HEADER, PREFIX};

use crate::error::ChannelError;
use crate::socket::Socket;
use crate::tls::{Outgoing, Step, Tls};

/// Plaintext encrypted at a time: the receiver's turn at the TLS state comes in between, and the bytes leave sooner.
const SLICE: usize = 128 * 1024;
/// Data up to this length travel in one record with their header.
const SMALL: usize = SLICE / 8;
/// Frames, and bytes of ciphertext, that are held back for those that follow ([`Sender::hold`]).
const MOST_HELD: (usize, usize) = (8, 64 * 1024);
/// Ciphertext read from the socket at a time. A multiple of a full record, so that large reads end on a border.
const READ: usize = 16 * 16_406;

/// An established connection, in its parts.
pub struct Channel {
    /// For sending, by any number of threads.
    pub sender: Sender,
    /// For receiving, by one thread.
    pub receiver: Receiver,
    /// For ending it from anywhere.
    pub closer: Closer,
    /// The key that the peer has proven.
    pub peer: PublicKey,
    /// The protocol agreed upon.
    pub alpn: Vec<u8>,
    /// The peer's address; `None` over a Unix socket.
    pub peer_addr: Option<SocketAddr>,
}

impl Channel {
    /// `received`: ciphertext that is not decrypted yet; `early`: plaintext that came before it.
    pub(crate) fn new(
        tls: Tls,
        socket: Socket,
        received: Vec<u8>,
        early: Vec<u8>,
        peer: PublicKey,
        alpn: Vec<u8>,
    ) -> Channel {
        let peer_addr = socket.peer_addr();
        let shared = Arc::new(Shared {
            socket,
            tls: Mutex::new(Encryption { tls, control: vec![], failed: false }),
            send: Mutex::new(Outgoing::default()),
            held: AtomicUsize::new(0),
            queue: Mutex::default(),
        });
        let mut buffer = vec![0; READ.max(received.len())];
        buffer[..received.len()].copy_from_slice(&received);
        Channel {
            sender: Sender { shared: shared.clone() },
            receiver: Receiver {
                shared: shared.clone(),
                buffer,
                start: 0,
                end: received.len(),
                carry: early,
                carried: 0,
                progress: Progress::default(),
            },
            closer: Closer { shared },
            peer,
            alpn,
            peer_addr,
        }
    }
}

struct Shared {
    socket: Socket,
    tls: Mutex<Encryption>,
    send: Mutex<Outgoing>,
    /// Frames in `send` that are not written yet; changed only with it locked.
    held: AtomicUsize,
    /// Plaintext that comes before whatever is sent next. Whoever gives the send lock up looks here once more.
    queue: Mutex<Vec<u8>>,
}

struct Encryption {
    tls: Tls,
    /// Records that the TLS state wants sent (key updates, alerts), in the order in which it made them.
    control: Vec<u8>,
    /// The TLS state has reported an error, after which it must not be used.
    failed: bool,
}

/// A panic while a lock is held leaves TLS state that errors out by itself; the lock is no reason to panic again.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn write(&self, out: &mut Outgoing) -> Result<(), ChannelError> {
        let written =
            (&self.socket).write_all(out.bytes()).map_err(|error| ChannelError::io("cannot send", error));
        out.clear();
        self.held.store(0, Ordering::Relaxed);
        if written.is_err() {
            // Part of a record may be out: nothing can follow it.
            self.socket.shutdown();
        }
        written
    }

    /// Does something as the only sender, after what is queued.
    fn sending(
        &self,
        act: impl FnOnce(&mut Outgoing) -> Result<(), ChannelError>,
    ) -> Result<(), ChannelError> {
        let mut out = lock(&self.send);
        self.put_queue(&mut out)?;
        act(&mut out)?;
        drop(out);
        self.send_queue()
    }

    /// Sends what is queued, unless somebody is sending, who does it then.
    fn send_queue(&self) -> Result<(), ChannelError> {
        while !lock(&self.queue).is_empty() {
            let mut out = match self.send.try_lock() {
                Ok(out) => out,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return Ok(()),
            };
            self.put_queue(&mut out)?;
            self.write(&mut out)?;
        }
        Ok(())
    }

    fn put_queue(&self, out: &mut Outgoing) -> Result<(), ChannelError> {
        let mut plain = std::mem::take(&mut out.spare);
        std::mem::swap(&mut plain, &mut *lock(&self.queue));
        let put = if plain.is_empty() { Ok(()) } else { self.encrypt(&plain, out) };
        plain.clear();
        out.spare = plain;
        put
    }

    fn encrypt(&self, plain: &[u8], out: &mut Outgoing) -> Result<(), ChannelError> {
        let mut encryption = lock(&self.tls);
        if encryption.failed {
            return Err(ChannelError::Closed);
        }
        let control = std::mem::take(&mut encryption.control);
        out.append(&control);
        encryption.tls.encrypt(plain, out).inspect_err(|_| encryption.failed = true)
    }

    fn flush_held(&self) -> Result<(), ChannelError> {
        // Who holds a frame back knows of it, or hands the receiver on with a lock.
        if self.held.load(Ordering::Relaxed) == 0 { Ok(()) } else { self.sending(|out| self.write(out)) }
    }

    fn flush_control(&self) -> Result<(), ChannelError> {
        self.sending(|out| {
            let control = std::mem::take(&mut lock(&self.tls).control);
            out.append(&control);
            self.write(out)
        })
    }
}

fn check(frames: &[(&[u8], &[u8])]) -> Result<(), ChannelError> {
    for (header, data) in frames {
        if !(1..=MAX_HEADER).contains(&header.len()) || data.len() > MAX_DATA {
            return Err(ChannelError::TooLong { header: header.len(), data: data.len() });
        }
    }
    Ok(())
}

/// The sending half.
#[derive(Clone)]
pub struct Sender {
    shared: Arc<Shared>,
}

impl Sender {
    /// Sends one frame; returns when the kernel has taken all of it.
    ///
    /// # Errors
    /// [`ChannelError`]; the connection is of no more use, except after [`ChannelError::TooLong`].
    pub fn send(&self, header: &[u8], data: &[u8]) -> Result<(), ChannelError> {
        self.send_all(&[(header, data)])
    }

    /// Sends several frames in as few records and writes as possible.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send_all(&self, frames: &[(&[u8], &[u8])]) -> Result<(), ChannelError> {
        check(frames)?;
        self.shared.sending(|out| {
            self.put(frames, out)?;
            self.shared.write(out)
        })
    }

    /// Sends one frame. If it is small and another thread is sending, that one sends it next, and this one does not wait; a
    /// failure then shows there and on the receiver.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send_soon(&self, header: &[u8], data: &[u8]) -> Result<(), ChannelError> {
        check(&[(header, data)])?;
        {
            let mut queue = lock(&self.shared.queue);
            if data.len() > SMALL || queue.len() > MOST_HELD.1 {
                drop(queue);
                return self.send(header, data);
            }
            queue.extend_from_slice(&Lengths { header: header.len(), data: data.len() }.prefix());
            queue.extend_from_slice(header);
            queue.extend_from_slice(data);
        }
        self.shared.send_queue()
    }

    /// Takes a small frame to be sent with those that follow: with the next [`Sender::send`], at [`Sender::flush`], or when
    /// [`Receiver::recv`] has to wait for the peer. `false`: nothing was taken, as it is large or enough is held back.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn hold(&self, header: &[u8], data: &[u8]) -> Result<bool, ChannelError> {
        let frame = [(header, data)];
        check(&frame)?;
        let mut taken = false;
        self.shared.sending(|out| {
            let held = self.shared.held.load(Ordering::Relaxed);
            let bytes = out.bytes().len() + header.len() + data.len();
            taken = data.len() <= SMALL && held < MOST_HELD.0 && bytes <= MOST_HELD.1;
            if taken {
                self.put(&frame, out)?;
                self.shared.held.store(held + 1, Ordering::Relaxed);
            }
            Ok(())
        })?;
        Ok(taken)
    }

    /// Sends what was held back.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn flush(&self) -> Result<(), ChannelError> {
        self.shared.flush_held()
    }

    /// Encrypts frames; writes only what does not fit.
    fn put(&self, frames: &[(&[u8], &[u8])], out: &mut Outgoing) -> Result<(), ChannelError> {
        let mut plain = std::mem::take(&mut out.spare);
        for (header, data) in frames {
            // Small data go into the same record; large ones are encrypted from where they are.
            let (joined, rest) = data.split_at(data.len().min(SMALL));
            plain.extend_from_slice(&Lengths { header: header.len(), data: data.len() }.prefix());
            plain.extend_from_slice(header);
            plain.extend_from_slice(joined);
            if !rest.is_empty() || plain.len() >= SLICE {
                self.shared.encrypt(&plain, out)?;
                plain.clear();
                for slice in rest.chunks(SLICE) {
                    self.shared.write(out)?;
                    self.shared.encrypt(slice, out)?;
                }
            }
        }
        let put = if plain.is_empty() { Ok(()) } else { self.shared.encrypt(&plain, out) };
        plain.clear();
        out.spare = plain;
        put
    }

    /// Bounds how long a send may be stuck; `None`: not at all.
    ///
    /// # Errors
    /// [`ChannelError::Io`] if the socket refuses.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ChannelError> {
        self.shared
            .socket
            .set_write_timeout(timeout)
            .map_err(|error| ChannelError::io("cannot set a time-out", error))
    }
}

/// Ends a connection from anywhere.
#[derive(Clone)]
pub struct Closer {
    shared: Arc<Shared>,
}

impl Closer {
    /// Ends it at once: sends and receives that are blocked return with [`ChannelError::Closed`] or an I/O error.
    pub fn close(&self) {
        self.shared.socket.shutdown();
    }

    /// Whether the peer has ended its side, or is gone: an answer would reach nobody.
    pub fn peer_is_gone(&self) -> bool {
        self.shared.socket.is_ended()
    }
}

/// A received frame; its buffers are used again.
#[derive(Default)]
pub struct Frame {
    header: Vec<u8>,
    data: Vec<u8>,
}

impl Frame {
    /// An empty frame.
    pub fn new() -> Frame {
        Frame::default()
    }

    /// The header's bytes.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The data.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Takes the data out; the next frame gets a new buffer.
    pub fn take_data(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.data)
    }

    /// Gives a buffer for the data of the next frame.
    pub fn give_data(&mut self, buffer: Vec<u8>) {
        self.data = buffer;
    }
}

/// How far the frame is that is being received.
#[derive(Default)]
struct Progress {
    prefix: [u8; PREFIX],
    prefix_filled: usize,
    lengths: Option<Lengths>,
}

impl Progress {
    /// Takes what belongs to the frame from `bytes`; returns how much that was, and whether the frame is complete.
    fn feed(&mut self, mut bytes: &[u8], frame: &mut Frame) -> Result<(usize, bool), ChannelError> {
        let offered = bytes.len();
        let lengths = match self.lengths {
            Some(lengths) => lengths,
            None => {
                let (now, rest) = bytes.split_at(bytes.len().min(PREFIX - self.prefix_filled));
                self.prefix[self.prefix_filled..][..now.len()].copy_from_slice(now);
                self.prefix_filled += now.len();
                bytes = rest;
                if self.prefix_filled < PREFIX {
                    return Ok((offered, false));
                }
                let lengths = Lengths::parse(self.prefix)?;
                frame.header.clear();
                frame.data.clear();
                *self.lengths.insert(lengths)
            }
        };
        for (buffer, length) in [(&mut frame.header, lengths.header), (&mut frame.data, lengths.data)] {
            let (now, rest) = bytes.split_at(bytes.len().min(length - buffer.len()));
            // Memory grows with what has come, not with what was announced.
            buffer.extend_from_slice(now);
            bytes = rest;
        }
        let complete = frame.header.len() == lengths.header && frame.data.len() == lengths.data;
        if complete {
            *self = Progress::default();
        }
        Ok((offered - bytes.len(), complete))
    }
}

/// The receiving half.
pub struct Receiver {
    shared: Arc<Shared>,
    /// Ciphertext; what counts lies between `start` and `end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Plaintext after the last frame; what counts begins at `carried`.
    carry: Vec<u8>,
    carried: usize,
    progress: Progress,
}

impl Receiver {
    /// Receives the next frame; `false` at the end of the connection between two frames.
    ///
    /// # Errors
    /// [`ChannelError::TimedOut`] leaves the connection usable: call again with the same `frame`. After any other error
    /// it is of no more use.
    pub fn recv(&mut self, frame: &mut Frame) -> Result<bool, ChannelError> {
        if self.carried < self.carry.len() {
            let (used, complete) = self.progress.feed(&self.carry[self.carried..], frame)?;
            self.carried += used;
            if complete {
                return Ok(true);
            }
        }
        self.carry.clear();
        self.carried = 0;
        loop {
            match self.decrypt(frame)? {
                Decrypted::Frame => return Ok(true),
                Decrypted::Closed => return self.ended(),
                Decrypted::More => {}
            }
            if !self.fill()? {
                return self.ended();
            }
        }
    }

    /// Whether a part of a frame has come, and the rest has not.
    pub fn mid_frame(&self) -> bool {
        self.progress.prefix_filled > 0 || self.start < self.end
    }

    /// Whether a further frame, or a part of one, has already been received and waits here.
    pub fn has_buffered(&self) -> bool {
        self.carried < self.carry.len() || self.start < self.end
    }

    /// Bounds how long a receive waits for bytes; `None`: not at all.
    ///
    /// # Errors
    /// [`ChannelError::Io`] if the socket refuses.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ChannelError> {
        self.shared
            .socket
            .set_read_timeout(timeout)
            .map_err(|error| ChannelError::io("cannot set a time-out", error))
    }

    fn ended(&self) -> Result<bool, ChannelError> {
        if self.progress.prefix_filled == 0 { Ok(false) } else { Err(ChannelError::Closed) }
    }

    fn fill(&mut self) -> Result<bool, ChannelError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            // A buffer full of bytes that make no record: more than a record can have.
            return Err(ChannelError::Closed);
        }
        self.shared.flush_held()?;
        loop {
            match (&self.shared.socket).read(&mut self.buffer[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
                Err(error) => return Err(ChannelError::io("cannot receive", error)),
            }
        }
    }

    /// Decrypts what is there, up to the end of the frame.
    fn decrypt(&mut self, frame: &mut Frame) -> Result<Decrypted, ChannelError> {
        let mut encryption = lock(&self.shared.tls);
        let Encryption { tls, control, failed } = &mut *encryption;
        let mut sink =
            Sink { progress: &mut self.progress, frame, carry: &mut self.carry, complete: Ok(false) };
        let decrypted = loop {
            let incoming = &mut self.buffer[self.start..self.end];
            let (used, step) = tls.receive(incoming, &mut |bytes| sink.take(bytes), control);
            self.start += used;
            let step = step.inspect_err(|_| *failed = true)?;
            if std::mem::replace(&mut sink.complete, Ok(false))? {
                break Decrypted::Frame;
            }
            match step {
                Step::Again => {}
                Step::Established | Step::Handshaking => {
                    // What is left is a part of a record. A whole one would be a part of a handshake message, which
                    // no client of ours sends, and whose position the TLS state counts in this buffer.
                    if holds_record(&self.buffer[self.start..self.end]) {
                        *failed = true;
                        return Err(ChannelError::Closed);
                    }
                    break Decrypted::More;
                }
                Step::Closed => break Decrypted::Closed,
            }
        };
        let answer_needed = !control.is_empty();
        drop(encryption);
        if answer_needed {
            self.shared.flush_control()?;
        }
        Ok(decrypted)
    }
}

/// Whether `bytes` begin with a whole record: type 1, version 2, length 2 (RFC 8446, 5.1).
fn holds_record(bytes: &[u8]) -> bool {
    matches!(bytes, [_, _, _, high, low, rest @ ..] if rest.len() >= usize::from(u16::from_be_bytes([*high, *low])))
}

/// Takes plaintext: first what belongs to the frame, then the rest.
struct Sink<'a> {
    progress: &'a mut Progress,
    frame: &'a mut Frame,
    carry: &'a mut Vec<u8>,
    complete: Result<bool, ChannelError>,
}

impl Sink<'_> {
    fn take(&mut self, bytes: &[u8]) {
        let used = match self.complete {
            Ok(false) => match self.progress.feed(bytes, self.frame) {
                Ok((used, complete)) => {
                    self.complete = Ok(complete);
                    used
                }
                Err(error) => {
                    self.complete = Err(error);
                    0
                }
            },
            _ => 0,
        };
        self.carry.extend_from_slice(&bytes[used..]);
    }
}

enum Decrypted {
    Frame,
    More,
    Closed,
}
