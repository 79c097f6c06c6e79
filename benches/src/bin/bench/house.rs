//! The house that a run needs: a lab with one application, an ssh server beside the gateway, and a data root on disk
//! with a directory for each target. Everything goes when the value is dropped.

use std::fs;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use strongroom_tests::lab::{Lab, LabName, Options as LabOptions};
use tempfile::TempDir;

use crate::options::Options;
use crate::peer::Peer;
use crate::target::{Guest, Target};

/// Where the storage guest sees the data root.
pub(crate) const EXPORT_IN_GUEST: &str = "/srv/strongroom/data";
/// The ssh keys and settings, in both guests.
pub(crate) const SSH_IN_GUEST: &str = "/tmp/bench-ssh";
pub(crate) const SSH_PORT: u16 = 2222;
/// The storage guest, as app guests reach it.
pub(crate) const STORAGE_ADDRESS: &str = "10.77.0.1";
/// Where [`crate::limits`] measures the network.
pub(crate) const ECHO_PORT: u16 = 5201;

const APP: &str = "bench";

const POLICY: &str = "application = \"bench\"\n\
     lifetime = \"8h\"\n\
     \n\
     [[grant]]\n\
     path = \"strongroom\"\n\
     mount = \"/bench\"\n\
     rights = \"read-write\"\n";

const SSHD_SETTINGS: &str = "Port 2222\n\
     ListenAddress 10.77.0.1\n\
     HostKey /tmp/bench-ssh/host\n\
     AuthorizedKeysFile /tmp/bench-ssh/authorized\n\
     PidFile none\n\
     PermitRootLogin prohibit-password\n\
     PasswordAuthentication no\n\
     StrictModes no\n\
     UsePAM no\n";

/// Everything that a run stands on.
pub(crate) struct House {
    // Dropped in this order: nothing uses the data when it goes.
    lab: Lab,
    _policy: TempDir,
    data: TempDir,
    program: PathBuf,
}

impl House {
    pub(crate) fn build(targets: &[Target], options: &Options) -> Result<Self> {
        check_needs(targets)?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let programs = program.parent().context("this program's file has no directory")?.to_owned();
        // On a disk: /tmp is often in memory, where nothing costs what it costs.
        let data = tempfile::Builder::new()
            .prefix("strongroom-bench-")
            .tempdir_in("/var/tmp")
            .context("cannot make a data root in `/var/tmp`")?;
        for target in targets {
            fs::create_dir(data.path().join(target.data())).context("cannot fill the data root")?;
        }
        let policy = tempfile::tempdir().context("cannot make a directory for the policy")?;
        let undo = if options.undo { "undo = \"7d\"\n" } else { "" };
        let detection = if options.no_detection { "\n[detection]\nverdict = \"off\"\n" } else { "" };
        fs::write(policy.path().join("bench.toml"), format!("{POLICY}{undo}{detection}"))
            .context("cannot write the policy")?;

        let name: LabName = format!("bench-{}", std::process::id())
            .parse()
            .map_err(|error: String| anyhow::anyhow!(error))?;
        let lab = LabOptions {
            policy: Some(policy.path().to_owned()),
            data: Some(data.path().to_owned()),
            // Without our own column the rest can be measured alone.
            empty: !targets.contains(&Target::Strongroom),
            open_ports: open_ports(targets),
            awake: !options.no_awake,
            shares: vec![programs],
            ..LabOptions::named(name)
        };
        let lab = Lab::up(&lab).context("cannot bring the lab up")?;
        let house = Self { lab, _policy: policy, data, program };
        house.check_mount()?;
        if targets.iter().any(|target| matches!(target, Target::Sshfs | Target::SshfsTuned)) {
            house.start_sshd().context("cannot start sshd in the storage guest")?;
        }
        for target in targets {
            if let Some(peer) = target.peer() {
                let dir = format!("{EXPORT_IN_GUEST}/{}", target.data());
                house.start_peer(peer, &dir).with_context(|| format!("cannot start {}", target.title()))?;
            }
        }
        Ok(house)
    }

    fn check_mount(&self) -> Result<()> {
        for guest in self.lab.status()?.guests {
            if let Some(problem) = guest.problem {
                bail!("guest `{}` of the lab: {problem}", guest.name);
            }
        }
        Ok(())
    }

    /// This program, playing `role` in a guest.
    pub(crate) fn role(&self, guest: Guest, role: &[&str]) -> Result<Command> {
        let program = self.program.to_str().context("this program's path is not UTF-8")?;
        let command = std::iter::once(program).chain(role.iter().copied());
        Ok(self.command(guest, command))
    }

    fn command<'a>(&self, guest: Guest, command: impl IntoIterator<Item = &'a str>) -> Command {
        let command = match guest {
            Guest::App => self.lab.app(APP, command),
            Guest::Storage => self.lab.storage(command),
        };
        command.cwd("/tmp").into_command()
    }

    /// The network namespace of a guest, as `/proc/self/ns/net` names it.
    pub(crate) fn network(&self, guest: Guest) -> Result<String> {
        self.run(guest, &["readlink", "/proc/self/ns/net"])
    }

    /// The data root on the host.
    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    /// Free whatever hangs on the mount at `point` of the app guest, for a worker that gave no sign of life.
    pub(crate) fn break_mount(&self, guest: Guest, point: &str) -> Result<String> {
        self.run(guest, &["umount", "--force", "--lazy", point])
    }

    /// Take the lab down and say what could not be cleared away.
    pub(crate) fn clear(self) -> Result<()> {
        let Self { lab, _policy: policy, data, .. } = self;
        lab.down()?;
        policy.close().context("cannot remove the policy")?;
        data.close().context("cannot remove the data root")
    }

    /// Run a command in a guest to its end; what it printed.
    fn run(&self, guest: Guest, command: &[&str]) -> Result<String> {
        self.run_with(guest, command, "")
    }

    /// The same with something on its standard input.
    fn run_with(&self, guest: Guest, command: &[&str], input: &str) -> Result<String> {
        // Files, not pipes: a daemon that stays behind may keep them open for ever.
        let mut stdin = tempfile::tempfile()?;
        stdin.write_all(input.as_bytes()).and_then(|()| stdin.rewind())?;
        let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let name = || match command {
            ["sh", _, _, rest @ ..] => rest.join(" "),
            all => all.join(" "),
        };
        let status = self
            .command(guest, command.iter().copied())
            .stdin(stdin)
            .stdout(out.try_clone()?)
            .stderr(err.try_clone()?)
            .status()
            .with_context(|| format!("cannot run `{}` in the lab", name()))?;
        let mut text = String::new();
        if !status.success() {
            err.rewind().and_then(|()| err.read_to_string(&mut text))?;
            bail!("`{}`: {}", name(), text.trim());
        }
        out.rewind().and_then(|()| out.read_to_string(&mut text))?;
        Ok(text.trim().to_owned())
    }

    fn start_peer(&self, peer: &Peer, dir: &str) -> Result<()> {
        let for_clients =
            self.run(Guest::Storage, &["sh", "-c", peer.script, "peer", "serve", STORAGE_ADDRESS, dir])?;
        self.run_with(Guest::App, &["sh", "-c", peer.script, "peer", "join"], &for_clients).map(drop)
    }

    fn start_sshd(&self) -> Result<()> {
        let shell = |guest, script: &str, arguments: &[&str]| {
            let mut words = vec!["sh", "-ec", script];
            words.extend_from_slice(arguments);
            self.run(guest, &words)
        };
        let key = shell(
            Guest::App,
            "mkdir -m 700 -p \"$0\"; ssh-keygen -q -t ed25519 -N '' -f \"$0/id\"; cat \"$0/id.pub\"",
            &[SSH_IN_GUEST],
        )?;
        // sshd takes an account without a line in /etc/shadow for a locked one; the guest's /etc is its own.
        let host_key = shell(
            Guest::Storage,
            "mkdir -m 700 -p \"$0\"; mkdir -p /run/sshd; ssh-keygen -q -t ed25519 -N '' -f \"$0/host\"\n\
             printf '%s\\n' \"$1\" > \"$0/authorized\"\n\
             printf 'root:*:19000:0:99999:7:::\\n' > /etc/shadow; chmod 600 /etc/shadow\n\
             sftp=$(ls /usr/lib/openssh/sftp-server /usr/libexec/openssh/sftp-server /usr/lib/ssh/sftp-server 2>/dev/null | head -n 1)\n\
             printf '%sSubsystem sftp %s\\n' \"$2\" \"$sftp\" > \"$0/config\"\n\
             \"$(command -v sshd)\" -f \"$0/config\" -E \"$0/log\"\n\
             cut -d ' ' -f 1,2 \"$0/host.pub\"",
            &[SSH_IN_GUEST, &key, SSHD_SETTINGS],
        )?;
        shell(
            Guest::App,
            "printf '[storage]:%s %s\\n' \"$1\" \"$2\" > \"$0/known\"",
            &[SSH_IN_GUEST, &SSH_PORT.to_string(), &host_key],
        )?;
        Ok(())
    }
}

/// Programs that workloads run, and the Debian packages they are in.
const TOOLS: [(&str, &str); 5] =
    [("git", "git"), ("sqlite3", "sqlite3"), ("tar", "tar"), ("find", "findutils"), ("grep", "grep")];

fn open_ports(targets: &[Target]) -> Vec<u16> {
    let peers = targets.iter().filter_map(|target| target.peer());
    let ports = peers.flat_map(|peer| peer.ports.iter().cloned().flatten());
    [SSH_PORT, ECHO_PORT].into_iter().chain(ports).collect()
}

fn check_needs(targets: &[Target]) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the bench needs root: it measures across guests, and an ssh server does not run in a user namespace"
        );
    }
    let needed = targets.iter().flat_map(|target| target.needs()).chain(&TOOLS);
    let mut missing: Vec<&str> =
        needed.filter(|(tool, _)| !is_installed(tool)).map(|(_, package)| *package).collect();
    missing.sort_unstable();
    missing.dedup();
    if !missing.is_empty() {
        bail!(
            "programs are missing: `apt-get install {}`, or leave columns out with `--targets`",
            missing.join(" ")
        );
    }
    Ok(())
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|directory| directory.join(program).is_file())
}
