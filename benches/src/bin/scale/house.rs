//! A gateway of its own with a data root on disk. Everything goes when the value is dropped.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use strongroom_contracts::terms::VERSION;
use strongroom_contracts::{
    Audit, Chain, ContractId, Detection, GatewayId, Grant, Ownership, PolicyDigest, PublicKey, Rights,
    SecretKey, SessionLimits, Terms, UndoSpace, keys,
};
use tempfile::TempDir;

use crate::fresh_key;
use crate::guest::Guest;

/// Where the data of the only grant lie.
const DATA: &str = "files";
/// How long the gateway may take to start: a ledger of a million revocations is read first.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct House {
    dir: TempDir,
    key: SecretKey,
    issuer: SecretKey,
    address: SocketAddr,
    child: Option<Child>,
}

impl House {
    /// A running gateway that lets so many sessions live.
    pub(crate) fn start(sessions: u32) -> Result<House> {
        let mut house = House::prepare(sessions)?;
        house.launch()?;
        Ok(house)
    }

    /// The same, not running yet.
    pub(crate) fn prepare(sessions: u32) -> Result<House> {
        // On a disk: /tmp is often in memory.
        let dir = tempfile::Builder::new()
            .prefix("strongroom-scale-")
            .tempdir_in("/var/tmp")
            .context("cannot make a directory in `/var/tmp`")?;
        // An address of this process's own.
        let pid = std::process::id();
        let ip = Ipv4Addr::new(127, (pid >> 16) as u8 | 0x80, (pid >> 8) as u8, pid as u8 | 1);
        let house = House {
            key: fresh_key()?,
            issuer: fresh_key()?,
            address: SocketAddr::new(ip.into(), 7070),
            child: None,
            dir,
        };
        fs::create_dir_all(house.path("data").join(DATA))?;
        fs::create_dir(house.path("state"))?;
        house.write_config(sessions)?;
        Ok(house)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_config(&self, sessions: u32) -> Result<()> {
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        let mut key = options.open(self.path("gateway.key"))?;
        std::io::Write::write_all(&mut key, self.key.to_file_text().as_bytes())?;
        let text = format!(
            "data = \"data\"\nstate = \"state\"\nkey = \"gateway.key\"\nissuer = \"{}\"\nadmin-keys = [\"{}\"]\n\n\
             [listen]\ninterface = \"lo\"\nnetwork = \"127.0.0.0/8\"\naddress = \"{}\"\nadmin = \"{}:7071\"\n\n\
             [limits]\nsessions = {sessions}\npending-per-address = 1000\nsession-grace = \"1h\"\n",
            self.issuer.public(),
            fresh_key()?.public(),
            self.address,
            self.address.ip(),
        );
        fs::write(self.path("gateway.toml"), text).context("cannot write the gateway's configuration")
    }

    /// Starts the gateway, and waits until it takes connections.
    pub(crate) fn launch(&mut self) -> Result<()> {
        let program = std::env::current_exe()?.with_file_name("strongroom-gateway");
        let log = File::create(self.path("log"))?;
        let child = Command::new(&program)
            .arg("--config")
            .arg(self.path("gateway.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start `{}`", program.display()))?;
        let child = self.child.insert(child);
        let began = Instant::now();
        while std::net::TcpStream::connect(self.address).is_err() {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "the gateway ended with {status}: {}",
                    fs::read_to_string(self.dir.path().join("log"))?
                );
            }
            if began.elapsed() > PATIENCE {
                bail!("the gateway does not listen after {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.path("state").join("ledger.redb")
    }

    pub(crate) fn gateway_id(&self) -> GatewayId {
        self.key.public().gateway_id()
    }

    /// Where file `number` lies: its directory below the grant (empty: the grant itself), and its name.
    pub(crate) fn place(per_directory: u64, number: u64) -> (String, String) {
        let directory = match number.checked_div(per_directory) {
            Some(directory) if per_directory != u64::MAX => format!("d{directory}"),
            _ => String::new(),
        };
        (directory, format!("f{number}"))
    }

    /// Makes files, as an administrator would.
    pub(crate) fn fill(&self, per_directory: u64, numbers: Range<u64>) -> Result<()> {
        let top = self.path("data").join(DATA);
        for number in numbers {
            let (directory, name) = House::place(per_directory, number);
            let directory = top.join(directory);
            let path = directory.join(name);
            if File::create(&path).is_err() {
                fs::create_dir_all(&directory)
                    .and_then(|()| File::create(&path))
                    .with_context(|| format!("cannot make `{}`", path.display()))?;
            }
        }
        Ok(())
    }

    /// A guest with a key and a session of its own.
    pub(crate) fn guest(&self) -> Result<Guest> {
        let key = fresh_key()?;
        let chain = self.contract(&key.public())?;
        Guest::enter(&key, self.gateway_id(), self.address, &chain.to_bytes()?)
    }

    fn contract(&self, holder: &PublicKey) -> Result<Chain> {
        let grant = Grant {
            data: DATA.parse()?,
            mount: "/files".parse()?,
            rights: Rights::READ_WRITE,
            quota_bytes: None,
            quota_files: None,
            max_file_bytes: None,
            undo_secs: 0,
            ownership: Ownership::Single,
        };
        let terms = Terms {
            version: VERSION,
            id: ContractId::from_bytes(keys::random()?),
            issuer: self.issuer.public().id(),
            application: "scale".parse()?,
            holder: *holder,
            gateway: self.gateway_id(),
            generation: 1,
            not_before: now() - 60,
            expires: now() + 8 * 3600,
            grants: vec![grant],
            limits: SessionLimits::default(),
            networks: None,
            audit: Audit::Normal,
            undo: UndoSpace::default(),
            detection: Detection::default(),
            policy: PolicyDigest::of("scale"),
        };
        Chain::issue(&terms, &self.issuer).context("cannot sign a contract")
    }

    /// Processor time that the gateway has used so far, in nanoseconds. Left out is the thread that hears of changes behind the
    /// gateway's back: it hears of everything that anybody does on that disk.
    pub(crate) fn processor_ns(&self) -> Result<u64> {
        let pid = self.child.as_ref().map(Child::id).context("the gateway does not run")?;
        let mut total = 0;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = thread?.path();
            // It may have ended since.
            let Ok(name) = fs::read_to_string(thread.join("comm")) else { continue };
            if name.trim() == "outside" {
                continue;
            }
            let Ok(line) = fs::read_to_string(thread.join("schedstat")) else { continue };
            total += line.split_whitespace().next().context("an empty schedstat")?.parse::<u64>()?;
        }
        Ok(total)
    }

    /// The memory that the gateway holds now.
    pub(crate) fn memory_kib(&self) -> Result<u64> {
        let pid = self.child.as_ref().map(Child::id).context("the gateway does not run")?;
        let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in /proc")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
