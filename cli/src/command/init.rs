//! `contract init`: the keys and files of a base domain and its gateway.

use std::fs::DirBuilder;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf, absolute};

use clap::Args;
use serde_json::json;
use strongroom_contracts::{Network, SecretKey};
use toml_edit::Value;

use super::Context;
use crate::admin::Address;
use crate::failure::Failure;
use crate::files::{self, Existing, PUBLIC};
use crate::keys;
use crate::output::Report;

const SAMPLES: [(&str, &str); 2] =
    [("mail.toml", include_str!("samples/mail.toml")), ("editor.toml", include_str!("samples/editor.toml"))];

/// Make the keys and files of a new base domain and of its gateway
///
/// Writes the issuer's key and the administrator's key (DIR/base), sample policies (DIR/policy.d), and the gateway's key
/// and configuration (DIR/gateway), which are to be moved to the storage guest. Nothing that exists is replaced.
#[derive(Debug, Args)]
pub(super) struct Init {
    /// The base directory to make [default: as --dir]
    #[arg(value_name = "DIR")]
    target: Option<PathBuf>,
    /// The gateway's address on the app guests' network
    #[arg(long, value_name = "ADDR:PORT", default_value = "10.77.0.1:7070")]
    address: SocketAddr,
    /// The gateway's interface on that network
    #[arg(long, value_name = "IF", default_value = "eth0")]
    interface: String,
    /// The app guests' network [default: the /24 (IPv6: /64) of --address]
    #[arg(long, value_name = "CIDR")]
    network: Option<Network>,
    /// The gateway's admin door, on a network of the base domain and the storage guest alone, or a Unix socket
    #[arg(long, value_name = "ADDR:PORT|unix:/PATH", default_value = "10.78.0.1:7071")]
    admin: Address,
    /// The gateway's interface on the admin network
    #[arg(long, value_name = "IF", default_value = "eth1")]
    admin_interface: String,
    /// The admin network [default: the /24 (IPv6: /64) of --admin]
    #[arg(long, value_name = "CIDR")]
    admin_network: Option<Network>,
    /// Where the storage guest keeps the users' data
    #[arg(long, value_name = "PATH", default_value = "/srv/strongroom")]
    data: PathBuf,
    /// Where the gateway keeps its ledger and audit log, outside the data
    #[arg(long, value_name = "PATH", default_value = "/var/lib/strongroom")]
    state: PathBuf,
    /// Leave policy.d empty
    #[arg(long)]
    no_sample_policy: bool,
}

impl Init {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let dir = self.target.as_deref().unwrap_or(context.dir());
        let network = covering("--network", self.network, self.address.ip())?;
        let admin_network = match &self.admin {
            Address::Tcp(admin) => Some(covering("--admin-network", self.admin_network, admin.ip())?),
            Address::Unix(_) => None,
        };
        let room = Room::make(dir)?;
        let keys = Keys {
            issuer: SecretKey::generate().map_err(Failure::other)?,
            admin: SecretKey::generate().map_err(Failure::other)?,
            gateway: SecretKey::generate().map_err(Failure::other)?,
        };
        self.write_base(&room, &keys)?;
        self.write_gateway(&room, &keys, network, admin_network)?;
        let samples = self.write_policies(&room, dir)?;
        room.publish(dir)?;
        Ok(self.report(dir, &keys, samples))
    }

    fn write_base(&self, room: &Room, keys: &Keys) -> Result<(), Failure> {
        let base = room.folder("base", 0o700)?;
        keys::write_pair(&keys.issuer, &base.join("issuer.key"), Existing::Keep)?;
        keys::write_pair(&keys.admin, &base.join("admin.key"), Existing::Keep)?;
        let text = format!(
            "# The gateway: its public key, and the address of its admin door.\ngateway = {}\nadmin = {}\n",
            quoted(&keys.gateway.public()),
            quoted(&self.admin),
        );
        files::write(&base.join("base.toml"), &text, PUBLIC, Existing::Keep)?;
        let recovery = include_str!("samples/recovery.toml");
        files::write(&base.join("recovery.toml"), recovery, PUBLIC, Existing::Keep)?;
        room.folder("issued", 0o700)?;
        Ok(())
    }

    fn write_gateway(
        &self,
        room: &Room,
        keys: &Keys,
        network: Network,
        admin_network: Option<Network>,
    ) -> Result<(), Failure> {
        let folder = room.folder("gateway", 0o700)?;
        keys::write_pair(&keys.gateway, &folder.join("gateway.key"), Existing::Keep)?;
        let full = |path: &Path| {
            absolute(path)
                .map(|path| path.display().to_string())
                .map_err(|error| Failure::bad(format!("`{}` is no path: {error}", path.display())))
        };
        let mut text = format!(
            "# Configuration of strongroom-gateway, in the storage guest. Paths are relative to this file.\n\
             data = {}\nstate = {}\nkey = \"gateway.key\"\nissuer = {}\nadmin-keys = [{}]\n\n\
             [listen]\ninterface = {}\nnetwork = {}\naddress = {}\nadmin = {}\n",
            quoted(&full(&self.data)?),
            quoted(&full(&self.state)?),
            quoted(&keys.issuer.public()),
            quoted(&keys.admin.public()),
            quoted(&self.interface),
            quoted(&network),
            quoted(&self.address),
            quoted(&self.admin),
        );
        if let Some(network) = admin_network {
            text.push_str(&format!(
                "admin-interface = {}\nadmin-network = {}\n",
                quoted(&self.admin_interface),
                quoted(&network)
            ));
        }
        files::write(&folder.join("gateway.toml"), &text, PUBLIC, Existing::Keep)
    }

    /// The sample policies written; none if the directory has policies already.
    fn write_policies(&self, room: &Room, dir: &Path) -> Result<Vec<&'static str>, Failure> {
        if dir.join("policy.d").exists() {
            return Ok(vec![]);
        }
        let folder = room.folder("policy.d", 0o755)?;
        let samples = if self.no_sample_policy { &SAMPLES[..0] } else { &SAMPLES[..] };
        for (name, text) in samples {
            files::write(&folder.join(name), text, PUBLIC, Existing::Keep)?;
        }
        Ok(samples.iter().map(|(name, _)| *name).collect())
    }

    fn report(&self, dir: &Path, keys: &Keys, samples: Vec<&str>) -> Report {
        let shown = dir.display();
        let policies = match samples.as_slice() {
            [] => "one TOML file for each application".to_owned(),
            names => format!("samples to change: {}", names.join(", ")),
        };
        let human = format!(
            "made {shown}\n\
             \x20 base/      the issuer's and the administrator's keys: back them up, they stay here;\n\
             \x20            recovery.toml: how guests are recovered\n\
             \x20 policy.d/  what may be granted ({policies}); keep it in Git or Mercurial\n\
             \x20 issued/    the archive of contracts: back it up with the keys\n\
             \x20 gateway/   for the storage guest\n\
             gateway {}\n",
            keys.gateway.public().gateway_id()
        );
        let json = json!({
            "dir": shown.to_string(),
            "issuer": keys.issuer.public().to_string(),
            "admin": keys.admin.public().to_string(),
            "gateway": keys.gateway.public().to_string(),
            "gateway_id": keys.gateway.public().gateway_id().to_string(),
            "address": self.address.to_string(),
            "admin_address": self.admin.to_string(),
            "policies": samples,
        });
        Report::new(human, json)
            .note("next:")
            .note(format!(
                "  move {shown}/gateway to the storage guest, to /etc/strongroom/gateway (its key belongs there alone),"
            ))
            .note("  check gateway.toml there, and start: systemctl start strongroom-gateway".to_owned())
            .note("  in each app guest: contract keygen".to_owned())
            .note(format!("  here: contract --dir {shown} grant APP --holder ed25519:… --out APP.contract"))
    }
}

struct Keys {
    issuer: SecretKey,
    admin: SecretKey,
    gateway: SecretKey,
}

fn quoted(value: &impl std::fmt::Display) -> Value {
    Value::from(value.to_string())
}

/// The network given, if it holds the address, or the usual one around the address.
fn covering(option: &str, given: Option<Network>, address: IpAddr) -> Result<Network, Failure> {
    match given {
        Some(network) if network.contains(address) => Ok(network),
        Some(network) => {
            Err(Failure::bad(format!("{option}: {network} does not hold the address {address}")))
        }
        None => around(address).ok_or_else(|| {
            Failure::bad(format!("no network around {address} can be guessed")).hint(format!("give {option}"))
        }),
    }
}

fn around(address: IpAddr) -> Option<Network> {
    let text = match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    };
    text.parse().ok()
}

/// A base directory in the making: a hidden directory beside or within the target, gone if anything fails.
struct Room {
    making: tempfile::TempDir,
}

/// In the order in which they appear; `base`, which makes a directory a base directory, is the last.
const PARTS: [&str; 4] = ["policy.d", "issued", "gateway", "base"];

impl Room {
    fn make(dir: &Path) -> Result<Room, Failure> {
        let parent = files::parent(dir);
        if !parent.is_dir() {
            return Err(Failure::not_found(format!("directory `{}` does not exist", parent.display()))
                .hint(format!("make it: mkdir -p {}", parent.display())));
        }
        if dir.exists() && !dir.is_dir() {
            return Err(Failure::bad(format!("`{}` is not a directory", dir.display())));
        }
        for part in PARTS.iter().filter(|part| **part != "policy.d") {
            if dir.join(part).symlink_metadata().is_ok() {
                return Err(Failure::bad(format!("`{}` exists already", dir.join(part).display()))
                    .hint("name another directory; keys are never replaced by this command"));
            }
        }
        let place = if dir.is_dir() { dir } else { &parent };
        let making = tempfile::Builder::new().prefix(".strongroom-init-").tempdir_in(place);
        let making = making
            .map_err(|error| Failure::other(format!("cannot write in `{}`: {error}", place.display())))?;
        Ok(Room { making })
    }

    fn folder(&self, name: &str, mode: u32) -> Result<PathBuf, Failure> {
        let path = self.making.path().join(name);
        DirBuilder::new()
            .mode(mode)
            .create(&path)
            .and_then(|()| {
                // Again, because the umask has its say on creation.
                use std::os::unix::fs::PermissionsExt;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
            })
            .map_err(|error| Failure::other(format!("cannot make `{}`: {error}", path.display())))?;
        Ok(path)
    }

    fn publish(self, dir: &Path) -> Result<(), Failure> {
        let made_dir = !dir.is_dir();
        let mut moved: Vec<PathBuf> = vec![];
        let mut attempt = || -> std::io::Result<()> {
            if made_dir {
                DirBuilder::new().mode(0o755).create(dir)?;
            }
            for part in PARTS {
                let from = self.making.path().join(part);
                if from.exists() {
                    let to = dir.join(part);
                    rustix::fs::renameat_with(
                        rustix::fs::CWD,
                        &from,
                        rustix::fs::CWD,
                        &to,
                        rustix::fs::RenameFlags::NOREPLACE,
                    )?;
                    moved.push(to);
                }
            }
            files::sync_dir(dir)?;
            files::sync_dir(&files::parent(dir))
        };
        attempt().map_err(|error| {
            for path in &moved {
                // Made by this very run a moment ago: nothing in it is in use.
                let _ = std::fs::remove_dir_all(path);
            }
            if made_dir {
                let _ = std::fs::remove_dir(dir);
            }
            Failure::other(format!("cannot make `{}`: {error}", dir.display()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_guessed_around_the_address() {
        let guess = |text: &str| around(text.parse().unwrap()).unwrap().to_string();
        assert_eq!(guess("10.77.0.1"), "10.77.0.0/24");
        assert_eq!(guess("fd00:1:2:3::9"), "fd00:1:2:3::/64");
        let other = "10.78.0.0/24".parse().ok();
        assert!(covering("--network", other, "10.77.0.1".parse().unwrap()).is_err());
    }
}
