//! What an incident would do, without doing it.

use serde_json::{Value, json};
use strongroom_base::incident::{Phase, dir_of};
use strongroom_base::{Base, Failure};
use strongroom_contracts::Application;
use strongroom_policy::{Policy, Step};

use crate::config::Config;
use crate::control::read_steps;
use crate::daemon::{guest_of, phases};
use crate::guest::Job;

/// What recovering an application would do: a line for people for each phase, and the same for programs.
///
/// # Errors
/// If there are no steps to take, or the configuration is wrong.
pub fn plan(base: &Base, application: &Application, steps: Option<&[String]>) -> Result<Value, Failure> {
    let config = Config::load(base)?;
    let policies = base.policies()?;
    let policy = policies.get(application);
    let steps = match steps {
        Some(texts) => read_steps(texts)?,
        None => {
            let recovery = policy.and_then(|policy| policy.recovery.as_ref());
            recovery.map_or(vec![], |recovery| recovery.steps.iter().map(|step| step.value).collect())
        }
    };
    if steps.is_empty() {
        return Err(Failure::not_found(format!(
            "no policy in force has steps of recovery for `{application}`"
        ))
        .hint("say which: --steps 'fence, restart, reissue'"));
    }
    let list: Vec<Value> = phases(&steps)
        .into_iter()
        .map(|phase| {
            let does = match phase {
                Phase::Restart => restart(base, &config, application, policy, &steps),
                other => vec![words(other, application, &config, &steps)],
            };
            json!({ "phase": phase, "does": does })
        })
        .collect();
    Ok(json!({ "application": application.as_str(), "dry_run": true, "phases": list }))
}

fn words(phase: Phase, application: &Application, config: &Config, steps: &[Step]) -> String {
    match phase {
        Phase::Alert => "an incident is opened".to_owned(),
        Phase::Fence => {
            format!("every contract of {application} becomes void, with the gateway's signed receipt")
        }
        Phase::Preserve => "sessions and audit records are kept as evidence".to_owned(),
        Phase::Undo => {
            let undo = steps.iter().find(|step| matches!(step, Step::Undo { .. }));
            format!(
                "what {application} changed is taken back: {}",
                undo.map_or(String::new(), Step::to_string)
            )
        }
        Phase::Restart => String::new(),
        Phase::Reissue => match (&config.enrol, steps.contains(&Step::Restart)) {
            (Some(enrol), true) => {
                format!(
                    "the fresh guest enrols at {} and gets a contract of the next generation",
                    enrol.address
                )
            }
            _ => "the former holders get contracts of the next generation".to_owned(),
        },
        Phase::Confirm if steps.contains(&Step::Confirm) => {
            format!(
                "{application} is seen at work, and a person confirms: contract recover {application} --confirm"
            )
        }
        Phase::Confirm => format!("{application} is seen at work"),
    }
}

fn restart(
    base: &Base,
    config: &Config,
    application: &Application,
    policy: Option<&Policy>,
    steps: &[Step],
) -> Vec<String> {
    let name = policy.map_or_else(|| application.to_string(), guest_of);
    let Some(guest) = config.guest.get(&name) else {
        return vec![format!("NOT POSSIBLE: recovery.toml has no [guest.{name}]")];
    };
    let evidence = dir_of(&base.incidents_dir(), 0).with_file_name("NUMBER").join("evidence");
    let secret = std::path::Path::new("SECRET");
    let enrols = config.enrol.is_some() && steps.contains(&Step::Reissue);
    let job =
        Job { guest: &name, application, incident: 0, evidence: &evidence, secret: enrols.then_some(secret) };
    let missing =
        guest.missing().into_iter().map(|name| format!("NOT POSSIBLE: there is no program `{name}`"));
    let does = guest.driver().restart(&job).into_iter().map(|action| action.to_string());
    missing.chain(does).collect()
}
