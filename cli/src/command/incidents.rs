//! `contract incidents`: what was recovered, and how long each step took.

use clap::Args;
use serde_json::{Value, json};
use strongroom_base::incident::{self, Incident, Span, Standing, dir_of};

use super::Context;
use crate::failure::Failure;
use crate::output::{Report, Style, Table, tame};

/// List incidents, or show one with the time that each step took
#[derive(Debug, Args)]
pub(super) struct Incidents {
    /// The number of an incident
    #[arg(value_name = "N")]
    number: Option<u64>,
}

impl Incidents {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let dir = context.base()?.incidents_dir();
        if let Some(number) = self.number {
            let path = dir_of(&dir, number);
            if !path.exists() {
                return Err(Failure::not_found(format!("there is no incident {number}"))
                    .hint("those that there are: contract incidents"));
            }
            let found = Incident::read(&path)?;
            return Ok(Report::new(timeline(context, &found), found.to_json()));
        }
        let (list, warnings) = incident::all(&dir)?;
        let mut report = Report::new(table(context, &list), json!({ "incidents": all(&list) }));
        report.warnings = warnings;
        Ok(report)
    }
}

fn all(list: &[Incident]) -> Vec<Value> {
    list.iter().map(Incident::to_json).collect()
}

fn table(context: &Context, list: &[Incident]) -> String {
    if list.is_empty() {
        return "no incidents\n".to_owned();
    }
    let style = context.style;
    let mut table = Table::new(style, &["N", "APP", "BEGAN", "STATE", "FENCED IN", "TOOK", "ALERTS", "WHY"]);
    for one in list {
        table.row([
            one.number.to_string(),
            one.application.to_string(),
            context.clock.local(one.opened_us / 1_000_000),
            state(style, one),
            one.fenced_us().map_or("-".to_owned(), |end| took(one.opened_us, end)),
            one.closed_us.map_or("-".to_owned(), |end| took(one.opened_us, end)),
            one.alerts.to_string(),
            short(&tame(&one.cause.text)),
        ]);
    }
    table.render("")
}

fn short(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn state(style: Style, one: &Incident) -> String {
    let phase = one.next().map_or("close", |phase| phase.word());
    match &one.standing {
        Standing::Closed(_) => style.green("closed"),
        Standing::Stuck(_) => style.red(&format!("stuck: {phase}")),
        Standing::Running => style.yellow(phase),
    }
}

/// An incident for people.
pub(super) fn timeline(context: &Context, one: &Incident) -> String {
    let style = context.style;
    let mut out = format!(
        "{}  {}, {}\n",
        style.bold(&format!("incident {}: {}", one.number, one.application)),
        state(style, one),
        context.clock.show(one.opened_us / 1_000_000)
    );
    out.push_str(&format!("  why: {} ({}", tame(&one.cause.text), tame(&one.cause.source)));
    if let Some(severity) = one.cause.severity {
        out.push_str(&format!(", severity {severity}"));
    }
    out.push_str(&match one.alerts {
        0 | 1 => ")\n".to_owned(),
        many => format!("; {many} alerts)\n"),
    });
    for span in &one.spans {
        out.push_str(&format!("  {}\n", phase_line(span)));
        for note in &span.notes {
            out.push_str(&format!("            {}\n", style.dim(&tame(note))));
        }
        if let (Some(error), None) = (&span.error, span.ended_us) {
            out.push_str(&format!("            {}\n", style.red(&tame(error))));
        }
    }
    match &one.standing {
        Standing::Closed(outcome) => {
            let end = one.closed_us.unwrap_or(one.last_us);
            out.push_str(&format!("  closed after {}: {}\n", took(one.opened_us, end), tame(outcome)));
        }
        Standing::Stuck(why) => {
            out.push_str(&format!("  {} {}\n", style.red("stuck:"), tame(why)));
            for hint in &one.hints {
                out.push_str(&format!("  → {}\n", tame(hint)));
            }
        }
        Standing::Running => {}
    }
    out.push_str(&format!("  evidence: {}\n", one.dir.join("evidence").display()));
    out
}

/// One phase in one line.
pub(super) fn phase_line(span: &Span) -> String {
    let duration = match span.ended_us {
        Some(end) => took(span.began_us, end),
        None => "…".to_owned(),
    };
    let mut line = format!("{:<9} {duration:>9}", span.phase);
    let facts: Vec<String> = span.facts.iter().filter_map(|(name, value)| fact(name, value)).collect();
    if !facts.is_empty() {
        line.push_str(&format!("  {}", facts.join(", ")));
    }
    if span.attempts > 1 {
        line.push_str(&format!("  ({} attempts)", span.attempts));
    }
    line
}

/// What of the facts people want to see.
fn fact(name: &str, value: &Value) -> Option<String> {
    let shown = match value {
        Value::String(text) => tame(text),
        Value::Array(list) => list.iter().filter_map(Value::as_str).map(tame).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    };
    let words = match name {
        "below" => format!("contracts below generation {shown} are void"),
        "sessions" => format!("{shown} cut"),
        "audit_bytes" => format!("{shown} bytes of audit records"),
        "over_before" if *value == Value::Bool(true) => "the alert's session was over before".to_owned(),
        "guest" => format!("guest {shown}"),
        "contracts" => shown,
        "generation" => format!("at work under generation {shown}"),
        "skipped_by" => format!("skipped by {shown}"),
        "confirmed_by" => format!("confirmed by {shown}"),
        "restored" => format!("{shown} restored"),
        "kept" => format!("{shown} kept"),
        _ => return None,
    };
    Some(words)
}

/// A span of microseconds: `12.3 ms`, `2.41 s`, `3m 2s`.
fn took(from_us: u64, to_us: u64) -> String {
    let us = to_us.saturating_sub(from_us);
    match us {
        0..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        1_000_000..100_000_000 => format!("{:.2} s", us as f64 / 1e6),
        more => crate::output::span(more / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short() {
        assert_eq!(took(0, 12_345), "12.3 ms");
        assert_eq!(took(1, 2_410_001), "2.41 s");
        assert_eq!(took(0, 182_000_000), "3m 2s");
        assert_eq!(took(5, 0), "0.0 ms");
    }
}
