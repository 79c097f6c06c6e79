//! The table that people read.

use std::fmt::Write as _;

use crate::results::Results;
use crate::rows::Row;
use crate::target::Target;

/// A spread above this makes a small lead or lag meaningless; the table says so.
const NOISY: f64 = 0.25;

/// The whole report, as text or as Markdown.
pub(crate) fn report(results: &Results, markdown: bool) -> String {
    let mut text = String::new();
    let tables = [rows_table(results), costs_table(results)];
    let _ = writeln!(text, "{}", conditions(results));
    for table in tables.into_iter().flatten() {
        let _ = writeln!(text, "\n{}", if markdown { table.markdown() } else { table.plain() });
    }
    let _ = writeln!(text, "\n{}", verdict(results));
    for failure in &results.failures {
        let _ = writeln!(
            text,
            "failed: {} in round {}: {}: {}",
            failure.target.title(),
            failure.round,
            failure.step,
            failure.error
        );
    }
    text
}

pub(crate) fn conditions(results: &Results) -> String {
    let machine = &results.machine;
    let limits = &results.limits;
    let mut text = format!(
        "{} x {}, {} MiB, Linux {}; load {:.1} before the run",
        machine.processors, machine.processor, machine.memory_mib, machine.kernel, machine.load_before
    );
    if let Some(stolen) = machine.stolen_share {
        let _ = write!(text, ", {:.0} % of processor time stolen during it", stolen * 100.0);
    }
    let _ = write!(
        text,
        "\nlimits: TCP between guests {} MiB/s, encrypted frames {} MiB/s, round trip {:.0} us, disk {} syncs/s",
        number(limits.tcp_mib_per_second),
        number(limits.channel_mib_per_second),
        limits.tcp_round_trip_us,
        number(limits.fsyncs_per_second)
    );
    if let Some(micros) = limits.fuse_request_us {
        let _ = write!(text, ", one FUSE request {micros:.0} us");
    }
    let sizes = &results.sizes;
    let _ = write!(
        text,
        "\nmedians of {} round{}; {} MiB file, {} small files, tree of {} files",
        results.rounds,
        if results.rounds == 1 { "" } else { "s" },
        sizes.file_mib,
        sizes.files,
        sizes.tree_files
    );
    text
}

/// Which targets our mount is compared with in columns of ratios.
const PEERS: [Target; 6] = [
    Target::Sshfs,
    Target::SshfsTuned,
    Target::Glusterfs,
    Target::Cephfs,
    Target::Moosefs,
    Target::Passthrough,
];

fn rows_table(results: &Results) -> Option<Table> {
    let peers: Vec<Target> = PEERS.into_iter().filter(|peer| results.targets.contains(peer)).collect();
    let ours = results.targets.contains(&Target::Strongroom);
    let mut head = vec!["workload".to_owned(), "unit".to_owned()];
    head.extend(results.targets.iter().map(|target| target.title().to_owned()));
    if ours {
        head.extend(peers.iter().map(|peer| format!("x {}", peer.title())));
        if peers.iter().filter(|peer| peer.is_choice()).count() > 1 {
            head.push("x best peer".to_owned());
        }
    }
    head.push("noise".to_owned());
    let lines: Vec<Vec<String>> = results
        .rows()
        .into_iter()
        .map(|row| {
            let mut line = vec![row.title().to_owned(), row.unit().text().to_owned()];
            line.extend(results.targets.iter().map(|target| cell(results.median(row, *target).map(number))));
            if ours {
                line.extend(peers.iter().map(|peer| cell(results.advantage(row, *peer).map(ratio))));
                if peers.iter().filter(|peer| peer.is_choice()).count() > 1 {
                    line.push(cell(results.advantage_over_best(row).map(ratio)));
                }
            }
            line.push(cell(noise(results, row).map(|share| format!("±{:.0} %", share * 100.0))));
            line
        })
        .collect();
    (!lines.is_empty()).then_some(Table { head, lines })
}

/// The larger spread of the two columns that matter most.
fn noise(results: &Results, row: Row) -> Option<f64> {
    [Target::Strongroom, Target::Sshfs]
        .into_iter()
        .filter_map(|target| results.spread(row, target))
        .max_by(f64::total_cmp)
}

fn costs_table(results: &Results) -> Option<Table> {
    let mounted: Vec<Target> =
        results.targets.iter().copied().filter(|target| *target != Target::Local).collect();
    let mut lines: Vec<Vec<String>> = [Row::SequentialWrite, Row::SequentialReadCold]
        .into_iter()
        .filter(|row| mounted.iter().any(|target| results.cost(*row, *target).is_some()))
        .map(|row| {
            let mut line = vec![format!("{}: processor s/GiB, caller + client + server", row.title())];
            line.extend(mounted.iter().map(|target| {
                cell(
                    results
                        .cost(row, *target)
                        .map(|c| format!("{:.1} + {:.1} + {:.1}", c.caller, c.client, c.server)),
                )
            }));
            line
        })
        .collect();
    if lines.is_empty() {
        return None;
    }
    let mut line = vec!["peak memory MiB, client / server".to_owned()];
    line.extend(mounted.iter().map(|target| {
        cell(results.memory(*target).map(|m| format!("{:.0} / {:.0}", m.client_mib, m.server_mib)))
    }));
    lines.push(line);
    let mut head = vec!["cost".to_owned()];
    head.extend(mounted.iter().map(|target| target.title().to_owned()));
    Some(Table { head, lines })
}

fn verdict(results: &Results) -> String {
    if !results.targets.contains(&Target::Strongroom) {
        return "Without the Strongroom column there is nothing to compare.".to_owned();
    }
    let mut text = String::from("x above 1: Strongroom is better.");
    // The passthrough is no choice that a user has: it shows what FUSE itself leaves.
    let chosen = |peer: &Target| peer.is_choice() && results.targets.contains(peer);
    for peer in PEERS.into_iter().filter(chosen) {
        let compared =
            results.rows().into_iter().filter(|row| results.advantage(*row, peer).is_some()).count();
        let behind = results.behind(peer);
        let _ = write!(text, "\nAhead of {} on {} of {compared} rows", peer.title(), compared - behind.len());
        let named: Vec<String> = behind.iter().map(|(row, a)| behind_entry(results, *row, *a)).collect();
        if !named.is_empty() {
            let _ = write!(text, "; behind on {}", named.join(", "));
        }
        text.push('.');
    }
    text
}

fn behind_entry(results: &Results, row: Row, advantage: f64) -> String {
    let doubt = if noise(results, row).is_some_and(|noise| noise > NOISY) { ", noisy" } else { "" };
    format!("{} (x{}{doubt})", row.key(), ratio(advantage))
}

fn cell(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// Three digits that mean something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100_000.0 => format!("{:.0}k", value / 1000.0),
        v if v >= 10_000.0 => format!("{:.1}k", value / 1000.0),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

pub(crate) fn ratio(value: f64) -> String {
    match value {
        v if v >= 10.0 => format!("{v:.0}"),
        v if v >= 0.1 => format!("{v:.2}"),
        v => format!("{v:.4}"),
    }
}

/// Columns of text; the first is aligned left, the others right.
struct Table {
    head: Vec<String>,
    lines: Vec<Vec<String>>,
}

impl Table {
    fn plain(&self) -> String {
        let all: Vec<&Vec<String>> = std::iter::once(&self.head).chain(&self.lines).collect();
        let width = |column: usize| {
            all.iter().filter_map(|line| line.get(column)).map(|text| text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut text = String::new();
        for line in all {
            let mut row = String::new();
            for (column, (value, width)) in line.iter().zip(&widths).enumerate() {
                let gap = " ".repeat(width.saturating_sub(value.chars().count()));
                let _ = if column == 0 { write!(row, "{value}{gap}") } else { write!(row, "  {gap}{value}") };
            }
            let _ = writeln!(text, "{}", row.trim_end());
        }
        text.trim_end().to_owned()
    }

    fn markdown(&self) -> String {
        let mut text =
            format!("| {} |\n|---|{}\n", self.head.join(" | "), "---:|".repeat(self.head.len() - 1));
        for line in &self.lines {
            let _ = writeln!(text, "| {} |", line.join(" | "));
        }
        text.trim_end().to_owned()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::options::Options;
    use crate::results::Limits;

    pub(crate) fn some_results() -> Results {
        let options = <Options as clap::Parser>::parse_from(["bench", "--quick"]);
        let limits = Limits {
            tcp_mib_per_second: 1.0,
            channel_mib_per_second: 1.0,
            tcp_round_trip_us: 1.0,
            fsyncs_per_second: 1.0,
            fuse_request_us: None,
        };
        let targets = vec![Target::Strongroom, Target::Sshfs, Target::Passthrough];
        let mut results = Results::new(Machine::look(), options.sizes(), 3, targets, limits);
        for (ours, theirs) in [(30.0, 10.0), (20.0, 12.0), (25.0, 11.0)] {
            results.add(Target::Strongroom, Row::Create, ours, None);
            results.add(Target::Sshfs, Row::Create, theirs, None);
        }
        results.add(Target::Strongroom, Row::Untar, 3.0, None);
        results.add(Target::Sshfs, Row::Untar, 2.0, None);
        results
    }

    #[test]
    fn a_row_shows_medians_ratio_and_noise() {
        let text = report(&some_results(), true);
        assert!(text.contains("| create 4 KiB file | /s | 25.0 | 11.0 | - | 2.27 | - | ±20 % |"), "{text}");
    }

    #[test]
    fn rows_that_are_behind_are_named() {
        let text = report(&some_results(), false);
        assert!(text.contains("Ahead of sshfs on 1 of 2 rows; behind on untar (x0.67)."), "{text}");
    }

    #[test]
    fn numbers_keep_three_digits() {
        let shown: Vec<_> = [0.0123, 1.234, 12.34, 123.4, 1234.0, 12_340.0, 1_234_000.0].map(number).into();
        assert_eq!(shown, ["0.012", "1.23", "12.3", "123", "1234", "12.3k", "1234k"]);
    }
}
