//! `contract enroll`: a fresh guest's way from a one-time secret to its contract.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use strongroom_base::secret::Enrolment;
use strongroom_channel::{Address, Channel, ChannelError, ClientTls, Frame, Peer};
use strongroom_contracts::{Chain, SecretKey};
use strongroom_protocol::ALPN_ENROL;
use strongroom_protocol::codec::{decode_header, encode_header};
use strongroom_protocol::enrol::{FromGuest, ToGuest};

use super::Context;
use crate::contract_file;
use crate::failure::{Exit, Failure};
use crate::files::{self, Existing, PUBLIC};
use crate::keys;
use crate::output::{Report, tame};
use crate::view::View;

const MAX_SECRET: usize = 4096;
/// How long the base domain may take for its answer: it issues in between.
const ANSWER: Duration = Duration::from_secs(40);
const PAUSE: Duration = Duration::from_millis(200);

/// Get a contract for a new key by a one-time secret; run this in a guest that recovery has just started
///
/// Makes a holder key, proves the secret that the hypervisor handed over, and writes holder.key, holder.pub and contract
/// to --out. The secret never leaves the guest. Until the base domain answers, it is asked again.
#[derive(Debug, Args)]
pub(super) struct Enroll {
    /// Where the secret is: a file, fw_cfg:NAME (QEMU), or xenstore:PATH (Xen)
    #[arg(
        long,
        value_name = "FILE|fw_cfg:NAME|xenstore:PATH",
        default_value = "fw_cfg:opt/strongroom/enrol"
    )]
    secret: SecretPlace,
    /// The enrolment address of the base domain
    #[arg(long, value_name = "ADDR:PORT")]
    at: Address,
    /// Write the key and the contract to this directory
    #[arg(long, value_name = "DIR", default_value = "/etc/strongroom")]
    out: PathBuf,
    /// Give up after this long
    #[arg(long = "for", value_name = "DURATION", default_value = "5m", value_parser = crate::narrowing::duration)]
    patience: u64,
}

#[derive(Clone, Debug)]
enum SecretPlace {
    File(PathBuf),
    FwCfg(String),
    XenStore(String),
}

impl FromStr for SecretPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<SecretPlace, String> {
        let safe = |name: &str| {
            !name.is_empty() && !name.starts_with('-') && !name.split('/').any(|part| part == "..")
        };
        match (text.strip_prefix("fw_cfg:"), text.strip_prefix("xenstore:")) {
            (Some(name), _) if safe(name) => Ok(SecretPlace::FwCfg(name.to_owned())),
            (_, Some(path)) if safe(path) => Ok(SecretPlace::XenStore(path.to_owned())),
            (None, None) if !text.is_empty() => Ok(SecretPlace::File(text.into())),
            _ => Err("write a file, fw_cfg:opt/strongroom/enrol or xenstore:strongroom/enrol".to_owned()),
        }
    }
}

impl SecretPlace {
    fn read(&self) -> Result<String, Failure> {
        const WHAT: &str = "enrolment secret";
        let text = match self {
            SecretPlace::File(path) => files::read(path, WHAT, MAX_SECRET)?,
            SecretPlace::FwCfg(name) => {
                let path = Path::new("/sys/firmware/qemu_fw_cfg/by_name").join(name).join("raw");
                files::read(&path, WHAT, MAX_SECRET).map_err(|failure| {
                    failure.hint("is the module qemu_fw_cfg loaded? modprobe qemu_fw_cfg")
                })?
            }
            SecretPlace::XenStore(path) => {
                // Raw: without -R the tool writes line ends as `\n` (Xen, tools/xenstore, `sanitise_value`).
                let output = Command::new("xenstore-read").arg("-R").arg(path).stdin(Stdio::null()).output();
                let output =
                    output.map_err(|error| Failure::other(format!("cannot run `xenstore-read`: {error}")))?;
                if !output.status.success() {
                    let said = tame(String::from_utf8_lossy(&output.stderr).trim());
                    return Err(Failure::not_found(format!("XenStore has no `{path}`: {said}")));
                }
                String::from_utf8_lossy(&output.stdout).into_owned()
            }
        };
        if text.trim_matches(['\0', '\n', '\r', ' ']).is_empty() {
            return Err(Failure::not_found("there is no enrolment secret: the place for it is empty")
                .hint("it is handed over when recovery restarts the guest, and not otherwise"));
        }
        Ok(text)
    }
}

impl Enroll {
    pub(super) fn run(self, context: &Context) -> Result<Report, Failure> {
        let enrolment = Enrolment::from_text(&self.secret.read()?)?;
        if !self.out.is_dir() {
            return Err(Failure::not_found(format!("directory `{}` does not exist", self.out.display()))
                .hint(format!("make it: mkdir -p {}", self.out.display())));
        }
        let key = self.key(&enrolment)?;
        let tls = ClientTls::new(&key, Peer::Key(enrolment.server), ALPN_ENROL).map_err(Failure::other)?;
        let begun = Instant::now();
        let chain = loop {
            let wait = match self.attempt(&tls, &enrolment, &key, context.timeout()) {
                Ok(Answer::Issued(chain)) => break chain,
                Ok(Answer::Later(wait)) => wait,
                Err(failure) if failure.exit() != Exit::Unreachable => return Err(failure),
                Err(failure) if begun.elapsed().as_secs() >= self.patience => return Err(failure),
                Err(_) => PAUSE,
            };
            if begun.elapsed().as_secs() >= self.patience {
                return Err(Failure::new(
                    Exit::Unreachable,
                    "the base domain has not issued the contract yet",
                )
                .hint("see there: contract incidents"));
            }
            std::thread::sleep(wait);
        };
        self.keep(&chain, &enrolment, &key)
    }

    /// The key for this incident: made once, so that an interrupted enrolment can go on.
    fn key(&self, enrolment: &Enrolment) -> Result<SecretKey, Failure> {
        let path = self.out.join("holder.key");
        let note = self.out.join(".enrolment");
        let mine = format!("{} {}\n", enrolment.incident, enrolment.server);
        if path.exists() && std::fs::read_to_string(&note).is_ok_and(|text| text == mine) {
            return keys::read_secret(&path, "holder key");
        }
        let key = SecretKey::generate().map_err(Failure::other)?;
        keys::write_pair(&key, &path, Existing::Replace)?;
        files::write(&note, &mine, PUBLIC, Existing::Replace)?;
        Ok(key)
    }

    fn attempt(
        &self,
        tls: &ClientTls,
        enrolment: &Enrolment,
        key: &SecretKey,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let unreachable = |error: ChannelError| {
            Failure::new(
                Exit::Unreachable,
                format!("the base domain at {} cannot be reached: {error}", self.at),
            )
            .hint(
                "see whether strongroom-recovery runs there, and whether this is the address of its [enrol]",
            )
        };
        let channel = tls.connect(&self.at, timeout).map_err(unreachable)?;
        channel.sender.set_timeout(Some(timeout)).map_err(unreachable)?;
        channel.receiver.set_timeout(Some(ANSWER)).map_err(unreachable)?;
        let mut talk = Talk { channel, frame: Frame::new() };
        let application = enrolment.application.clone();
        let begin = FromGuest::Begin { incident: enrolment.incident, application };
        let ToGuest::Challenge { nonce } = talk.ask(&begin).map_err(unreachable)? else {
            return Err(Failure::other("the base domain gave an answer that makes no sense"));
        };
        let proof =
            enrolment.proof_key().prove(enrolment.incident, &enrolment.application, &key.public(), &nonce);
        match talk.ask(&FromGuest::Prove { proof }).map_err(unreachable)? {
            ToGuest::Issued => Chain::from_bytes(talk.frame.data())
                .map(|chain| Answer::Issued(Box::new(chain)))
                .map_err(|error| Failure::other(format!("the base domain sent no contract: {error}"))),
            ToGuest::Later { wait_ms } => Ok(Answer::Later(Duration::from_millis(wait_ms.min(10_000).into()))),
            ToGuest::Refused { text } => {
                Err(Failure::denied(format!("the base domain refuses: {}", tame(&text))).hint(
                    "a secret is good once and for a short time; recover again: contract recover APP, in the base domain",
                ))
            }
            ToGuest::Challenge { .. } => Err(Failure::other("the base domain gave an answer that makes no sense")),
        }
    }

    fn keep(&self, chain: &Chain, enrolment: &Enrolment, key: &SecretKey) -> Result<Report, Failure> {
        let view = View::claimed(chain).map_err(Failure::other)?;
        let terms = chain.claimed_terms().map_err(Failure::other)?;
        if terms.holder != key.public() || terms.application != enrolment.application {
            return Err(Failure::other("the contract that was sent is not for this guest's key"));
        }
        let path = self.out.join("contract");
        files::write(&path, &contract_file::to_text(chain)?, PUBLIC, Existing::Replace)?;
        if let SecretPlace::File(file) = &self.secret {
            // It is used up; what is left of it helps nobody.
            let _ = std::fs::remove_file(file);
        }
        let mut json = view.to_json();
        if let serde_json::Value::Object(members) = &mut json {
            members.insert("file".into(), json!(path.display().to_string()));
            members.insert("incident".into(), json!(enrolment.incident));
        }
        Ok(Report::new(format!("{}\n", path.display()), json)
            .note(format!("{} enrolled, generation {}", terms.application, terms.generation)))
    }
}

enum Answer {
    Issued(Box<Chain>),
    Later(Duration),
}

struct Talk {
    channel: Channel,
    frame: Frame,
}

impl Talk {
    fn ask(&mut self, request: &FromGuest) -> Result<ToGuest, ChannelError> {
        let mut header = vec![];
        encode_header(request, &mut header).map_err(|_| ChannelError::Closed)?;
        self.channel.sender.send(&header, &[])?;
        if !self.channel.receiver.recv(&mut self.frame)? {
            return Err(ChannelError::Closed);
        }
        decode_header(self.frame.header()).map_err(|_| ChannelError::Protocol("enrolment".into()))
    }
}
