//! The default lab's user data: enough to look at, and something of another person's that no guest may know of.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const FILES: [(&str, &str); 9] = [
    (
        "users/alice/Mail/inbox/cur/1.eml",
        "From: bob@example.org\nTo: alice@example.org\nSubject: Lunch\n\nThursday at noon, the usual place?\n",
    ),
    (
        "users/alice/Mail/inbox/cur/2.eml",
        "From: carol@example.org\nTo: alice@example.org\nSubject: Minutes\n\nThe minutes are in the shared folder.\n",
    ),
    ("users/alice/Mail/drafts/1.eml", "To: bob@example.org\nSubject: Re: Lunch\n\nYes.\n"),
    ("users/alice/Photos/2026/README.txt", "Photos go here; nothing that is here may be changed.\n"),
    ("users/alice/Documents/letter.txt", "Dear Sir or Madam,\n\n"),
    ("users/alice/Documents/thesis/chapter-1.txt", "1. Introduction\n"),
    ("users/bob/Documents/diary.txt", "Nobody but me reads this.\n"),
    ("users/bob/Mail/inbox/cur/1.eml", "To: bob@example.org\nSubject: Private\n\nFor Bob only.\n"),
    ("shared/minutes.txt", "Present: Alice, Bob, Carol.\n"),
];

/// Fill an empty data root.
pub(super) fn make_default(root: &Path) -> Result<()> {
    for (name, text) in FILES {
        let path = root.join(name);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text));
        made.with_context(|| format!("cannot make `{}`", path.display()))?;
    }
    Ok(())
}
