//! What an app guest of a lab reaches: the native door, and nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

use strongroom_tests::lab::{ADMIN_ADDRESS, GATEWAY_ADDRESS, Lab, Options};

/// Tries to connect, from a chosen address when one is given. Prints `open`, or why not.
const CONNECT: &str = r#"
import socket, sys
s = socket.socket()
s.settimeout(5)
try:
    if len(sys.argv) > 2:
        s.bind((sys.argv[2], 0))
    host, port = sys.argv[1].split(":")
    s.connect((host, int(port)))
    print("open")
except OSError as error:
    print(error)
"#;

/// Serves on a port, and says so once it does.
const SERVE: &str = r#"
import os, socket, sys
s = socket.socket()
host, port = sys.argv[1].split(":")
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((host, int(port)))
s.listen()
if os.fork():
    print("serves")
    sys.exit()
os.setsid()
for fd in (0, 1, 2):
    os.close(fd)
while True:
    s.accept()
"#;

fn empty_lab(purpose: &str) -> Lab {
    Lab::up(&Options { empty: true, ..Options::for_test(purpose) }).unwrap()
}

fn from_mail(lab: &Lab, address: &str) -> String {
    lab.app("mail", ["python3", "-c", CONNECT, address]).run().unwrap().trim().to_owned()
}

fn serve(command: impl Fn(&[&str]) -> strongroom_tests::lab::GuestCommand, address: &str) {
    assert_eq!(command(&["python3", "-c", SERVE, address]).run().unwrap(), "serves\n");
}

#[test]
fn app_guests_reach_the_native_door_only() {
    let lab = empty_lab("reach");
    let storage = |words: &[&str]| lab.storage(words.iter().copied());
    for address in [GATEWAY_ADDRESS, ADMIN_ADDRESS, "10.77.0.1:7999"] {
        serve(storage, address);
    }
    serve(|words| lab.app("editor", words.iter().copied()), "10.77.1.2:7070");
    serve(|words| lab.base(words.iter().copied()), "10.78.0.2:7070");

    assert_eq!(from_mail(&lab, GATEWAY_ADDRESS), "open");
    let from_base = lab.base(["python3", "-c", CONNECT, ADMIN_ADDRESS]).run().unwrap();
    assert_eq!(from_base, "open\n", "the base domain reaches the admin door");

    // As configured; then as a hostile root of the guest would have it.
    for routes in ["", "ip route add 10.78.0.0/24 via 10.77.0.1", "ip route add default via 10.77.0.1"] {
        if !routes.is_empty() {
            lab.app("mail", ["sh", "-c", routes]).run().unwrap();
        }
        for (address, whose) in [
            (ADMIN_ADDRESS, "the admin door"),
            ("10.77.0.1:7071", "the admin door's port"),
            ("10.77.0.1:7999", "another port of the storage guest"),
            ("10.77.1.2:7070", "another app guest"),
            ("10.78.0.2:7070", "the base domain"),
        ] {
            assert_ne!(from_mail(&lab, address), "open", "`mail` reaches {whose} (routes: `{routes}`)");
        }
    }
    assert_eq!(
        from_mail(&lab, GATEWAY_ADDRESS),
        "open",
        "and it was not the guest's network that was broken"
    );
}

#[test]
fn app_guests_speak_only_from_their_own_address() {
    let lab = empty_lab("spoof");
    serve(|words| lab.storage(words.iter().copied()), GATEWAY_ADDRESS);
    lab.app("mail", ["ip", "addr", "add", "10.77.1.2/16", "dev", "eth0"]).run().unwrap();
    lab.app("mail", ["ip", "addr", "add", "10.77.9.9/16", "dev", "eth0"]).run().unwrap();
    // The neighbour whose address it is keeps silent, so that nothing but the switch stands in the way.
    lab.app("editor", ["ip", "link", "set", "eth0", "down"]).run().unwrap();
    let from = |source: &str| {
        lab.app("mail", ["python3", "-c", CONNECT, GATEWAY_ADDRESS, source]).run().unwrap().trim().to_owned()
    };
    assert_eq!(from("10.77.1.1"), "open");
    assert_ne!(from("10.77.1.2"), "open", "`mail` speaks as `editor`");
    assert_ne!(from("10.77.9.9"), "open", "`mail` speaks from an address that nobody has");
}

#[test]
fn storage_and_base_have_no_way_out() {
    let lab = empty_lab("out");
    for routes in [lab.storage(["ip", "route"]).run().unwrap(), lab.base(["ip", "route"]).run().unwrap()] {
        assert!(!routes.contains("default"), "{routes}");
    }
    assert_eq!(lab.storage(["cat", "/proc/sys/net/ipv4/ip_forward"]).run().unwrap(), "0\n");
}

#[test]
fn app_guests_see_nothing_of_others() {
    let lab = Lab::up(&Options::for_test("see")).unwrap();
    lab.app("editor", ["sh", "-c", "echo mine > /tmp/editors-own; sleep 1000.25 >/dev/null 2>&1 &"])
        .run()
        .unwrap();
    let data = lab.data().to_str().unwrap().to_owned();
    let state = lab.etc("base").parent().unwrap().parent().unwrap().parent().unwrap().to_owned();

    let names =
        ["issuer.key", "admin.key", "gateway.key", "gateway.toml", "diary.txt", "letter.txt", "editors-own"];
    for name in names {
        // Everywhere but in /proc, where the other tests' processes would be: this guest has its own.
        let found = lab
            .app("mail", ["find", "/", "-path", "/proc", "-prune", "-o", "-name", name, "-print"])
            .cwd("/");
        let found = String::from_utf8(found.output().unwrap().stdout).unwrap();
        assert_eq!(found, "", "`mail` sees {name}");
    }
    for path in [data.as_str(), state.to_str().unwrap(), "/run/strongroom-lab"] {
        let seen = lab.app("mail", ["test", "-e", path]).output().unwrap().status.success();
        assert!(!seen, "`mail` sees {path}");
    }
    let processes = lab.app("mail", ["ps", "-eo", "args"]).cwd("/").run().unwrap();
    assert!(!processes.contains("1000.25") && !processes.contains("strongroom-gateway"), "{processes}");
    let mine = lab.app("mail", ["ls", "/etc/strongroom"]).cwd("/").run().unwrap();
    assert_eq!(mine, "contract\nholder.key\nholder.pub\n");
    let table = lab.app("mail", ["cat", "/proc/self/mountinfo"]).cwd("/").run().unwrap();
    assert!(!table.contains("app-editor") && !table.contains("/data "), "{table}");

    // The issuer's key stays in the base domain, the data in the storage guest.
    let find = ["find", "/", "-xdev", "-name", "issuer.key"];
    assert!(!String::from_utf8(lab.storage(find).output().unwrap().stdout).unwrap().contains("issuer.key"));
    assert!(lab.base(["test", "-e", "/srv/strongroom/data"]).output().unwrap().status.code() == Some(1));
    assert!(lab.base(["test", "-e", "/etc/strongroom/gateway"]).output().unwrap().status.code() == Some(1));
}

#[test]
fn guests_share_no_writable_place_with_the_host() {
    let lab = empty_lab("write");
    let probe = format!("lab-probe-{}", std::process::id());
    for dir in ["/tmp", "/var/tmp", "/run", "/root", "/etc", "/dev/shm"] {
        let path = format!("{dir}/{probe}");
        lab.app("mail", ["sh", "-c", &format!("echo x > {path}")]).run().unwrap();
        assert!(!std::path::Path::new(&path).exists(), "{path} of the guest is on the host");
        assert!(
            !lab.app("editor", ["test", "-e", &path]).output().unwrap().status.success(),
            "{path} is shared"
        );
    }
    for dir in ["/usr", "/usr/bin", "/opt"] {
        let tried = lab.app("mail", ["touch", &format!("{dir}/{probe}")]).output().unwrap();
        assert!(!tried.status.success(), "the guest writes the host's {dir}");
    }
}
