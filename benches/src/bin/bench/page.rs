//! The page: the table with a bar for each figure, for a browser. One file that needs nothing else.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::report::{conditions, number, ratio};
use crate::results::Results;
use crate::rows::{Row, Unit};
use crate::target::Target;

const STYLE: &str = "\
:root{color-scheme:light dark;--bar:#9aa7b1;--ours:#2f7d5c;--line:#8884}
body{font:15px/1.45 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.05rem;margin:1.6rem 0 .3rem}
pre{white-space:pre-wrap;opacity:.8}
table{border-collapse:collapse;width:100%}
td,th{padding:.1rem .5rem;text-align:left;white-space:nowrap}
td.n{text-align:right;font-variant-numeric:tabular-nums}
td.b{width:60%}
svg{display:block;width:100%;height:1em}
tr.ours td{font-weight:600}
.short{color:#c0392b}";

/// Writes the page.
pub(crate) fn write(results: &Results, path: &Path) -> Result<()> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make the directory `{}`", directory.display()))?;
    }
    std::fs::write(path, page(results)).with_context(|| format!("cannot write `{}`", path.display()))
}

fn page(results: &Results) -> String {
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Strongroom, measured</title>\
         <style>{STYLE}</style>\n<h1>Strongroom beside what one would use instead</h1>\n<pre>{}</pre>\n\
         <p>Longer bars are better, whatever the unit. Lines at the end of a bar: the samples of each round.</p>\n",
        escape(&conditions(results))
    );
    for row in results.rows() {
        section(&mut text, results, row);
    }
    for failure in &results.failures {
        let _ = writeln!(
            text,
            "<p class=\"short\">failed: {} in round {}: {}: {}</p>",
            escape(failure.target.title()),
            failure.round,
            escape(&failure.step),
            escape(&failure.error)
        );
    }
    text.push_str("</html>\n");
    text
}

fn section(text: &mut String, results: &Results, row: Row) {
    let _ = writeln!(text, "<h2>{} <small>({})</small></h2>", escape(row.title()), row.unit().text());
    if let Some(goals) = goals(results, row) {
        let _ = writeln!(text, "<p>{goals}</p>");
    }
    text.push_str("<table>\n");
    let best = results
        .targets
        .iter()
        .filter_map(|target| results.median(row, *target))
        .map(|value| goodness(row.unit(), value))
        .fold(0.0, f64::max);
    for target in &results.targets {
        let Some(median) = results.median(row, *target) else { continue };
        let ours = *target == Target::Strongroom;
        let share = |value: f64| (goodness(row.unit(), value) / best * 100.0).clamp(0.0, 100.0);
        let marks: String = results
            .samples(row, *target)
            .iter()
            .map(|sample| {
                let x = share(*sample);
                format!(
                    "<line x1=\"{x:.2}%\" x2=\"{x:.2}%\" y1=\"0\" y2=\"100%\" stroke=\"currentColor\" stroke-opacity=\".5\"/>"
                )
            })
            .collect();
        let _ = writeln!(
            text,
            "<tr{}><th>{}</th><td class=\"n\">{}</td><td class=\"b\"><svg><rect width=\"{:.2}%\" height=\"100%\" \
             fill=\"var(--{})\"/>{marks}</svg></td></tr>",
            if ours { " class=\"ours\"" } else { "" },
            escape(target.title()),
            number(median),
            share(median),
            if ours { "ours" } else { "bar" },
        );
    }
    text.push_str("</table>\n");
}

/// Ratios beside what is aimed at.
fn goals(results: &Results, row: Row) -> Option<String> {
    let (passthrough, peer) = row.goals();
    let say = |name: &str, got: Option<f64>, wanted: f64| {
        let got = got?;
        let class = if got < wanted { " class=\"short\"" } else { "" };
        Some(format!("<span{class}>x {name} {} (aim {wanted})</span>", ratio(got)))
    };
    let parts: Vec<String> = [
        say("passthrough", results.advantage(row, Target::Passthrough), passthrough),
        say("best peer", results.advantage_over_best(row), peer),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!parts.is_empty()).then(|| parts.join(" · "))
}

/// More is better.
fn goodness(unit: Unit, value: f64) -> f64 {
    match unit {
        Unit::MibPerSecond | Unit::PerSecond => value,
        Unit::Seconds => 1.0 / value.max(f64::MIN_POSITIVE),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::some_results;

    #[test]
    fn the_page_shows_every_row_and_what_falls_short() {
        let text = page(&some_results());
        assert!(text.contains("create 4 KiB file") && text.contains("untar"), "{text}");
        // 25 against 11 is 2.27, and 4 is aimed at.
        assert!(text.contains("<span class=\"short\">x best peer 2.27 (aim 4)</span>"), "{text}");
        assert!(text.contains("width=\"100.00%\""), "{text}");
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<a \"b\" & c>"), "&lt;a &quot;b&quot; &amp; c&gt;");
    }
}
