//! Keys in files: secret ones that nobody else can read, public ones that anyone may.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use strongroom_contracts::{PublicKey, SecretKey};

use crate::failure::Failure;
use crate::files::{self, Existing};

/// The longest key file that is read, in bytes; ours have about 150.
const MAX_KEY_FILE: usize = 4096;

/// Reads a secret key from a file that belongs to the caller and that nobody else can reach.
pub fn read_secret(path: &Path, what: &str) -> Result<SecretKey, Failure> {
    let file = files::open(path, what)?;
    let shown = path.display();
    let meta = file
        .metadata()
        .map_err(|error| Failure::other(format!("{what} `{shown}` cannot be read: {error}")))?;
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        return Err(Failure::bad(format!(
            "{what} `{shown}` belongs to user {}, not to you (user {me}): its owner could read or replace it",
            meta.uid()
        ))
        .hint(format!("run this as its owner, or make it yours: chown {me} {shown}")));
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Failure::bad(format!("{what} `{shown}` can be reached by others (mode {mode:04o})"))
            .hint(format!("close it: chmod 600 {shown}"))
            .hint("if others may have read it, replace the key"));
    }
    let text = files::read_open(file, path, what, MAX_KEY_FILE)?;
    SecretKey::from_file_text(&text).map_err(|error| {
        let failure = Failure::bad(format!("{what} `{shown}`: {error}"));
        if text.trim_start().starts_with("ed25519:") {
            failure.hint("this is a public key; name the file with the secret half")
        } else {
            failure.hint("restore it from its backup, or make a new one: contract keygen")
        }
    })
}

/// Reads a public key from a file of one line.
pub fn read_public(path: &Path, what: &str) -> Result<PublicKey, Failure> {
    let text = files::read(path, what, MAX_KEY_FILE)?;
    text.trim().parse().map_err(|error| {
        if text.starts_with("STRONGROOM SECRET KEY") {
            Failure::bad(format!("{what} `{}` is a secret key, and should not be here", path.display()))
                .hint("name the file with the public half (.pub)")
        } else {
            Failure::bad(format!("{what} `{}`: {error}", path.display()))
        }
    })
}

/// Writes a key pair: `path` with mode 0600, and the public half beside it as `.pub`. Returns the latter's path.
pub fn write_pair(key: &SecretKey, path: &Path, existing: Existing) -> Result<PathBuf, Failure> {
    let public = public_path(path);
    if public == path {
        return Err(Failure::bad(format!("`{}` is the name of a public key", path.display()))
            .hint("name the secret key's file, such as `holder.key`; the public half goes to `holder.pub`"));
    }
    files::check_free(&public, existing)?;
    files::write(path, &key.to_file_text(), files::SECRET, existing)?;
    let written = files::write(&public, &format!("{}\n", key.public()), files::PUBLIC, existing);
    if written.is_err() && existing == Existing::Keep {
        // Half a pair would stop the next attempt; the key is new, so nothing is lost.
        let _ = std::fs::remove_file(path);
    }
    written?;
    Ok(public)
}

/// Where the public half of the key in `path` is written.
pub fn public_path(path: &Path) -> PathBuf {
    path.with_extension("pub")
}

/// A public key given as an argument: its text, or the path of a file that holds it.
#[derive(Clone, Debug)]
pub enum KeyArgument {
    /// The text.
    Key(PublicKey),
    /// The file.
    File(PathBuf),
}

impl FromStr for KeyArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("ed25519:") {
            text.parse()
                .map(KeyArgument::Key)
                .map_err(|error: strongroom_contracts::KeyError| error.to_string())
        } else if text.is_empty() {
            Err("write `ed25519:…`, or the path of a .pub file".to_owned())
        } else {
            Ok(KeyArgument::File(text.into()))
        }
    }
}

impl KeyArgument {
    /// The key.
    pub fn read(&self, what: &str) -> Result<PublicKey, Failure> {
        match self {
            KeyArgument::Key(key) => Ok(*key),
            KeyArgument::File(path) => read_public(path, what),
        }
    }
}
