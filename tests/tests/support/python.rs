//! Python in a guest, statement by statement: system calls that no program at hand makes in the way a test wants them.

#![allow(dead_code, reason = "each test program uses its part")]

use std::process::Command;

use strongroom_tests::lab::Lab;

use crate::pair::Guest;

/// One line, one piece of code as hexadecimal digits; one line, what it came to: the last expression's value (`repr`), or the name of the error
/// number.
const LOOP: &str = r#"
import ast, ctypes, errno, fcntl, mmap, os, select, signal, stat, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def system(name, *arguments):
    answer = getattr(libc, name)(*arguments)
    if answer == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return answer
# Numbers with two names, of which Python prefers the other.
errno.errorcode |= {errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EDEADLK: "EDEADLK"}
scope = dict(globals())
for line in sys.stdin:
    try:
        tree = ast.parse(bytes.fromhex(line).decode())
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "told", "exec"), scope)
        answer = None if last is None else eval(compile(ast.Expression(last.value), "told", "eval"), scope)
        answer = repr(answer)
    except OSError as error:
        answer = errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        answer = f"{type(error).__name__}: {error}".replace("\n", " ")
    print(answer, flush=True)
"#;

/// A Python in a guest, which starts in `/mnt/work`.
pub struct Python(Guest);

impl Python {
    pub fn start(lab: &Lab, app: &str) -> Python {
        Python(Guest::start(lab, app, &["/usr/bin/python3", "-c", LOOP]))
    }

    /// Both guests.
    pub fn pair(lab: &Lab) -> [Python; 2] {
        crate::pair::APPS.map(|app| Python::start(lab, app))
    }

    /// Does not wait for the answer.
    pub fn tell(&mut self, code: &str) {
        let digits: String = code.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.0.tell(&digits);
    }

    pub fn hear(&mut self) -> String {
        self.0.hear()
    }

    /// What the last expression of `code` is.
    pub fn ask(&mut self, code: &str) -> String {
        self.tell(code);
        self.hear()
    }

    /// Code that must work.
    #[track_caller]
    pub fn run(&mut self, code: &str) {
        let answer = self.ask(&format!("{code}\n\"done\""));
        assert_eq!(answer, "'done'", "{code}");
    }
}

/// Runs a test again in a mount namespace of its own, as root: true in there.
pub fn in_own_mounts(test: &str) -> bool {
    const INSIDE: &str = "STRONGROOM_TEST_OWN_MOUNTS";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/loop-control").exists() {
        eprintln!("{test} needs root and loop devices, and was left out");
        return false;
    }
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test}: {status}");
    false
}
