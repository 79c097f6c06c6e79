//! The contract and key files that a mount is given: read with care, and told apart when something is wrong with them.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use strongroom_contracts::armour::{self, ArmourError};
use strongroom_contracts::{Chain, GatewayId, KeyError, PublicKey, SecretKey};

use crate::journal::Journal;

/// The longest key file that is read, in bytes; a real one has some 150.
const MAX_KEY_BYTES: u64 = 4096;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {what} `{}`: {source}", path.display())]
    Read {
        /// Such as `the contract`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no key file.
    #[error(
        "there is no key file `{}`; name it with `-o key=FILE`, or make one with `contract keygen --out {}` and have a contract issued for it", path.display(), path.display()
    )]
    NoKey {
        /// Which file.
        path: PathBuf,
    },
    /// Others may read the key.
    #[error(
        "the key file `{}` has mode {mode:04o}: others may have read it; if they have not, `chmod 600 {}`, otherwise make a new key", path.display(), path.display()
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key belongs to another user.
    #[error(
        "the key file `{}` belongs to user {owner}, not to user {user} who mounts; use a key of your own", path.display()
    )]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who mounts.
        user: u32,
    },
    /// It is no key file, or damaged.
    #[error("`{}`: {source}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: KeyError,
    },
    /// It is no contract file, or damaged.
    #[error("`{}`: {source}; get the file again from whoever issued it", path.display())]
    Contract {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: ArmourError,
    },
    /// A signed block of it is not readable.
    #[error("`{}`: {text}; get the file again from whoever issued it", path.display())]
    Block {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        text: String,
    },
    /// It is for another key.
    #[error(
        "the contract `{}` is for the holder {holder}, but the key `{}` is {key}; use the key that the contract was issued for (`-o key=FILE`), or have a contract issued for this one", path.display(), key_path.display()
    )]
    OtherHolder {
        /// Which contract file.
        path: PathBuf,
        /// Whom it is for.
        holder: PublicKey,
        /// Which key file.
        key_path: PathBuf,
        /// Whose key it is.
        key: PublicKey,
    },
}

fn read_text(path: &Path, what: &'static str, most: u64) -> Result<(String, Metadata), FileError> {
    let failed = |source| FileError::Read { what, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(std::io::Error::other("it is not a regular file")));
    }
    let mut bytes = vec![];
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| failed(std::io::Error::other("it is not text; is it the right file?")))?;
    Ok((text, metadata))
}

/// Reads a holder key.
///
/// # Errors
/// [`FileError`] if it is missing, exposed, someone else's, or no key.
pub fn read_key(path: &Path, user: u32) -> Result<SecretKey, FileError> {
    let (text, metadata) = match read_text(path, "the key file", MAX_KEY_BYTES) {
        Err(FileError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(FileError::NoKey { path: path.to_owned() });
        }
        other => other?,
    };
    if metadata.uid() != user && user != 0 {
        return Err(FileError::Foreign { path: path.to_owned(), owner: metadata.uid(), user });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed { path: path.to_owned(), mode });
    }
    SecretKey::from_file_text(&text).map_err(|source| FileError::Key { path: path.to_owned(), source })
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

struct Loaded {
    stamp: Option<Stamp>,
    chain: Vec<u8>,
}

/// The contract file of a mount, read again when it is replaced.
pub struct ContractFile {
    path: PathBuf,
    holder: PublicKey,
    gateway: GatewayId,
    loaded: Mutex<Loaded>,
}

struct Claims {
    chain: Vec<u8>,
    holder: PublicKey,
    gateway: GatewayId,
}

fn read_chain(path: &Path) -> Result<Claims, FileError> {
    let (text, _) = read_text(path, "the contract", armour::MAX_TEXT_BYTES as u64)?;
    let chain =
        armour::read(&text).map_err(|source| FileError::Contract { path: path.to_owned(), source })?;
    claims(&chain).map_err(|text| FileError::Block { path: path.to_owned(), text })
}

/// What the chain claims; the gateway verifies it.
fn claims(chain: &Chain) -> Result<Claims, String> {
    let terms = chain.claimed_terms().map_err(|error| error.to_string())?;
    let later = chain.claimed_attenuations().map_err(|error| error.to_string())?;
    Ok(Claims {
        chain: chain.to_bytes().map_err(|error| error.to_string())?,
        holder: later.last().map_or(terms.holder, |block| block.holder),
        gateway: terms.gateway,
    })
}

impl ContractFile {
    /// Reads a contract that must be for this key.
    ///
    /// # Errors
    /// [`FileError`] if it cannot be read, is damaged, or is for another key.
    pub fn read(path: &Path, key: PublicKey, key_path: &Path) -> Result<ContractFile, FileError> {
        let stamp = Stamp::of(path);
        let read = read_chain(path)?;
        if read.holder != key {
            return Err(FileError::OtherHolder {
                path: path.to_owned(),
                holder: read.holder,
                key_path: key_path.to_owned(),
                key,
            });
        }
        Ok(ContractFile {
            path: path.to_owned(),
            holder: key,
            gateway: read.gateway,
            loaded: Mutex::new(Loaded { stamp, chain: read.chain }),
        })
    }

    /// The gateway that the contract names.
    pub fn gateway(&self) -> GatewayId {
        self.gateway
    }

    /// The bytes of the chain.
    pub fn chain(&self) -> Vec<u8> {
        self.loaded.lock().chain.clone()
    }

    /// Whether the file has been replaced since it was read.
    pub fn changed(&self) -> bool {
        let stamp = Stamp::of(&self.path);
        stamp.is_some() && stamp != self.loaded.lock().stamp
    }

    /// Reads the file again if it was replaced; returns whether there is another contract now.
    pub fn reload(&self, journal: &Journal) -> bool {
        if !self.changed() {
            return false;
        }
        let stamp = Stamp::of(&self.path);
        let read = read_chain(&self.path);
        let mut loaded = self.loaded.lock();
        loaded.stamp = stamp;
        match read {
            Ok(read) if read.holder != self.holder => {
                journal.note(&format!("the new `{}` is for another key: not used", self.path.display()));
                false
            }
            Ok(read) if read.gateway != self.gateway => {
                journal.note(&format!(
                    "the new `{}` is for another gateway: unmount and mount again to use it",
                    self.path.display()
                ));
                false
            }
            Ok(read) => {
                let another = loaded.chain != read.chain;
                loaded.chain = read.chain;
                another
            }
            Err(error) => {
                // It may be half written; its stamp changes when the rest comes.
                journal.note(&error.to_string());
                false
            }
        }
    }
}
