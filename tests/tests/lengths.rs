//! A kernel believes the length that it was told last for mappings, for sendfile(2) and for copy_file_range(2), and asks nobody. It must be
//! as true as what stat(2) tells: nothing in these tests asks for attributes, or reads with read(2).
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

#[path = "support/pair.rs"]
mod pair;

use pair::{APPS, Dice, Guest};
use strongroom_tests::lab::Lab;

/// One line, one operation; one line, one answer. The mapping reaches far beyond the file; a process of its own looks at it, as one that looks
/// beyond the last page dies of that.
const GUEST: &str = r#"
import ctypes, os, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
MOST = 1 << 26
file = os.open("file", os.O_RDWR)
mapping = libc.mmap(None, MOST, 1, 1, file, 0)
appending = os.open("file", os.O_WRONLY | os.O_APPEND)

def send(file, offset):
    inlet = os.pipe()
    sent = os.sendfile(inlet[1], file, offset, 8)
    answer = os.read(inlet[0], sent) if sent else b""
    os.close(inlet[0]), os.close(inlet[1])
    return answer

def see(file, offset):
    inlet = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        os.write(inlet[1], ctypes.string_at(mapping + offset, 8))
        os._exit(0)
    os.close(inlet[1])
    answer = os.read(inlet[0], 8)
    os.close(inlet[0]), os.waitpid(child, 0)
    return answer

def copy(file, offset):
    to = os.open("copied", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    copied = os.copy_file_range(file, to, 8, offset, 0)
    answer = os.pread(to, copied, 0)
    os.close(to)
    return answer

def poke(file, offset, value, size):
    page = offset & -4096
    mapped = libc.mmap(None, MOST, 3, 1, file, 0)
    # So that the kernel reads to where it believes the end, several requests at the same time.
    libc.madvise(ctypes.c_void_p(mapped), ctypes.c_size_t(size), 3)
    ctypes.memmove(mapped + offset, struct.pack("<Q", value), 8)
    assert libc.msync(ctypes.c_void_p(mapped + page), ctypes.c_size_t(4096), 4) == 0
    libc.munmap(ctypes.c_void_p(mapped), ctypes.c_size_t(MOST))

for line in sys.stdin:
    what, *words = line.split()
    numbers = [int(word) for word in words]
    answer = "done"
    if what == "put":
        os.pwrite(file, struct.pack("<Q", numbers[1]), numbers[0])
    elif what == "append":
        os.write(appending, struct.pack("<Q", numbers[0]))
    elif what == "cut":
        os.ftruncate(file, numbers[0])
    elif what == "lengthen":
        os.posix_fallocate(file, 0, numbers[0])
    elif what in ("see", "send", "copy"):
        answer = {"see": see, "send": send, "copy": copy}[what](file, numbers[0])
    elif what == "poke":
        poke(file, *numbers)
    elif what == "poke-anew":
        other = os.open("file", os.O_RDWR)
        poke(other, *numbers)
        os.close(other)
    elif what == "close":
        os.close(file), os.close(appending), libc.munmap(ctypes.c_void_p(mapping), ctypes.c_size_t(MOST))
    elif what == "length":
        answer = os.fstat(file).st_size
    elif what == "anew":
        other = os.open("another", os.O_RDONLY)
        answer = send(other, numbers[0])
        os.close(other)
    elif what == "another":
        other = os.open("another", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(other, struct.pack("<Q", numbers[0]))
        os.close(other)
    if isinstance(answer, bytes):
        answer = struct.unpack("<Q", answer)[0] if len(answer) == 8 else answer.hex() or "nothing"
    print(answer, flush=True)
"#;
const PAGE: u64 = 4096;

fn begin(purpose: &str) -> (Lab, [Guest; 2]) {
    pair::with_file(purpose, &[0; 8], GUEST)
}

fn done(guest: &mut Guest, line: &str) {
    assert_eq!(guest.ask(line), "done", "{line}");
}

fn look(guest: &mut Guest, how: &str, place: u64, value: u64) {
    let seen = guest.ask(&format!("{how} {place}"));
    assert_eq!(seen, value.to_string(), "{how} of what was put at {place}");
}

/// The file as it is made longer, each time in another way.
struct Growing {
    dice: Dice,
    size: u64,
}

impl Growing {
    fn new(seed: u64) -> Growing {
        Growing { dice: Dice::new(seed), size: 8 }
    }

    /// Makes the file longer; returns where its last eight bytes are, and what they say.
    fn grow(&mut self, guest: &mut Guest, value: u64) -> (u64, u64) {
        let further = [8, 9, 100, PAGE, PAGE + 1, 3 * PAGE, 40 * PAGE][self.dice.roll(7) as usize];
        let end = match self.dice.roll(4) {
            // To the end of a page, or a byte beyond.
            0 => (self.size + further).next_multiple_of(PAGE) + self.dice.roll(2),
            _ => self.size + further,
        };
        let (line, end, value) = match self.dice.roll(4) {
            0 => (format!("append {value}"), self.size + 8, value),
            1 if end >= self.size + 8 => (format!("cut {end}"), end, 0),
            2 if end >= self.size + 8 => (format!("lengthen {end}"), end, 0),
            _ => (format!("put {} {value}", end - 8), end, value),
        };
        done(guest, &line);
        self.size = end;
        (end - 8, value)
    }
}

#[test]
fn what_others_make_longer_is_longer_for_mappings_too() {
    let (lab, mut guests) = begin("lengths");
    let mut growing = Growing::new(1);
    for value in 1..=400 {
        let by = growing.dice.roll(2) as usize;
        let (place, value) = growing.grow(&mut guests[by], value);
        let how = ["see", "send", "copy"][growing.dice.roll(3) as usize];
        look(&mut guests[1 - by], how, place, value);
        if growing.dice.roll(8) == 0 {
            growing.size = growing.dice.roll(growing.size / 8) * 8 + 8;
            done(&mut guests[by], &format!("cut {}", growing.size));
            assert_eq!(guests[1 - by].ask(&format!("send {}", growing.size)), "nothing");
        }
    }
    drop(guests);
    lab.down().unwrap();
}

#[test]
fn what_is_opened_is_as_long_as_it_is() {
    let (lab, mut guests) = begin("lengths-anew");
    let mut dice = Dice::new(2);
    done(&mut guests[0], "another 0");
    for value in 1..=200 {
        let by = dice.roll(2) as usize;
        done(&mut guests[by], &format!("another {value}"));
        look(&mut guests[dice.roll(2) as usize], "anew", 8 * value, value);
    }
    drop(guests);
    lab.down().unwrap();
}

/// Whose connections are gone is not told, and must find out by itself.
#[test]
fn what_became_longer_meanwhile_is() {
    let (lab, mut guests) = begin("lengths-meanwhile");
    let mut growing = Growing::new(3);
    for value in 1..=40 {
        let (place, value) = growing.grow(&mut guests[0], value);
        look(&mut guests[1], "see", place, value);
        if growing.dice.roll(4) == 0 {
            pair::replace_gateway(&lab);
        } else {
            pair::cut_off(&lab, APPS[1]);
        }
        let (place, value) = growing.grow(&mut guests[0], 1000 + value);
        look(&mut guests[1], ["see", "send"][growing.dice.roll(2) as usize], place, value);
    }
    drop(guests);
    lab.down().unwrap();
}

/// A guest that appends takes the end for where it has put what it wrote.
#[test]
fn what_two_append_to_is_as_long_as_both_made_it() {
    let (lab, mut guests) = begin("lengths-appended");
    for round in 1..=200 {
        for guest in &mut guests {
            guest.tell(&format!("append {round}"));
        }
        guests.iter_mut().for_each(|guest| assert_eq!(guest.hear(), "done"));
        for (guest, how) in guests.iter_mut().zip(["see", "send"]) {
            look(guest, how, 16 * round, round);
        }
    }
    drop(guests);
    lab.down().unwrap();
}

/// A file is made long and then cut by one guest, and the other one writes to what is its last page now, through a mapping. What is behind
/// the end in that page stays behind it.
struct Cutting {
    dice: Dice,
    poke: &'static str,
}

impl Cutting {
    const MOST: u64 = 4 << 20;

    /// Makes the file long.
    fn begin(by: &mut Guest) {
        done(by, &format!("cut {}", Self::MOST));
    }

    /// Cuts it; returns where it ends.
    fn cut(&mut self, by: &mut Guest) -> u64 {
        let end = self.dice.roll(Self::MOST / 8 - 1) * 8 + 8;
        done(by, &format!("cut {end}"));
        end
    }

    /// Now and then has the other guest write behind the end, which it may not know: its kernel has the last page then, and reads only what lies
    /// behind that.
    fn write_behind(&mut self, by: &mut Guest, end: u64, value: u64) -> u64 {
        if self.dice.roll(2) == 0 {
            return end;
        }
        let further = end + self.dice.roll((Self::MOST - end) / 8) * 8 + 8;
        done(by, &format!("put {} {value}", further - 8));
        further
    }

    fn poke(&mut self, guests: &mut [Guest; 2], by: usize, end: u64, value: u64) {
        let (place, poke) = (end - 8, self.poke);
        done(&mut guests[by], &format!("{poke} {place} {value} {}", Self::MOST));
        assert_eq!(guests[1 - by].ask("length"), end.to_string(), "after {value} was put at {place}");
        look(&mut guests[1 - by], "see", place, value);
    }
}

#[test]
fn what_others_cut_ends_there_for_mappings_too() {
    let (lab, mut guests) = begin("lengths-cut");
    let mut cutting = Cutting { dice: Dice::new(4), poke: "poke" };
    for value in 1..=300 {
        let by = cutting.dice.roll(2) as usize;
        Cutting::begin(&mut guests[by]);
        let end = cutting.cut(&mut guests[by]);
        let end = cutting.write_behind(&mut guests[1 - by], end, value);
        cutting.poke(&mut guests, 1 - by, end, value);
    }
    drop(guests);
    lab.down().unwrap();
}

#[test]
fn what_was_cut_while_nobody_had_it_open_ends_there() {
    let (lab, mut guests) = begin("lengths-closed");
    let mut cutting = Cutting { dice: Dice::new(5), poke: "poke-anew" };
    done(&mut guests[1], "close");
    for value in 1..=100 {
        Cutting::begin(&mut guests[0]);
        let end = cutting.cut(&mut guests[0]);
        cutting.poke(&mut guests, 1, end, value);
    }
    drop(guests);
    lab.down().unwrap();
}

#[test]
fn what_was_cut_meanwhile_ends_there() {
    let (lab, mut guests) = begin("lengths-cut-off");
    let mut cutting = Cutting { dice: Dice::new(6), poke: "poke" };
    for value in 1..=30 {
        Cutting::begin(&mut guests[0]);
        if cutting.dice.roll(4) == 0 {
            pair::replace_gateway(&lab);
        } else {
            pair::cut_off(&lab, APPS[1]);
        }
        let end = cutting.cut(&mut guests[0]);
        let end = cutting.write_behind(&mut guests[1], end, value);
        cutting.poke(&mut guests, 1, end, value);
    }
    drop(guests);
    lab.down().unwrap();
}
