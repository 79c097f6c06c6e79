//! The command against the gateway itself, configured by the file that `contract init` wrote, with a guest connected.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step ends the test

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{Run, contract, run};
use serde_json::Value;
use strongroom_channel::{Address, Awake, Channel, ClientTls, Frame, Peer};
use strongroom_contracts::{SecretKey, armour};
use strongroom_gateway::clock::SystemClock;
use strongroom_gateway::config::Config;
use strongroom_gateway::door::admin::AdminDoor;
use strongroom_gateway::door::listen::Listener;
use strongroom_gateway::door::native::NativeDoor;
use strongroom_gateway::gateway::{Gateway, Start};
use strongroom_protocol::codec::{decode_header, encode_header};
use strongroom_protocol::hello::{Answer, Hello, Welcome};
use strongroom_protocol::reply::{Event, FenceReason, FromGateway};
use strongroom_protocol::{ALPN_NATIVE, VERSION};

/// So long that only a hang reaches it.
const LONG: Duration = Duration::from_secs(60);

/// A base domain and a gateway, in one directory.
struct Site {
    dir: tempfile::TempDir,
    running: Option<Running>,
}

/// The gateway, in a process of its own.
struct Running {
    child: Child,
    native: Address,
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGKILL: what the gateway has promised must have been on the disk before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const CONFIG: &str = "STRONGROOM_TEST_GATEWAY_CONFIG";

/// Runs this test binary again, as the gateway.
fn start(config: &Path) -> Running {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "be_the_gateway", "--ignored", "--nocapture"])
        .env(CONFIG, config)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines {
        if let Some(address) = line.unwrap().strip_prefix("serves on ") {
            return Running { child, native: address.parse().unwrap() };
        }
    }
    let _ = child.kill();
    panic!("the gateway did not start: {}", child.wait().unwrap());
}

/// Not a test: the other half of [`start`].
#[test]
#[ignore = "the gateway of the other tests"]
fn be_the_gateway() {
    let Some(config) = std::env::var_os(CONFIG) else { return };
    // Not to outlive a test that is killed.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let config = Config::load(Path::new(&config)).unwrap();
    let checked = config.check().unwrap();
    let start = Start {
        undo: None,
        key: checked.key,
        issuer: config.issuer,
        data: &checked.data,
        state: &checked.state,
        limits: config.limits,
        special_files: config.special_files,
        clock: Arc::new(SystemClock),
    };
    let gateway = Gateway::start(start).unwrap();
    let listener = Listener::open(&config.native).unwrap();
    let admin_listener = Listener::open_admin(config.admin.as_ref().unwrap()).unwrap();
    let native = listener.address().unwrap();
    let door = NativeDoor::new(gateway.clone(), Awake::never()).unwrap();
    let admin = AdminDoor::new(gateway, config.admin_keys.clone()).unwrap();
    std::thread::spawn(move || listener.run(|| false, move |socket, from| door.take(socket, from)));
    println!("\nserves on {native}");
    admin_listener.run(|| false, move |socket, from| admin.take(socket, from));
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("data/users/alice/Mail")).unwrap();
        let site = Site { dir, running: None };
        let admin = format!("unix:{}", site.dir.path().join("admin.sock").display());
        site.run(&[
            "init",
            "base",
            "--address",
            "127.0.0.1:0",
            "--interface",
            "lo",
            "--admin",
            &admin,
            "--data",
            "data",
            "--state",
            "state",
        ])
        .ok();
        site.run(&["keygen"]).ok();
        let mut site = site;
        site.restart();
        site
    }

    fn restart(&mut self) {
        self.running = None;
        self.running = Some(start(&self.dir.path().join("base/gateway/gateway.toml")));
    }

    fn run(&self, args: &[&str]) -> Run {
        run(contract()
            .current_dir(self.dir.path())
            .env("STRONGROOM_DIR", self.dir.path().join("base"))
            .args(args))
    }

    fn json(&self, args: &[&str]) -> Value {
        self.run(&[&["--json"], args].concat()).ok().json()
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    /// Connects as the guest whose key is in `key`, with a contract file or without.
    fn knock(&self, key: &str, file: Option<&str>) -> (Channel, Answer) {
        let secret = SecretKey::from_file_text(&self.text(key)).unwrap();
        let gateway = self.text("base/gateway/gateway.pub").trim().parse().unwrap();
        let tls = ClientTls::new(&secret, Peer::Key(gateway), ALPN_NATIVE).unwrap();
        let mut channel = tls.connect(&self.running.as_ref().unwrap().native, LONG).unwrap();
        channel.receiver.set_timeout(Some(LONG)).unwrap();
        let chain = file.map(|file| armour::read(&self.text(file)).unwrap().to_bytes().unwrap());
        let mut header = vec![];
        encode_header(&Hello { version: VERSION, resume: None, wait: false }, &mut header).unwrap();
        channel.sender.send(&header, &chain.unwrap_or_default()).unwrap();
        let mut frame = Frame::new();
        assert!(channel.receiver.recv(&mut frame).unwrap());
        let answer = decode_header(frame.header()).unwrap();
        (channel, answer)
    }

    fn enter(&self, key: &str, file: Option<&str>) -> (Channel, Welcome) {
        match self.knock(key, file) {
            (channel, Answer::Welcome(welcome)) => (channel, welcome),
            (_, Answer::Refused(refused)) => panic!("refused: {}", refused.text),
        }
    }

    #[track_caller]
    fn refused(&self, key: &str, file: Option<&str>) {
        match self.knock(key, file).1 {
            Answer::Refused(_) => {}
            Answer::Welcome(welcome) => panic!("welcome: {welcome:?}"),
        }
    }
}

fn event(channel: &mut Channel) -> Event {
    let mut frame = Frame::new();
    assert!(channel.receiver.recv(&mut frame).unwrap(), "an event comes before the end");
    match decode_header(frame.header()).unwrap() {
        FromGateway::Event(event) => event,
        other => panic!("{other:?}"),
    }
}

#[test]
fn grant_work_revoke_reissue() {
    let mut site = Site::new();
    let granted = site.json(&["grant", "mail", "--holder", "holder.pub", "--out", "m"]);
    assert_eq!(granted["deposited"], true);
    let (mut guest, welcome) = site.enter("holder.key", None);
    assert_eq!(welcome.contract.to_string(), granted["contract"].as_str().unwrap());

    let sessions = site.json(&["sessions"]);
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(sessions["sessions"][0]["application"], "mail");
    assert!(sessions["sessions"][0]["addresses"][0].as_str().unwrap().starts_with("127.0.0.1"));
    let listed = site.json(&["list"]);
    assert_eq!(listed["contracts"][0]["state"], "valid");
    assert_ne!(listed["contracts"][0]["last_used"], 0);
    assert_eq!(site.json(&["list", "--unused"])["contracts"].as_array().unwrap().len(), 0);

    // The next term reaches the session in place.
    let renewed = site.json(&["renew", "--all"]);
    assert_eq!(renewed["contracts"][0]["sessions_renewed"], 1);
    assert!(matches!(event(&mut guest), Event::Renewed { .. }));

    let revoked = site.json(&["revoke", "mail", "--why", "test"]);
    assert_eq!((revoked["fenced"].as_bool(), revoked["sessions"].as_u64()), (Some(true), Some(1)));
    assert!(matches!(event(&mut guest), Event::Fenced(FenceReason::Revoked)));
    assert_eq!(site.json(&["sessions"])["sessions"].as_array().unwrap().len(), 0);
    site.refused("holder.key", Some("m"));
    site.refused("holder.key", None);

    let reissued = site.json(&["reissue", "mail"]);
    assert_eq!(reissued["contracts"].as_array().unwrap().len(), 1);
    // The new contract comes to the holder even if the file beside the mount is the old one.
    for file in [None, Some("m")] {
        let (_guest, welcome) = site.enter("holder.key", file);
        assert_eq!(welcome.generation, reissued["generation"].as_u64().unwrap());
    }

    // No restart brings the old generation back, and no lost archive.
    site.restart();
    let (_guest, welcome) = site.enter("holder.key", Some("m"));
    assert_eq!(welcome.generation, reissued["generation"].as_u64().unwrap());
    std::fs::remove_dir_all(site.dir.path().join("base/issued")).unwrap();
    std::fs::create_dir(site.dir.path().join("base/issued")).unwrap();
    let granted = site.json(&["grant", "mail", "--holder", "holder.pub"]);
    assert_eq!(granted["generation"], reissued["generation"]);
}

#[test]
fn one_contract_is_revoked_and_others_live() {
    let site = Site::new();
    site.run(&["keygen", "--out", "other.key"]).ok();
    let first = site.json(&["grant", "mail", "--holder", "holder.pub", "--out", "m"]);
    site.json(&["grant", "mail", "--holder", "other.pub"]);
    let (mut one, _) = site.enter("holder.key", None);
    let (_other, _) = site.enter("other.key", None);
    site.run(&["revoke", first["contract"].as_str().unwrap()]).ok();
    assert!(matches!(event(&mut one), Event::Fenced(_)));
    site.refused("holder.key", Some("m"));
    assert_eq!(site.json(&["sessions"])["sessions"].as_array().unwrap().len(), 1);
    site.enter("other.key", None);
}

#[test]
fn a_narrower_contract_falls_with_the_one_it_came_from() {
    let site = Site::new();
    let first = site.json(&["grant", "mail", "--holder", "holder.pub", "--out", "m"]);
    site.run(&["keygen", "--out", "other.key"]).ok();
    let narrow =
        ["attenuate", "m", "--key", "holder.key", "--holder", "other.pub", "--path", "/Mail", "--out", "n"];
    let narrower = site.json(&narrow);
    let (mut guest, welcome) = site.enter("other.key", Some("n"));
    assert_eq!(welcome.contract.to_string(), narrower["contract"].as_str().unwrap());
    site.run(&["revoke", first["contract"].as_str().unwrap()]).ok();
    assert!(matches!(event(&mut guest), Event::Fenced(_)));
    site.refused("other.key", Some("n"));
}

#[test]
fn a_contract_issued_offline_is_good_at_the_gateway() {
    let site = Site::new();
    site.run(&["grant", "editor", "--holder", "holder.pub", "--out", "e", "--offline"]).ok();
    site.refused("holder.key", None);
    site.enter("holder.key", Some("e"));
    // A stranger has no use for it.
    site.run(&["keygen", "--out", "other.key"]).ok();
    site.refused("other.key", Some("e"));
}

#[test]
fn a_stranger_is_no_administrator() {
    let site = Site::new();
    site.run(&["keygen", "--out", "base/base/admin.key", "--force"]).ok();
    site.run(&["sessions"]).fails(6, "admin-keys");
    site.run(&["grant", "mail", "--holder", "holder.pub"]).fails(6, "nothing was issued");
    site.run(&["revoke", "mail"]).fails(6, "NOT FENCED");
}

#[test]
fn a_gateway_that_was_away_gets_the_revocation_first() {
    let mut site = Site::new();
    site.run(&["grant", "mail", "--holder", "holder.pub", "--out", "m"]).ok();
    site.running = None;
    site.run(&["revoke", "mail"]).fails(5, "NOT FENCED");
    site.restart();
    site.enter("holder.key", Some("m"));
    let renewed = site.run(&["renew", "--all"]).ok();
    assert!(renewed.err.contains("pending revocation of mail"), "{}", renewed.err);
    site.refused("holder.key", Some("m"));
    site.json(&["reissue", "mail"]);
    site.enter("holder.key", None);
}
