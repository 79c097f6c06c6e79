//! Every kind of mistake in a policy file: its message, its place, its way out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panic")]

mod common;
use common::{MAIL, app, good, set};

/// The start of a file that is right so far, for mistakes in what follows; what follows begins on line 5.
const GRANT: &str =
    "application = \"mail\"\ngrant = [{ path = \"a\", mount = \"/a\", rights = \"read-only\" }]\n\n\n";
/// A grant's header and the keys that it must have, for mistakes in others; what follows begins on line 6.
const IN_GRANT: &str =
    "application = \"mail\"\n[[grant]]\npath = \"a\"\nmount = \"/a\"\nrights = \"read-write\"\n";

/// Asserts that a text has exactly these mistakes: line, column, part of the message, part of the help.
fn assert_mistakes(text: &str, wanted: &[(usize, usize, &str, &str)]) {
    let set = set(&[("mail", text)]);
    let found: Vec<String> = set.errors().iter().map(|error| error.to_string()).collect();
    assert_eq!(found.len(), wanted.len(), "{text}\n{found:#?}");
    assert!(set.policies().is_empty());
    for (error, (line, column, message, help)) in set.errors().iter().zip(wanted) {
        let place = error.place();
        assert_eq!((place.line, place.column), (*line, *column), "{error}\n{text}");
        assert!(error.message().contains(message), "{error}\nwanted: {message}");
        assert!(error.help_text().unwrap_or_default().contains(help), "{error}\nwanted: {help}");
        assert_eq!(error.file(), "policy.d/mail.toml");
        // The rendering shows the file, the line and the column, and the line itself with a mark below it.
        let shown = error.render(false);
        assert!(shown.contains(&format!("policy.d/mail.toml:{line}:{column}")), "{shown}");
        assert!(shown.contains('^'), "{shown}");
    }
}

fn assert_one(text: &str, line: usize, column: usize, message: &str, help: &str) {
    assert_mistakes(text, &[(line, column, message, help)]);
}

#[test]
fn keys() {
    assert_one(
        &format!("{GRANT}lifetme = \"8h\""),
        5,
        1,
        "`lifetme` is not a key of the policy",
        "`lifetime`",
    );
    assert_one(
        &format!("{GRANT}colour = 1"),
        5,
        1,
        "`colour` is not a key",
        "known keys are application, guest",
    );
    assert_one(&format!("{GRANT}quota = 1"), 5, 1, "`quota` is not a key", "belongs in a [[grant]]");
    assert_one(&format!("{GRANT}write-rate = 1"), 5, 1, "`write-rate` is not", "belongs in [limits]");
    assert_one(&format!("{GRANT}steps = []"), 5, 1, "`steps` is not a key", "belongs in [recovery]");
    assert_one(&format!("{IN_GRANT}qouta = 1"), 6, 1, "`qouta` is not a key of [[grant]]", "`quota`");
    assert_one(&format!("{IN_GRANT}audit = \"strict\""), 6, 1, "`audit` is not", "at the top of the file");
    assert_one(&format!("{GRANT}[limits]\nwrite_rate = \"1 B/s\""), 6, 1, "of [limits]", "`write-rate`");
    assert_one(&format!("{GRANT}[recovery]\nstep = []"), 6, 1, "of [recovery]", "`steps`");
}

#[test]
fn application_and_guest() {
    let grant = "[[grant]]\npath = \"a\"\nmount = \"/a\"\nrights = \"list\"\n";
    assert_one(grant, 1, 1, "the policy has no `application`", "application = \"mail\"");
    assert_one(&format!("application = \"Mail\"\n{grant}"), 1, 15, "application name `Mail`", "");
    assert_one(
        &format!("application = 1\n{grant}"),
        1,
        15,
        "is a string such as \"mail\", not an integer",
        "",
    );
    assert_one(
        &format!("{GRANT}guest = \"-f x\""),
        5,
        9,
        "`-f x` is not the name of a guest",
        "letters, digits",
    );
    assert_one(&format!("{GRANT}guest = true"), 5, 9, "`guest` is a string", "");
}

#[test]
fn lifetime_until_audit() {
    assert_one(&format!("{GRANT}lifetime = \"8\""), 5, 12, "`8` has no unit of time", "\"8h\"");
    assert_one(&format!("{GRANT}lifetime = 8"), 5, 12, "is a string such as \"8h\", not an integer", "");
    assert_one(&format!("{GRANT}lifetime = \"0s\""), 5, 12, "a lifetime of nothing", "\"8h\"");
    assert_one(&format!("{GRANT}lifetime = \"2000d\""), 5, 12, "2000d is more than the 366d", "hours");
    assert_one(&format!("{GRANT}until = \"2027-01-01\""), 5, 9, "a date and time in UTC, without quotes", "");
    assert_one(&format!("{GRANT}until = 2027-01-01T10:00:00"), 5, 9, "`until` is a date", "");
    assert_one(&format!("{GRANT}until = 2027-01-32"), 5, 9, "not TOML", "");
    assert_one(&format!("{GRANT}audit = \"strikt\""), 5, 9, "`strikt` is not a kind of audit", "`strict`");
    assert_one(
        &format!("{GRANT}audit = \"all of it\""),
        5,
        9,
        "not a kind of audit",
        "\"normal\" or \"strict\"",
    );
}

#[test]
fn detection() {
    let with = |line: &str| format!("{GRANT}[detection]\n{line}");
    assert_one(&with("verdict = \"fense\""), 6, 11, "not something to do about ransomware", "`fence`");
    assert_one(&with("burst = 0"), 6, 9, "`burst` is out of range", "from 1");
    assert_one(&with("slow = \"40\""), 6, 8, "a whole number without quotes", "");
    assert_one(&with("brust = 7"), 6, 1, "brust", "`burst`");
}

#[test]
fn undo_space_and_full() {
    assert_one(&format!("{GRANT}undo-full = \"forgt\""), 5, 13, "`forgt` is not something to do", "`forget`");
    assert_one(&format!("{GRANT}undo-space = \"0 B\""), 5, 14, "without space", "remove the key");
    assert_one(&format!("{GRANT}undo-space = 7"), 5, 14, "is a string such as \"10 GiB\"", "");
}

#[test]
fn networks() {
    assert_mistakes(
        &format!("{GRANT}networks = [\"10.77.0.1/24\", \"ten\", 7]"),
        &[
            (5, 13, "write `10.77.0.0/24`", ""),
            (5, 29, "`ten` is not an address", ""),
            (5, 36, "an integer", ""),
        ],
    );
    assert_one(&format!("{GRANT}networks = []"), 5, 12, "allows no address", "remove the key");
    let many = vec!["\"10.0.0.1\""; 33].join(", ");
    assert_one(&format!("{GRANT}networks = [{many}]"), 5, 12, "33 networks are more than the 32", "");
}

#[test]
fn grants() {
    assert_one("application = \"mail\"", 1, 15, "`mail` is granted nothing", "add a [[grant]]");
    assert_one("application = \"mail\"\n[grant]\npath = \"a\"", 2, 2, "two brackets", "[[grant]]");
    assert_one("application = \"mail\"\ngrant = 7", 2, 9, "an array of tables", "");
    assert_one("application = \"mail\"\n[[grants]]\npath = \"a\"", 2, 3, "`grants` is not a key", "`grant`");
    assert_mistakes(
        "application = \"mail\"\n[[grant]]\n",
        &[
            (2, 1, "[[grant]] has no `path`", "path = \"users/alice/Mail\""),
            (2, 1, "[[grant]] has no `mount`", "mount = \"/Mail\""),
            (2, 1, "[[grant]] has no `rights`", "rights = \"read-only\""),
        ],
    );
    let many: String =
        (0..65).map(|n| format!("[[grant]]\npath = \"a\"\nmount = \"/{n}\"\nrights = \"list\"\n")).collect();
    assert_one(&format!("application = \"mail\"\n{many}"), 1, 15, "65 grants are more than the 64", "");
}

#[test]
fn paths() {
    let grant = |path: &str, mount: &str| {
        format!("application = \"mail\"\n[[grant]]\npath = {path}\nmount = {mount}\nrights = \"list\"\n")
    };
    assert_one(&grant("\"/a/b/\"", "\"/a\""), 3, 8, "starts with `/`", "write \"a/b\"");
    assert_one(&grant("\"a/../b\"", "\"/a\""), 3, 8, "`.` or `..` component", "");
    assert_one(&grant("\"a//b\"", "\"/a\""), 3, 8, "empty component", "");
    assert_one(&grant("\"a\\u0007\"", "\"/a\""), 3, 8, "control character", "");
    assert_one(&grant(&format!("\"{}\"", "a".repeat(300)), "\"/a\""), 3, 8, "too long", "");
    assert_one(&grant("7", "\"/a\""), 3, 8, "`path` is a string", "");
    assert_one(&grant("\"a\"", "\"a\""), 4, 9, "does not start with `/`", "write \"/a\"");
    assert_one(&grant("\"a\"", "\"/\""), 4, 9, "empty component", "");
}

#[test]
fn mounts_that_overlap_name_both_lines() {
    let two =
        |mount: &str| format!("{IN_GRANT}[[grant]]\npath = \"b\"\nmount = \"{mount}\"\nrights = \"list\"\n");
    assert_one(&two("/a"), 8, 9, "two grants appear at `/a`", "a mount path of its own");
    assert_one(&two("/a/b"), 8, 9, "`/a` and `/a/b` lie one in the other", "a mount path of its own");
    let set = set(&[("mail", &two("/a/b"))]);
    assert_eq!(set.errors()[0].related_place().unwrap().line, 4);
    assert!(set.errors()[0].render(false).contains("the other grant"));
}

#[test]
fn rights() {
    let rights = |value: &str| {
        format!("application = \"mail\"\n[[grant]]\npath = \"a\"\nmount = \"/a\"\nrights = {value}\n")
    };
    assert_one(&rights("\"list apend\""), 5, 16, "`apend` is neither a right nor", "did you mean `append`?");
    assert_one(&rights("\"reed-only\""), 5, 11, "`reed-only`", "did you mean `read-only`?");
    assert_one(&rights("[\"read-only\", \"wirte\"]"), 5, 25, "`wirte`", "did you mean `write`?");
    assert_one(&rights("\"sudo\""), 5, 11, "`sudo`", "rights and bundles are list, read");
    assert_one(&rights("\"\""), 5, 10, "grants nothing", "rights = \"read-only\"");
    assert_one(&rights("[]"), 5, 10, "grants nothing", "rights = \"read-only\"");
    assert_one(&rights("[1]"), 5, 11, "this is an integer", "");
    assert_one(&rights("true"), 5, 10, "`rights` is a string or an array", "");
    // With escapes the word's own place is not known: the whole string is marked.
    assert_one(&rights("\"list\\u0020apend\""), 5, 10, "`apend`", "`append`");
}

#[test]
fn limits_of_grants() {
    assert_one(&format!("{IN_GRANT}quota = \"20 gib\""), 6, 9, "`gib` is not a unit of size", "`GiB`");
    assert_one(&format!("{IN_GRANT}quota = -1"), 6, 9, "`quota` is below zero", "remove the key");
    assert_one(&format!("{IN_GRANT}quota = 1.5"), 6, 9, "a size such as \"20 GiB\"", "");
    assert_one(&format!("{IN_GRANT}max-file = \"lots\""), 6, 12, "`lots` is not a size", "whole number");
    assert_one(&format!("{IN_GRANT}files = \"7\""), 6, 9, "a whole number of files", "");
    assert_one(&format!("{IN_GRANT}files = -7"), 6, 9, "`files` is below zero", "remove the key");
    assert_one(&format!("{IN_GRANT}undo = 7"), 6, 8, "a string such as \"7d\", not an integer", "");
    assert_one(&format!("{IN_GRANT}undo = \"7 days\""), 6, 8, "`days` is not a unit of time", "\"8h\"");
    assert_one(&format!("{IN_GRANT}ownership = \"preserved\""), 6, 13, "not a kind of", "`preserve`");
}

#[test]
fn session_limits() {
    let limit = |line: &str| format!("{GRANT}[limits]\n{line}");
    assert_one(&limit("read-rate = \"50 MiB\""), 6, 13, "does not end in `/s`", "\"50 MiB/s\"");
    assert_one(&limit("write-rate = \"0 B/s\""), 6, 14, "a rate of zero", "remove the key");
    assert_one(&limit("op-rate = 1000"), 6, 11, "a string such as \"1000/s\"", "");
    assert_one(&limit("op-rate = \"many/s\""), 6, 11, "`many/s` is not a rate", "\"1000/s\"");
    assert_one(&limit("in-flight = 0"), 6, 13, "out of range", "from 1 to");
    assert_one(&limit("in-flight = 5000000000"), 6, 13, "out of range", "from 1 to");
    assert_one(&limit("open-handles = \"9\""), 6, 16, "a whole number without quotes", "");
    assert_one(&format!("{GRANT}limits = 3"), 5, 10, "`limits` is a table, written [limits]", "");
}

#[test]
fn recovery() {
    let recovery = |text: &str| format!("{GRANT}[recovery]\n{text}");
    assert_one(&recovery("on = [\"voilation\"]\nsteps = [\"fence\"]"), 6, 7, "`voilation`", "`violation`");
    assert_one(&recovery("steps = [\"fense\"]"), 6, 10, "`fense` is not a step", "`fence`");
    assert_one(&recovery("steps = [\"undo\"]"), 6, 10, "how far back", "`undo 15m`");
    assert_one(&recovery("steps = [\"undo 15\"]"), 6, 10, "no unit of time", "");
    assert_one(
        &recovery("steps = [\"restart\", \"fence\"]"),
        6,
        21,
        "`fence` comes after `restart`",
        "order",
    );
    assert_one(&recovery("steps = [\"fence\", \"fence\"]"), 6, 19, "`fence` is there twice", "order");
    assert_one(&recovery("addresses = [\"10.77.1\"]"), 6, 14, "`10.77.1` is not an address", "10.77.1.1");
    assert_one(&recovery("on = [\"violation\"]"), 6, 1, "has no steps", "steps = [");
    assert_one(&recovery("on = [\"ids.severity > 2\"]\nsteps = [\"fence\"]"), 6, 7, "severity", "`< N`");
}

#[test]
fn syntax() {
    assert_one("application = \"mail", 1, 20, "not TOML: ", "");
    assert_one("application = \"mail\"\napplication = \"mail\"\n", 2, 1, "not TOML: duplicate key", "");
    assert_one("= 1", 1, 1, "not TOML", "");
    assert_mistakes(
        "application = \"mail\"\nguest = \"x\naudit == \"strict\"\n",
        &[(2, 11, "not TOML", ""), (3, 8, "not TOML", "")],
    );
    let long = format!("# {}", "x".repeat(2 << 20));
    let set = set(&[("mail", &long)]);
    assert!(set.errors()[0].message().contains("too long for a policy file"));
}

#[test]
fn all_mistakes_of_a_file_at_once() {
    assert_mistakes(
        "aplication = \"mail\"\nlifetime = \"8 hours\"\n[[grant]]\npath = \"/a\"\nrights = \"raed\"\n",
        &[
            (1, 1, "`aplication` is not a key", "`application`"),
            (1, 1, "the policy has no `application`", ""),
            (2, 12, "`hours` is not a unit", ""),
            (3, 1, "has no `mount`", ""),
            (4, 8, "starts with `/`", "write \"a\""),
            (5, 11, "`raed`", "`read`"),
        ],
    );
}

#[test]
fn a_bad_file_disables_its_own_application_only() {
    let editor = MAIL.replace("\"mail\"", "\"editor\"");
    for bad in [MAIL.replace("read-write", "raed-write"), MAIL.replace("[[grant]]", "[[grant]")] {
        let set = set(&[("mail", &bad), ("editor", &editor)]);
        assert!(set.get(&app("editor")).is_some());
        assert_eq!(set.disabled(), [&app("mail")]);
        assert!(set.errors().iter().all(|error| error.application() == Some(&app("mail"))));
    }
}

#[test]
fn the_later_of_two_files_for_one_application_is_a_mistake() {
    let set = set(&[("b", MAIL), ("a", MAIL), ("c", &MAIL.replace("\"mail\"", "\"editor\""))]);
    assert_eq!(&*set.get(&app("mail")).unwrap().file, "policy.d/a.toml");
    assert!(set.get(&app("editor")).is_some());
    assert!(set.disabled().is_empty());
    let [error] = set.errors() else { panic!("one mistake") };
    assert_eq!(error.file(), "policy.d/b.toml");
    assert_eq!(error.message(), "`mail` has a policy already, in policy.d/a.toml:2");
    let shown = error.render(false);
    assert!(shown.contains("policy.d/b.toml:2:15") && shown.contains("policy.d/a.toml:2:15"), "{shown}");
}

#[test]
fn forms_for_people_and_programs() {
    let set = set(&[("mail", &MAIL.replace("append-only", "apend-only"))]);
    let error = &set.errors()[0];
    assert_eq!(
        error.render(false),
        "error: `apend-only` is neither a right nor a bundle of rights
  --> policy.d/mail.toml:15:11
   |
15 | rights = \"apend-only\"
   |           ^^^^^^^^^^ unknown right
   |
   = help: did you mean `append-only`?"
    );
    assert!(error.render(true).contains("\u{1b}["));
    assert_eq!(
        serde_json::to_value(error).unwrap(),
        serde_json::json!({
            "file": "policy.d/mail.toml", "line": 15, "column": 11,
            "message": "`apend-only` is neither a right nor a bundle of rights",
            "help": "did you mean `append-only`?", "application": "mail",
        })
    );
}

#[test]
fn a_right_file_has_no_mistakes() {
    let set = good(&[("mail", MAIL)]);
    let policy = set.get(&app("mail")).unwrap();
    assert_eq!(policy.grants[1].key_place("quota").to_string(), "policy.d/mail.toml:16");
    assert_eq!(policy.limit_places["write-rate"].line, 19);
    assert_eq!(policy.recovery.as_ref().unwrap().steps.len(), 4);
}
