//! The command line of `mount.strongroom`: as mount(8) calls its helpers, and as people type it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::MountFlags;
use strongroom_channel::Address;

/// How long a call waits while the gateway is away, unless `deadline=` says otherwise.
const DEADLINE: Duration = Duration::from_secs(300);
/// Connections, unless `connections=` says otherwise: one for small requests, one for bulk.
const CONNECTIONS: usize = 2;
/// Most that may be asked for.
const MAX_CONNECTIONS: usize = 16;

/// What `mount.strongroom --help` shows.
pub const HELP: &str = "\
Usage: mount.strongroom CONTRACT DIR -o gateway=ADDRESS:PORT[,OPTION...]
       mount -t strongroom CONTRACT DIR -o gateway=ADDRESS:PORT[,OPTION...]

Mounts what a contract grants. Returns when the mount is usable.

Options (-o, separated by commas):
  gateway=ADDRESS:PORT  where the gateway listens, such as 10.77.0.1:7070 (required)
  key=FILE              the holder key; default: holder.key beside the contract
  deadline=SECONDS      how long a call may wait while the gateway is away, then
                        it fails with ETIMEDOUT; 0: for ever; default: 300
  wait=SECONDS          how long mounting itself waits for a gateway that is
                        away; default: 0
  connections=N         connections to the gateway, 1 to 16; default: 2
  no-awake              let this guest's processors halt between requests even
                        while they come thick
  no-fetch              use the contract file only, never a newer contract that
                        the gateway keeps for this key
  allow_other           let other users of this guest in (default for root)
  no-allow_other        let only the mounting user in
  uid=N, gid=N          whom the files appear to belong to where the contract
                        does not preserve ownership; default: the mounting user
  foreground            stay in the foreground
  log=FILE              write notable events there
  nonempty              mount even if DIR is not empty
  ro, suid, dev, noexec, noatime, sync, dirsync
                        as in mount(8); the defaults are nosuid and nodev

Switches:
  --foreground          as -o foreground
  -f                    check everything, connect, but do not mount
  -s                    ignore unknown options
  -n, -v                accepted, as mount(8) passes them
  -h, --help            show this
  -V, --version         show the version

Unmount with `umount DIR`, or `fusermount3 -u DIR` as an ordinary user.

Exit status: 0 success, 1 wrong usage, 2 system error, 32 the mount failed.
";

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// To mount.
    Mount(Box<Options>),
    /// To show the help.
    Help,
    /// To show the version.
    Version,
}

/// A mount to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The contract file.
    pub contract: PathBuf,
    /// Where to mount.
    pub dir: PathBuf,
    /// The key file.
    pub key: PathBuf,
    /// The gateway.
    pub gateway: Address,
    /// Whether other users are let in; `None`: root lets them in.
    pub allow_other: Option<bool>,
    /// Shown owner.
    pub uid: Option<u32>,
    /// Shown group.
    pub gid: Option<u32>,
    /// How long calls wait; `None`: for ever.
    pub deadline: Option<Duration>,
    /// How long to wait for the gateway before there is a mount.
    pub wait: Duration,
    /// Connections.
    pub connections: usize,
    /// Stay in the foreground.
    pub foreground: bool,
    /// The log file.
    pub log: Option<PathBuf>,
    /// Keep processors awake during bursts of requests.
    pub awake: bool,
    /// Take newer contracts from the gateway.
    pub fetch: bool,
    /// Do all but mount.
    pub fake: bool,
    /// Mount over what is in the directory.
    pub nonempty: bool,
    /// Flags of mount(2).
    pub flags: MountFlags,
}

/// A command line that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// Not two arguments.
    #[error(
        "give a contract file and a directory: `mount.strongroom CONTRACT DIR -o gateway=10.77.0.1:7070`"
    )]
    Arguments,
    /// A switch without its value.
    #[error("`{0}` needs a value")]
    Value(String),
    /// An unknown switch.
    #[error("there is no switch `{0}`; see `mount.strongroom --help`")]
    Switch(String),
    /// An unknown option.
    #[error("there is no option `{0}`; see `mount.strongroom --help` (or `-s` to ignore it)")]
    Option(String),
    /// A value that does not fit.
    #[error("`{option}`: {problem}")]
    Bad {
        /// As it was given.
        option: String,
        /// What is wrong.
        problem: String,
    },
    /// No gateway.
    #[error("say where the gateway listens: `-o gateway=10.77.0.1:7070`")]
    NoGateway,
}

struct Draft {
    key: Option<PathBuf>,
    gateway: Option<Address>,
    sloppy: bool,
    options: Options,
}

/// Reads a command line, without the program's name. Relative paths are made absolute in `directory`.
///
/// # Errors
/// [`UsageError`], naming what is wrong.
pub fn parse(arguments: impl IntoIterator<Item = OsString>, directory: &Path) -> Result<Command, UsageError> {
    let mut paths = vec![];
    let mut lists = vec![];
    let mut draft = Draft {
        key: None,
        gateway: None,
        sloppy: false,
        options: Options {
            contract: PathBuf::new(),
            dir: PathBuf::new(),
            key: PathBuf::new(),
            gateway: Address::Unix(PathBuf::new()),
            allow_other: None,
            uid: None,
            gid: None,
            wait: Duration::ZERO,
            deadline: Some(DEADLINE),
            connections: CONNECTIONS,
            foreground: false,
            log: None,
            awake: true,
            fetch: true,
            fake: false,
            nonempty: false,
            flags: MountFlags::NOSUID | MountFlags::NODEV,
        },
    };
    let mut arguments = arguments.into_iter();
    let mut only_paths = false;
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy().into_owned();
        if only_paths || !text.starts_with('-') || text == "-" {
            paths.push(directory.join(argument));
            continue;
        }
        let mut value = || arguments.next().ok_or_else(|| UsageError::Value(text.clone()));
        match text.as_str() {
            "--" => only_paths = true,
            "-h" | "--help" => return Ok(Command::Help),
            "-V" | "--version" => return Ok(Command::Version),
            "--foreground" => draft.options.foreground = true,
            "-o" => lists.push(value()?),
            // The namespace and the type are mount(8)'s business.
            "-N" | "-t" => drop(value()?),
            attached if attached.starts_with("-o") => lists.push(OsString::from(&attached[2..])),
            letters if !letters.starts_with("--") => draft.letters(letters)?,
            other => return Err(UsageError::Switch(other.to_owned())),
        }
    }
    for list in lists {
        for option in list.as_bytes().split(|byte| *byte == b',').filter(|option| !option.is_empty()) {
            draft.option(OsStr::from_bytes(option), directory)?;
        }
    }
    let [contract, dir] = <[PathBuf; 2]>::try_from(paths).map_err(|_| UsageError::Arguments)?;
    let gateway = draft.gateway.ok_or(UsageError::NoGateway)?;
    let key = draft.key.unwrap_or_else(|| contract.with_file_name("holder.key"));
    Ok(Command::Mount(Box::new(Options { contract, dir, key, gateway, ..draft.options })))
}

impl Draft {
    fn letters(&mut self, letters: &str) -> Result<(), UsageError> {
        for letter in letters.chars().skip(1) {
            match letter {
                's' => self.sloppy = true,
                'f' => self.options.fake = true,
                'n' | 'v' => {}
                'r' => self.options.flags |= MountFlags::RDONLY,
                'w' => self.options.flags -= MountFlags::RDONLY,
                _ => return Err(UsageError::Switch(letters.to_owned())),
            }
        }
        Ok(())
    }

    fn option(&mut self, option: &OsStr, directory: &Path) -> Result<(), UsageError> {
        let text = option.to_string_lossy();
        let bad = |problem: String| UsageError::Bad { option: text.clone().into_owned(), problem };
        let (name, value) = match option.as_bytes().iter().position(|byte| *byte == b'=') {
            Some(at) => {
                (&text[..text.find('=').unwrap_or(0)], Some(OsStr::from_bytes(&option.as_bytes()[at + 1..])))
            }
            None => (&*text, None),
        };
        let number = || -> Result<u64, UsageError> {
            value
                .and_then(OsStr::to_str)
                .and_then(|value| value.parse().ok())
                .ok_or_else(|| bad("a whole number is wanted".into()))
        };
        let id = || number().and_then(|id| u32::try_from(id).map_err(|_| bad("too large for an id".into())));
        let file = || match value {
            Some(path) if !path.is_empty() => Ok(directory.join(path)),
            _ => Err(bad("a file name is wanted".into())),
        };
        let options = &mut self.options;
        match (name, value.is_some()) {
            ("key", _) => self.key = Some(file()?),
            ("log", _) => options.log = Some(file()?),
            ("gateway", true) => {
                let address = value.map(OsStr::to_string_lossy).unwrap_or_default();
                self.gateway = Some(address.parse().map_err(|_| {
                    bad("an IP address and a port are wanted, such as gateway=10.77.0.1:7070".into())
                })?);
            }
            ("uid", _) => options.uid = Some(id()?),
            ("gid", _) => options.gid = Some(id()?),
            ("deadline", _) => {
                options.deadline = Some(number()?).filter(|secs| *secs > 0).map(Duration::from_secs);
            }
            ("wait", _) => options.wait = Duration::from_secs(number()?),
            ("connections", _) => {
                options.connections = usize::try_from(number()?)
                    .ok()
                    .filter(|count| (1..=MAX_CONNECTIONS).contains(count))
                    .ok_or_else(|| bad(format!("1 to {MAX_CONNECTIONS} are possible")))?;
            }
            ("foreground", false) => options.foreground = true,
            ("no-awake", false) => options.awake = false,
            ("no-fetch", false) => options.fetch = false,
            ("nonempty", false) => options.nonempty = true,
            ("allow_other", false) => options.allow_other = Some(true),
            ("no-allow_other", false) => options.allow_other = Some(false),
            (flag, false) if set_flag(&mut options.flags, flag) => {}
            (noise, _) if is_noise(noise) => {}
            _ if self.sloppy => {}
            _ => return Err(UsageError::Option(text.into_owned())),
        }
        Ok(())
    }
}

fn set_flag(flags: &mut MountFlags, name: &str) -> bool {
    let (flag, on) = match name {
        "ro" => (MountFlags::RDONLY, true),
        "rw" => (MountFlags::RDONLY, false),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        _ => return false,
    };
    flags.set(flag, on);
    true
}

/// Options that fstab(5) lines carry for others: mount(8), systemd, the boot.
fn is_noise(name: &str) -> bool {
    const NOISE: [&str; 26] = [
        "defaults",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "nofail",
        "_netdev",
        "comment",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "lazytime",
        "nolazytime",
        "diratime",
        "nodiratime",
        "mand",
        "nomand",
        "silent",
        "loud",
        "iversion",
        "noiversion",
        "_rnetdev",
    ];
    NOISE.contains(&name) || name.starts_with("x-") || name.starts_with("X-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, UsageError> {
        parse(line.split_whitespace().map(OsString::from), Path::new("/here"))
    }

    fn mount(line: &str) -> Options {
        match read(line).unwrap() {
            Command::Mount(options) => *options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn as_people_type_it() {
        let options = mount("mail.contract /mnt -o gateway=10.77.0.1:7070");
        assert_eq!(options.contract, Path::new("/here/mail.contract"));
        assert_eq!(options.key, Path::new("/here/holder.key"));
        assert_eq!(options.dir, Path::new("/mnt"));
        assert_eq!(options.gateway.to_string(), "10.77.0.1:7070");
        assert_eq!(options.deadline, Some(DEADLINE));
        assert_eq!(options.flags, MountFlags::NOSUID | MountFlags::NODEV);
        assert!(options.fetch && options.awake && !options.foreground && !options.fake);
    }

    #[test]
    fn as_mount_8_calls_it() {
        let line = "/etc/strongroom/mail.contract /mnt -sfnv -N /proc/1/ns/mnt -t strongroom -o \
                    rw,nofail,_netdev,x-systemd.automount,suid,dev,gateway=10.77.0.1:7070,deadline=0,key=/k,what=ever";
        let options = mount(line);
        assert!(options.fake);
        assert_eq!(options.flags, MountFlags::empty());
        assert_eq!(options.deadline, None);
        assert_eq!(options.key, Path::new("/k"));
    }

    #[test]
    fn every_option_takes_effect() {
        let options = mount(
            "c d -o gateway=[fd00::1]:7 -ouid=5,gid=6,connections=4,wait=9,log=l,no-fetch,no-awake,allow_other,nonempty,foreground,ro,noexec",
        );
        assert_eq!((options.uid, options.gid, options.connections), (Some(5), Some(6), 4));
        assert_eq!(options.wait, Duration::from_secs(9));
        assert_eq!(options.log.as_deref(), Some(Path::new("/here/l")));
        assert_eq!(options.allow_other, Some(true));
        assert!(!options.fetch && !options.awake && options.nonempty && options.foreground);
        assert!(options.flags.contains(MountFlags::RDONLY | MountFlags::NOEXEC));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |line: &str| read(line).unwrap_err().to_string();
        assert_eq!(read("c d").unwrap_err(), UsageError::NoGateway);
        assert_eq!(read("c").unwrap_err(), UsageError::Arguments);
        assert_eq!(read("c d e -o gateway=1.2.3.4:5").unwrap_err(), UsageError::Arguments);
        assert!(wrong("c d -o gateway=there").contains("gateway=there"));
        assert!(wrong("c d -o gateway=1.2.3.4:5,deadline=soon").contains("deadline=soon"));
        assert!(wrong("c d -o gateway=1.2.3.4:5,connections=17").contains("1 to 16"));
        assert!(wrong("c d -o gateway=1.2.3.4:5,uid=4294967296").contains("uid"));
        assert!(wrong("c d -o gatewya=1.2.3.4:5").contains("gatewya"));
        assert!(wrong("c d -o key=").contains("key="));
        assert!(wrong("c d -o").contains("-o"));
        assert!(wrong("c d -q").contains("-q"));
        assert!(wrong("c d --wat").contains("--wat"));
        assert!(matches!(read("--help").unwrap(), Command::Help));
        assert!(matches!(read("-V").unwrap(), Command::Version));
    }
}
