//! Reading the audit trail back, a page at a time, for the evidence of an incident.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use strongroom_contracts::Application;
use strongroom_protocol::admin::AuditPlace;

/// Bytes that are looked through for one page, so that a page takes milliseconds, whatever the size of the trail.
const MAX_SCANNED: u64 = 32 << 20;
/// Lines of the trail are shorter; anything longer is damage.
const MAX_LINE: u64 = 64 * 1024;

/// A page.
#[derive(Debug, Default)]
pub struct Page {
    /// Whole lines.
    pub lines: Vec<u8>,
    /// Where the next page begins.
    pub next: AuditPlace,
    /// Whether there may be more.
    pub more: bool,
}

/// The lines about an application since a moment, from a place on; at most `room` bytes of them.
///
/// # Errors
/// If a file of the trail cannot be read.
pub fn page(
    directory: &Path,
    application: &Application,
    since_us: u64,
    from: AuditPlace,
    room: usize,
) -> std::io::Result<Page> {
    let files = files(directory)?;
    // A file that was rotated away is gone with all that was in it: the oldest kept comes after it.
    let start = files.iter().position(|(_, inode)| *inode == from.file);
    let mut offset = if start.is_some() { from.offset } else { 0 };
    // Names of applications have no characters that JSON escapes.
    let wanted = format!("\"application\":\"{application}\"");
    let (mut page, mut scanned) = (Page { next: from, ..Page::default() }, 0);
    for (path, inode) in files.iter().skip(start.unwrap_or(0)) {
        let mut file = match File::open(path) {
            // Rotated in between: what was in it is found under its next name by the next page.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
            file => file?,
        };
        if file.metadata()?.ino() != *inode {
            page.more = true;
            return Ok(page);
        }
        file.seek(SeekFrom::Start(offset))?;
        let mut reader = BufReader::with_capacity(256 * 1024, file);
        let mut line = vec![];
        page.next = AuditPlace { file: *inode, offset };
        loop {
            line.clear();
            let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)? as u64;
            let whole = line.last() == Some(&b'\n');
            if read == 0 || (!whole && read < MAX_LINE) {
                break;
            }
            let counts = whole && is_wanted(&line, &wanted, since_us);
            if (counts && page.lines.len() + line.len() > room) || scanned > MAX_SCANNED {
                page.more = true;
                return Ok(page);
            }
            if counts {
                page.lines.extend_from_slice(&line);
            }
            scanned += read;
            page.next.offset += read;
        }
        offset = 0;
    }
    Ok(page)
}

fn is_wanted(line: &[u8], wanted: &str, since_us: u64) -> bool {
    let Ok(text) = std::str::from_utf8(line) else { return false };
    // The moment is the first member of every line.
    let moment = text.strip_prefix("{\"time_us\":").and_then(|rest| rest.split(',').next());
    moment.and_then(|digits| digits.parse::<u64>().ok()).is_some_and(|moment| moment >= since_us)
        && text.contains(wanted)
}

/// The files of the trail and their inodes, oldest first.
fn files(directory: &Path) -> std::io::Result<Vec<(PathBuf, u64)>> {
    let mut found = vec![];
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix("audit.jsonl")) else { continue };
        let age = match rest.strip_prefix('.') {
            None if rest.is_empty() => 0,
            Some(digits) => match digits.parse::<u32>() {
                Ok(age) => age,
                Err(_) => continue,
            },
            None => continue,
        };
        if let Ok(meta) = entry.metadata() {
            found.push((age, entry.path(), meta.ino()));
        }
    }
    found.sort_by_key(|(age, _, _)| std::cmp::Reverse(*age));
    Ok(found.into_iter().map(|(_, path, inode)| (path, inode)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(time: u64, application: &str, text: &str) -> String {
        format!(
            "{{\"time_us\":{time},\"event\":\"operation\",\"application\":\"{application}\",\"text\":\"{text}\"}}\n"
        )
    }

    fn all(directory: &Path, room: usize) -> (Vec<String>, usize) {
        let (mut place, mut lines, mut pages) = (AuditPlace::default(), String::new(), 0);
        loop {
            let page = page(directory, &"mail".parse().unwrap(), 3, place, room).unwrap();
            lines.push_str(std::str::from_utf8(&page.lines).unwrap());
            place = page.next;
            pages += 1;
            if !page.more {
                return (lines.lines().map(str::to_owned).collect(), pages);
            }
        }
    }

    #[test]
    fn lines_of_one_application_since_a_moment_over_all_files() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        write("audit.jsonl.2", line(1, "mail", "early") + &line(3, "mail", "a") + &line(4, "mailer", "x"));
        write("audit.jsonl.1", line(5, "mail", "b") + &line(6, "editor", "application:mail"));
        write("audit.jsonl", line(7, "mail", "c") + "{\"time_us\":8,\"application\":\"mail\",\"te");
        write("audit.jsonl.bak", line(9, "mail", "not of the trail"));
        let (lines, pages) = all(dir.path(), 1 << 20);
        let texts: Vec<_> = lines.iter().map(|line| line.rsplit('"').nth(1).unwrap()).collect();
        assert_eq!((texts, pages), (vec!["a", "b", "c"], 1));
        assert_eq!(all(dir.path(), 100).0, lines, "page by page");
        assert!(all(dir.path(), 100).1 > 1);
    }
}
