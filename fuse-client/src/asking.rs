//! Having the kernel ask how long a file is.
//!
//! For mappings, sendfile(2) and copy_file_range(2) the kernel believes the size that it was told last, and there is no notice that makes it
//! smaller. But whoever asks for the attributes of a file has the kernel ask for them, and so does this program: by the
//! kernel's own handle of the file (open_by_handle_at(2)), as names may be others' by now.
//!
//! The thread that asks is answered by others of this program. If it is killed in between it hangs, which the guard ends, as
//! it does for notices that wait.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;

use crate::sys;

/// How often it is asked until the kernel believes an answer: it does not if a notice came between question and answer, and there is none while this
/// guest writes.
const ATTEMPTS: usize = 32;

/// The thread that asks; 0: none. A process has one mount.
static ASKER: AtomicI32 = AtomicI32::new(0);

/// Whether a request comes from this program itself. Others wait for the answer, so that it must wait for nobody.
pub fn is_own(pid: u32) -> bool {
    pid != 0 && pid.cast_signed() == ASKER.load(Ordering::Relaxed)
}

/// A file as the kernel calls it.
#[derive(Clone, Copy, Debug)]
pub struct Called {
    /// The inode number of the mount.
    pub number: u64,
    /// The generation that it was told.
    pub generation: u64,
}

struct Question {
    file: Called,
    /// The kernel may forget the answer within that time: it is asked once more.
    unsettled: Duration,
    then: Box<dyn FnOnce() + Send>,
}

/// Asks, one after the other, on a thread of its own.
pub struct Asker {
    place: Place,
    line: Mutex<Option<Sender<Question>>>,
}

/// Where the mount is.
#[derive(Clone, Debug)]
struct Place {
    dir: PathBuf,
    /// Major and minor number.
    device: (u32, u32),
}

impl Asker {
    /// For the mount at this directory, with this device (`major:minor`); `None` if that is no device.
    pub fn new(dir: &Path, device: &str) -> Option<Asker> {
        let (major, minor) = device.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        Some(Asker { place: Place { dir: dir.to_owned(), device }, line: Mutex::default() })
    }

    /// Does `then` once the kernel has asked how long a file is, or cannot be made to (without CAP_DAC_READ_SEARCH; if something else is
    /// mounted there by now; if it has forgotten the file).
    pub fn ask(&self, file: Called, unsettled: Duration, then: impl FnOnce() + Send + 'static) {
        let mut line = self.line.lock();
        let mut question = Question { file, unsettled, then: Box::new(then) };
        if let Some(asks) = &*line {
            match asks.send(question) {
                Ok(()) => return,
                Err(back) => question = back.0,
            }
        }
        let (asks, questions) = channel();
        let place = self.place.clone();
        let started =
            std::thread::Builder::new().name("asker".into()).spawn(move || answer_all(&place, &questions));
        match started {
            Ok(_) => {
                // It has just been started with the other end.
                let _ = asks.send(question);
                *line = Some(asks);
            }
            Err(_) => (question.then)(),
        }
    }
}

fn answer_all(place: &Place, questions: &Receiver<Question>) {
    ASKER.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    while let Ok(Question { file, unsettled, then }) = questions.recv() {
        // Not kept open: it would keep the mount in use.
        let _ = ask(place, file);
        if !unsettled.is_zero() {
            std::thread::sleep(unsettled);
            let _ = ask(place, file);
        }
        then();
    }
}

fn ask(place: &Place, file: Called) -> Result<(), Errno> {
    let mount = open(place)?;
    let file = sys::open_by_handle(&mount, file)?;
    for _ in 0..ATTEMPTS {
        let size =
            |how| Ok::<_, Errno>(statx(&file, c"", AtFlags::EMPTY_PATH | how, StatxFlags::SIZE)?.stx_size);
        let told = match size(AtFlags::STATX_FORCE_SYNC) {
            Err(Errno::AGAIN) => continue,
            told => told?,
        };
        if size(AtFlags::STATX_DONT_SYNC)? == told {
            break;
        }
    }
    Ok(())
}

/// The root of the mount, if it is there.
fn open(place: &Place) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Whatever else is mounted there is not asked for anything.
    let root = openat(CWD, &place.dir, flags | OFlags::PATH, Mode::empty())?;
    let stat = statx(&root, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)?;
    if (stat.stx_dev_major, stat.stx_dev_minor) != place.device {
        return Err(Errno::NODEV);
    }
    openat(&root, c".", flags | OFlags::RDONLY, Mode::empty())
}
