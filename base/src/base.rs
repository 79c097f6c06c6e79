//! The base directory: where the base domain keeps the issuer's key, the policies and the record of what was issued.
//!
//! ```text
//! DIR/base/issuer.key     the issuer's secret key (0600)      DIR/base/issuer.pub  its public half
//! DIR/base/admin.key      the secret key for the admin door   DIR/base/admin.pub   its public half
//! DIR/base/base.toml      the gateway's public key and the address of its admin door
//! DIR/policy.d/*.toml     one policy for each application
//! DIR/issued/             the archive (see `archive`)
//! DIR/base/recovery.toml  how recovery hears of attacks and drives guests (see `docs/recovery.md`)
//! DIR/recovery/           incidents, the daemon's socket and key
//! DIR/gateway/            what belongs into the storage guest; may be gone
//! ```

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use strongroom_contracts::{PublicKey, SecretKey};
use strongroom_policy::{PolicySet, Source};

use crate::admin::{Address, AdminClient, AdminError};
use crate::failure::{Exit, Failure};
use crate::text::tame;
use crate::{files, keys};

/// The longest policy or configuration file that is read, in bytes.
const MAX_TOML: usize = 1 << 20;

/// A base directory; its parts are read when they are needed.
#[derive(Clone, Debug)]
pub struct Base {
    dir: PathBuf,
}

/// The gateway, as `base.toml` names it.
#[derive(Clone, Debug)]
pub struct GatewayPlace {
    /// Its public key.
    pub key: PublicKey,
    /// Its admin door.
    pub admin: Address,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BaseToml {
    gateway: String,
    admin: String,
}

impl Base {
    /// The base directory at `dir`, which `contract init` made.
    pub fn open(dir: &Path) -> Result<Base, Failure> {
        let base = Base::unchecked(dir);
        if base.config_path().exists() {
            return Ok(base);
        }
        let shown = dir.display();
        let failure =
            Failure::not_found(format!("`{shown}` is not a base directory: it has no base/base.toml"));
        Err(failure
            .hint("name it with --dir DIR or $STRONGROOM_DIR")
            .hint(format!("make one: contract init {shown}")))
    }

    /// The base directory at `dir`, whether or not it exists.
    pub fn unchecked(dir: &Path) -> Base {
        Base { dir: dir.to_owned() }
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `base/base.toml`.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("base/base.toml")
    }

    /// The policy files.
    pub fn policy_dir(&self) -> PathBuf {
        self.dir.join("policy.d")
    }

    /// The archive.
    pub fn issued_dir(&self) -> PathBuf {
        self.dir.join("issued")
    }

    /// `base/recovery.toml`.
    pub fn recovery_config_path(&self) -> PathBuf {
        self.dir.join("base/recovery.toml")
    }

    /// Where recovery keeps its state.
    pub fn recovery_dir(&self) -> PathBuf {
        self.dir.join("recovery")
    }

    /// The incidents.
    pub fn incidents_dir(&self) -> PathBuf {
        self.recovery_dir().join("incidents")
    }

    /// The socket on which the recovery daemon takes orders.
    pub fn control_path(&self) -> PathBuf {
        self.recovery_dir().join("control.sock")
    }

    /// The issuer's secret key.
    pub fn issuer(&self) -> Result<SecretKey, Failure> {
        keys::read_secret(&self.dir.join("base/issuer.key"), "issuer key")
    }

    /// The issuer's public key.
    pub fn issuer_public(&self) -> Result<PublicKey, Failure> {
        keys::read_public(&self.dir.join("base/issuer.pub"), "issuer's public key")
    }

    /// The gateway of this base domain.
    pub fn gateway(&self) -> Result<GatewayPlace, Failure> {
        let path = self.config_path();
        let text = files::read(&path, "configuration", MAX_TOML)?;
        let bad = |what: String| {
            Failure::bad(format!("configuration `{}`: {what}", path.display()))
                .hint("it holds two lines: gateway = \"ed25519:…\" and admin = \"ADDRESS:PORT\"")
        };
        let config: BaseToml =
            toml_edit::de::from_str(&text).map_err(|error| bad(error.to_string().trim_end().to_owned()))?;
        Ok(GatewayPlace {
            key: PublicKey::from_str(&config.gateway).map_err(|error| bad(format!("gateway: {error}")))?,
            admin: Address::from_str(&config.admin).map_err(|error| bad(format!("admin: {error}")))?,
        })
    }

    /// Connects to the gateway's admin door.
    pub fn connect(&self, timeout: Duration) -> Result<AdminClient, Failure> {
        let gateway = self.gateway()?;
        let admin = keys::read_secret(&self.dir.join("base/admin.key"), "admin key")?;
        AdminClient::connect(&gateway.admin, &gateway.key, &admin, timeout).map_err(gateway_failure)
    }

    /// The policies in force and the mistakes in the others.
    pub fn policies(&self) -> Result<PolicySet, Failure> {
        read_policies(&self.policy_dir())
    }
}

/// Reads a policy directory (its `*.toml` files), or one policy file.
pub fn read_policies(path: &Path) -> Result<PolicySet, Failure> {
    let shown = path.display();
    let mut list = vec![];
    if path.is_dir() {
        let unreadable =
            |error| Failure::other(format!("policy directory `{shown}` cannot be read: {error}"));
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            let file = entry.map_err(unreadable)?.path();
            let hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if !hidden && file.extension().is_some_and(|extension| extension == "toml") && !file.is_dir() {
                list.push(file);
            }
        }
    } else if path.exists() {
        list.push(path.to_owned());
    } else {
        return Err(Failure::not_found(format!("policy directory `{shown}` does not exist"))
            .hint("name a directory with one TOML file for each application"));
    }
    list.sort();
    let sources = list.iter().map(|file| {
        let text = files::read(file, "policy file", MAX_TOML)?;
        Ok(Source { file: file.display().to_string(), text })
    });
    Ok(PolicySet::parse(sources.collect::<Result<_, Failure>>()?))
}

/// A warning for each policy file with mistakes.
pub fn mistakes(policies: &PolicySet) -> Vec<String> {
    let mut files: Vec<&str> = policies.errors().iter().map(|error| error.file()).collect();
    files.dedup();
    let warning = |file| format!("`{file}` has mistakes and is left out; see: contract policy check {file}");
    files.into_iter().map(warning).collect()
}

/// What to say when the gateway is not there or says no.
pub fn gateway_failure(error: AdminError) -> Failure {
    let text = tame(&error.to_string());
    match error {
        AdminError::Unreachable { source: strongroom_channel::ChannelError::WrongPeer { .. }, .. } => {
            Failure::new(Exit::Unreachable, text)
                .hint("another machine has the gateway's address, or the gateway has a new key")
                .hint("if its key was replaced on purpose, put the new one (gateway.pub) into base/base.toml")
        }
        AdminError::Unreachable { .. } => Failure::new(Exit::Unreachable, text)
            .hint("see in the storage guest whether strongroom-gateway runs: systemctl status strongroom-gateway")
            .hint("see whether `admin` in base/base.toml is its admin door (`[listen] admin` in gateway.toml)"),
        AdminError::NotAnswered { .. } => Failure::new(Exit::Refused, text)
            .hint("it may not know this administrator: put base/admin.pub into `admin-keys` of gateway.toml"),
        AdminError::Refused(_) => Failure::new(Exit::Refused, text),
        AdminError::NotFound(_) => Failure::new(Exit::NotFound, text),
        AdminError::Failed(_) => Failure::new(Exit::Other, text).hint("the gateway's log says more"),
        AdminError::Answer { .. } => Failure::new(Exit::Other, text)
            .hint("`contract` and `strongroom-gateway` must be of the same version"),
    }
}
