//! Telling people: a command of theirs, with the incident as JSON on its standard input.

use serde_json::Value;
use strongroom_base::incident::Incident;

use crate::config::Notify;
use crate::log::say;
use crate::run::run;

/// Runs the hook without waiting for it.
pub fn notify(hook: Option<&Notify>, event: &'static str, incident: &Incident) {
    let Some(hook) = hook.cloned() else { return };
    let mut json = incident.to_json();
    if let Value::Object(members) = &mut json {
        members.insert("event".into(), event.into());
    }
    let text = format!("{json}\n");
    let tell = move || {
        if let Err(error) = run(&hook.command, hook.timeout.0, text.as_bytes()) {
            say(&format!("the notification hook: {error}"));
        }
    };
    if let Err(error) = std::thread::Builder::new().name("notify".into()).spawn(tell) {
        say(&format!("no thread for the notification hook: {error}"));
    }
}
