//! Contracts in files.

use std::path::Path;

use strongroom_contracts::{Chain, armour};

use crate::failure::Failure;
use crate::files;

/// Reads an armoured contract, from the standard input if `path` is `-`; nothing in it is verified yet.
pub fn read(path: &Path) -> Result<Chain, Failure> {
    const WHAT: &str = "contract file";
    let text = match path == Path::new("-") {
        true => files::read_open(std::io::stdin().lock(), path, WHAT, armour::MAX_TEXT_BYTES),
        false => files::read(path, WHAT, armour::MAX_TEXT_BYTES),
    }?;
    armour::read(&text).map_err(|error| {
        Failure::bad(format!("contract file `{}`: {error}", path.display()))
            .hint("copy it again from where it was issued, or issue a new one: contract grant")
    })
}

/// The file form.
pub fn to_text(chain: &Chain) -> Result<String, Failure> {
    armour::write(chain).map_err(|error| Failure::other(format!("cannot write the contract: {error}")))
}
