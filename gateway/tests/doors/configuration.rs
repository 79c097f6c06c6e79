//! What the gateway refuses to start on, what it says, and its exit codes.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use crate::support::{World, key};

fn run(world: &World, text: &str, arguments: &[&str]) -> Output {
    std::fs::write(world.config_file(), text).unwrap();
    Command::new(env!("CARGO_BIN_EXE_strongroom-gateway"))
        .arg("--config")
        .arg(world.config_file())
        .args(arguments)
        .output()
        .unwrap()
}

/// The one line that a configuration is refused with.
fn refusal(world: &World, text: &str) -> String {
    let output = run(world, text, &["--check"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}\n{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(!world.state().exists(), "nothing half made");
    said
}

#[test]
fn a_right_configuration_passes_the_check() {
    let world = World::prepare("sessions = 5\nsession-grace = \"2m\"\naudit-size = \"1 MiB\"");
    for text in [world.config_text(), format!("awake = false\n{}", world.config_text())] {
        let output = run(&world, &text, &["--check"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

#[test]
fn every_mistake_has_its_sentence() {
    let world = World::prepare("");
    let good = world.config_text();
    // What is replaced by what, and what the sentence must contain.
    let cases: &[(&str, &str, &[&str])] = &[
        ("127.0.0.1:0\"\nadmin", "0.0.0.0:7070\"\nadmin", &["address", "wildcard", "127.0.0.0/8", ":10:"]),
        ("127.0.0.1:0\"\nadmin", "[::]:7070\"\nadmin", &["wildcard"]),
        ("127.0.0.1:0\"\nadmin", "[::ffff:0.0.0.0]:7070\"\nadmin", &["wildcard"]),
        ("127.0.0.1:0\"\nadmin", "8.8.8.8:7070\"\nadmin", &["public address"]),
        ("127.0.0.1:0\"\nadmin", "10.1.2.3:7070\"\nadmin", &["not in the listed network"]),
        ("127.0.0.1:0\"\nadmin", "127.0.0.1\"\nadmin", &["no address and port", "10.77.0.1:7070"]),
        ("127.0.0.0/8", "0.0.0.0/0", &["network", "not an internal network", ":9:"]),
        ("127.0.0.0/8", "8.8.8.0/24", &["not an internal network"]),
        ("127.0.0.0/8", "127.0.0.1/8", &["write `127.0.0.0/8`"]),
        ("127.0.0.0/8", "10.0.0.0/7", &["not an internal network"]),
        ("interface = \"lo\"", "interface = \"nosuchif0\"", &["loopback network"]),
        ("interface = \"lo\"", "interface = \"a b\"", &["loopback network"]),
        ("interface = \"lo\"", "interfaces = \"lo\"", &["interfaces", "interface", ":8:"]),
        ("[limits]", "[limits]\nsesions = 3", &["sesions", "sessions", ":14:"]),
        ("[limits]", "[limits]\nsessions = 0", &["sessions", "1 to 1000000", ":14:"]),
        ("[limits]", "[limits]\nsessions = \"many\"", &["invalid type", ":14:"]),
        ("[limits]", "[limits]\nsession-grace = \"2 fortnights\"", &["session-grace", "120s", ":14:"]),
        ("[limits]", "[limits]\naudit-size = \"3\"", &["audit-size", "64 MiB"]),
        ("[limits]", "[store]\nspecial-files = \"keep\"", &["keep", "store"]),
        ("[limits]", "[limit]", &["limit"]),
        ("data = \"data\"", "awake = \"yes\"\ndata = \"data\"", &["invalid type", "boolean"]),
        ("data = \"data\"", "", &["missing field `data`"]),
        ("data = \"data\"", "data = \"nowhere\"", &["data: there is no directory"]),
        ("data = \"data\"", "data = \"gateway.key\"", &["not a directory"]),
        ("state = \"state\"", "state = \"data/state\"", &["inside the data root"]),
        ("state = \"state\"", "state = \"data\"", &["inside the data root"]),
        ("state = \"state\"", "state = \".\"", &["data:", "inside the state directory"]),
        ("state = \"state\"", "state = \"gone/state\"", &["state: cannot reach"]),
        ("key = \"gateway.key\"", "key = \"other.key\"", &["no file", "contract init"]),
        ("issuer = \"ed25519:", "issuer = \"ed25519:!", &["issuer", "not a public key", ":4:"]),
        ("admin-keys = [\"", "admin-keys = [] #", &["nobody could use the admin door"]),
        ("admin = \"127", "admin = \"unix:relative\"#", &["absolute path"]),
        ("admin = \"127", "admin-interface = \"lo\"\n#", &["set `admin` too"]),
        ("admin = \"127", "admin = \"0.0.0.0:7071\"#", &["admin", "wildcard"]),
        ("[listen]", "[listen", &[":7:"]),
    ];
    for (old, new, wanted) in cases {
        assert!(good.contains(old), "{old}");
        let said = refusal(&world, &good.replacen(old, new, 1));
        for part in *wanted {
            assert!(said.contains(part), "{new}: {said:?} lacks {part:?}");
        }
    }
    let internal = good
        .replace("127.0.0.0/8", "10.0.0.0/8")
        .replacen("127.0.0.1:0", "10.0.0.1:7", 1)
        .replacen("127.0.0.1:0", "10.0.0.2:7", 1);
    assert!(
        refusal(&world, &internal.replace("\"lo\"", "\"nosuchif0\"")).contains("no interface `nosuchif0`")
    );
    assert!(refusal(&world, &internal).contains("does not have the address 10.0.0.1"));
}

#[test]
fn an_interface_with_a_default_route_is_refused() {
    let world = World::prepare("");
    let Some(interface) = default_interface() else {
        eprintln!("this machine has no default route: nothing to refuse");
        return;
    };
    let text = world
        .config_text()
        .replace("127.0.0.0/8", "10.0.0.0/8")
        .replacen("127.0.0.1:0", "10.0.0.1:7", 1)
        .replacen("127.0.0.1:0", "10.0.0.2:7", 1)
        .replace("\"lo\"", &format!("\"{interface}\""));
    let said = refusal(&world, &text);
    assert!(said.contains("carries a default route"), "{said}");
}

fn default_interface() -> Option<String> {
    let routes = std::fs::read_to_string("/proc/net/route").ok()?;
    let mut fields = routes.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.find(|route| route[1] == "00000000" && route[7] == "00000000").map(|route| route[0].to_owned())
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let world = World::prepare("");
    let file = world.dir.path().join("gateway.key");
    for mode in [0o644, 0o640, 0o604, 0o660] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let said = refusal(&world, &world.config_text());
        assert!(said.contains("chmod 600") && said.contains(&format!("{mode:04o}")), "{said}");
    }
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&file, "hello").unwrap();
    assert!(refusal(&world, &world.config_text()).contains("not a secret key file"));
    std::fs::write(&file, &key().to_file_text()[..50]).unwrap();
    assert!(refusal(&world, &world.config_text()).contains("damaged"));
}

#[test]
fn the_exit_code_tells_what_is_wrong() {
    let mut world = World::prepare("");
    let missing = Command::new(env!("CARGO_BIN_EXE_strongroom-gateway"))
        .args(["--config", "/nonexistent/g.toml"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("--config"));
    assert_eq!(run(&world, "", &["--no-such-option"]).status.code(), Some(2));
    world.start();
    let text = world.config_text();
    let second = run(&world, &text, &[]);
    assert_eq!(second.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another gateway runs"));
    // Another key is another gateway: its ledger is not taken over.
    world.kill();
    crate::support::write_secret(&world.dir.path().join("gateway.key"), &key());
    let foreign = run(&world, &text, &[]);
    assert_eq!(foreign.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&foreign.stderr).contains("belongs to the gateway"));
}
