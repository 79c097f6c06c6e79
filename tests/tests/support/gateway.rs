//! The real gateway as a child process on an address of its own in 127.0.0.0/8.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use strongroom_contracts::terms::VERSION;
use strongroom_contracts::{
    Audit, Chain, ContractId, Detection, GatewayId, Grant, Ownership, PolicyDigest, PublicKey, Rights,
    SecretKey, SessionLimits, Terms, UndoSpace, keys,
};
use tempfile::TempDir;

use super::admin::Admin;
use super::wait_for;

const NATIVE_PORT: u16 = 7070;
const ADMIN_PORT: u16 = 7071;

/// What only bob may know.
pub const SECRET: &[u8] = b"bob's secret: nobody else may read this line\n";

pub struct Gateway {
    pub address: SocketAddr,
    pub admin_address: SocketAddr,
    pub key: SecretKey,
    pub issuer: SecretKey,
    pub admin: SecretKey,
    child: Option<Child>,
    dir: TempDir,
}

impl Gateway {
    /// A running gateway with the usual data.
    pub fn start() -> Gateway {
        Gateway::with("")
    }

    /// The same with more lines of `gateway.toml` (tables).
    pub fn with(tables: &str) -> Gateway {
        let dir = tempfile::Builder::new().prefix("strongroom-test-").tempdir().unwrap();
        let ip = own_ip();
        let mut gateway = Gateway {
            address: SocketAddr::new(ip, NATIVE_PORT),
            admin_address: SocketAddr::new(ip, ADMIN_PORT),
            key: SecretKey::generate().unwrap(),
            issuer: SecretKey::generate().unwrap(),
            admin: SecretKey::generate().unwrap(),
            child: None,
            dir,
        };
        gateway.make_data();
        gateway.write_config(tables);
        gateway.launch();
        gateway
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The data root, or a path below it.
    pub fn data(&self, path: &str) -> PathBuf {
        self.dir.path().join("data").join(path)
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn id(&self) -> GatewayId {
        self.key.public().gateway_id()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the gateway runs").id()
    }

    fn make_data(&self) {
        for directory in
            ["users/alice/Mail/inbox", "users/alice/Photos", "users/alice/Documents", "users/bob", "shared"]
        {
            fs::create_dir_all(self.data(directory)).unwrap();
        }
        for (file, text) in [
            ("users/alice/Mail/inbox/1", &b"a letter\n"[..]),
            ("users/alice/Photos/cat.jpg", b"not really a picture\n"),
            ("users/alice/Documents/report", b"a report\n"),
            ("users/bob/secret", SECRET),
            ("shared/note", b"a note for both\n"),
        ] {
            fs::write(self.data(file), text).unwrap();
        }
    }

    fn write_config(&self, tables: &str) {
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        let mut key = options.open(self.dir.path().join("gateway.key")).unwrap();
        std::io::Write::write_all(&mut key, self.key.to_file_text().as_bytes()).unwrap();
        let text = format!(
            "data = \"data\"\nstate = \"state\"\nkey = \"gateway.key\"\nissuer = \"{}\"\nadmin-keys = [\"{}\"]\n\n\
             [listen]\ninterface = \"lo\"\nnetwork = \"127.0.0.0/8\"\naddress = \"{}\"\nadmin = \"{}\"\n\n{tables}\n",
            self.issuer.public(),
            self.admin.public(),
            self.address,
            self.admin_address,
        );
        fs::write(self.dir.path().join("gateway.toml"), text).unwrap();
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("gateway.log")
    }

    fn launch(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        // The kernel ends the gateway with the thread that started it, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program("strongroom-gateway"))
            .arg("--config")
            .arg(self.dir.path().join("gateway.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("`setpriv` (util-linux) starts the gateway");
        self.child = Some(child);
        wait_for("the gateway answers at its admin door", || {
            let child = self.child.as_mut().unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the gateway ended with {status}:\n{}", fs::read_to_string(self.log()).unwrap());
            }
            Admin::connect(self).and_then(|mut admin| admin.status())
        });
    }

    /// Ends the process as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; waiting says so.
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// `kill -9`, and a new process on the same state.
    pub fn restart(&mut self) {
        self.kill();
        self.launch();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// The most memory that the process has held, in KiB.
    pub fn peak_memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub fn admin(&self) -> Admin {
        Admin::connect(self).expect("the admin door lets its administrator in")
    }

    /// Terms of a contract, to be changed at will before signing.
    pub fn terms(&self, application: &str, holder: &PublicKey, grants: &[Grant]) -> Terms {
        Terms {
            version: VERSION,
            id: ContractId::from_bytes(keys::random().unwrap()),
            issuer: self.issuer.public().id(),
            application: application.parse().unwrap(),
            holder: *holder,
            gateway: self.id(),
            generation: 1,
            not_before: now() - 60,
            expires: now() + 3600,
            grants: grants.to_vec(),
            limits: SessionLimits::default(),
            networks: None,
            audit: Audit::Normal,
            undo: UndoSpace::default(),
            detection: Detection::default(),
            policy: PolicyDigest::of("test"),
        }
    }

    /// A good contract.
    pub fn contract(&self, application: &str, holder: &PublicKey, grants: &[Grant]) -> Chain {
        Chain::issue(&self.terms(application, holder, grants), &self.issuer).unwrap()
    }

    /// The audit lines so far.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.state().join("audit.jsonl")).unwrap_or_default();
        text.lines()
            .filter(|line| !line.is_empty())
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits for an audit line with these members, each containing the text given.
    pub fn wait_audit(&self, members: &[(&str, &str)]) -> serde_json::Value {
        let fits = |line: &serde_json::Value| {
            members.iter().all(|(key, text)| line[*key].as_str().is_some_and(|value| value.contains(text)))
        };
        let mut last = vec![];
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("an audit line", || {
                last = self.audit();
                last.iter().find(|line| fits(line)).cloned()
            })
        }));
        found.unwrap_or_else(|_| {
            let tail: Vec<_> = last.iter().rev().take(12).map(ToString::to_string).collect();
            panic!("no audit line has {members:?}; the last ones are\n{}", tail.join("\n"))
        })
    }

    /// All that lies below a path of the data root: name, type, mode, size, contents or target.
    pub fn snapshot(&self, path: &str) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        walk(&self.data(path), &mut found);
        found
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            eprintln!("--- what the gateway said\n{log}---");
        }
    }
}

fn walk(path: &Path, found: &mut BTreeMap<PathBuf, String>) {
    let meta = fs::symlink_metadata(path).unwrap();
    let contents = if meta.is_file() {
        format!("{:?} mtime {}.{}", fs::read(path).unwrap(), meta.mtime(), meta.mtime_nsec())
    } else if meta.is_symlink() {
        format!("-> {}", fs::read_link(path).unwrap().display())
    } else {
        String::new()
    };
    let line =
        format!("{:o} uid {} links {} size {} {contents}", meta.mode(), meta.uid(), meta.nlink(), meta.len());
    found.insert(path.to_owned(), line);
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            walk(&entry.unwrap().path(), found);
        }
    }
}

/// An address of the loopback network that nobody else serves on.
fn own_ip() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let n =
            std::process::id().wrapping_mul(0x9e37_79b1).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let [_, a, b, c] = n.to_be_bytes();
        // 127.0.0.x is where tests put their clients.
        let ip = Ipv4Addr::new(127, a.clamp(1, 254), b, c.clamp(1, 254));
        if TcpListener::bind((ip, NATIVE_PORT)).is_ok() && TcpListener::bind((ip, ADMIN_PORT)).is_ok() {
            return ip.into();
        }
    }
}

/// A program of this workspace, built beside this test.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let near = own.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    near.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
        panic!(
            "there is no `{name}` beside {}: run `cargo build --workspace --bins` first, or `make test`",
            own.display()
        )
    })
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// A grant without limits.
pub fn grant(data: &str, mount: &str, rights: Rights) -> Grant {
    Grant {
        data: data.parse().unwrap(),
        mount: mount.parse().unwrap(),
        rights,
        quota_bytes: None,
        quota_files: None,
        max_file_bytes: None,
        undo_secs: 0,
        ownership: Ownership::Single,
    }
}
