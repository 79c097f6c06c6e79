//! The demo does what it says, twice in a row, and leaves nothing behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by failing"
)]

use std::process::Command;

use strongroom_tests::lab::{LabName, status_of};

#[test]
fn the_demo_works_twice_in_a_row() {
    for round in 1..=2 {
        let child = Command::new(env!("CARGO_BIN_EXE_demo"))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let name: LabName = format!("t-demo-{}-0", child.id()).parse().unwrap();
        let output = child.wait_with_output().unwrap();
        let (told, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "round {round}:\n{told}\n{complained}");
        for chapter in
            ["1. Grant", "2. Mount", "3. Work", "4. What", "5. A stolen", "6. Revoke", "7. Reissue", "Done"]
        {
            assert!(told.contains(&format!("== {chapter}")), "round {round} left out {chapter}:\n{told}");
        }
        assert!(status_of(&name).unwrap().is_none(), "round {round} left its lab behind");
    }
}
