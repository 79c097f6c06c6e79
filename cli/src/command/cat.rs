//! `contract cat`: a file as it was.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use strongroom_contracts::DataPath;

use super::Context;
use crate::base::gateway_failure;
use crate::failure::Failure;
use crate::narrowing::duration;
use crate::output::Report;

/// Show a file as it was at some time, without changing anything
#[derive(Debug, Args)]
#[command(after_help = "The time is exact to ten seconds: changes within that time are kept as one.")]
pub(super) struct Cat {
    /// From the data root, such as `users/alice/Mail/inbox`
    #[arg(value_name = "PATH")]
    path: DataPath,
    /// When: so long ago, such as `15m`, or a time such as `2026-11-22T14:03:00Z` or `2026-11-22 14:03` (local)
    #[arg(long, value_name = "TIME")]
    at: String,
    /// Write it to this new file [default: the standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Cat {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        if context.json && self.out.is_none() {
            return Err(Failure::bad("a file's content is no JSON").hint("write it to a file: --out FILE"));
        }
        let base = context.base()?;
        let mut client = context.connect(&base)?;
        let now = client.status().map_err(gateway_failure)?.now;
        let at = moment(&self.at, now)?;
        if at > now {
            return Err(Failure::bad(format!("`{}` has not come yet by the gateway's clock", self.at))
                .hint("name a time in the past, such as `--at 15m`"));
        }
        // Before anything is written: whether there is something to write.
        let mut part = client.file_at(&self.path, at, 0).map_err(gateway_failure)?;
        let (size, whole) = (part.size, part.whole);
        let mut to: Box<dyn Write> = match &self.out {
            None => Box::new(std::io::stdout().lock()),
            Some(path) => Box::new(
                std::fs::File::create_new(path)
                    .map_err(|error| Failure::bad(format!("cannot create `{}`: {error}", path.display())))?,
            ),
        };
        let mut written = 0;
        while !part.bytes.is_empty() {
            to.write_all(&part.bytes).map_err(|error| Failure::other(format!("cannot write: {error}")))?;
            written += part.bytes.len() as u64;
            part = client.file_at(&self.path, at, written).map_err(gateway_failure)?;
        }
        to.flush().map_err(|error| Failure::other(format!("cannot write: {error}")))?;
        let json = json!({
            "path": self.path.as_str(), "at": at, "size": size, "whole": whole, "written": written,
        });
        let report = Report::new("", json);
        Ok(if whole {
            report
        } else {
            report.warn(
                "not all of it is as it was: parts are forgotten, or were written by an application without an undo window",
            )
        })
    }
}

/// A time in words, as Unix seconds.
fn moment(text: &str, now: u64) -> Result<u64, Failure> {
    if let Ok(ago) = duration(text) {
        return Ok(now.saturating_sub(ago));
    }
    let local = || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::system()).ok();
    let secs = match text.parse::<jiff::Timestamp>() {
        Ok(time) => Some(time.as_second()),
        Err(_) => local().map(|time| time.timestamp().as_second()),
    };
    secs.and_then(|secs| u64::try_from(secs).ok()).ok_or_else(|| {
        Failure::bad(format!("`{}` is no time", text.escape_debug()))
            .hint("so long ago: --at 15m; or a time: --at 2026-11-22T14:03:00Z, --at \"2026-11-22 14:03\"")
    })
}

#[cfg(test)]
mod tests {
    use super::moment;

    #[test]
    fn times() {
        assert_eq!(moment("15m", 1000).unwrap(), 100);
        assert_eq!(moment("2001-09-09T01:46:40Z", 0).unwrap(), 1_000_000_000);
        assert!(moment("2001-09-09 01:46", 0).is_ok());
        assert!(moment("yesterday", 0).is_err());
    }
}
