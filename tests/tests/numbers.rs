//! Inode numbers come again: what a guest holds of a file that it has removed is not of the next file with the number, which another
//! guest makes.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

#[path = "support/pair.rs"]
mod pair;

use std::os::unix::fs::MetadataExt;

use pair::{APPS, Guest};
use strongroom_tests::agent::look;

const ROUNDS: usize = 200;

#[test]
fn a_number_that_comes_again_is_another_files() {
    let lab = pair::lab("numbers");
    let file = lab.data().join("shared/f");
    let [mut one, mut two] = APPS.map(|app| Guest::start(&lab, app, &["lab", "agent"]));
    let mut again = 0;
    for round in 0..ROUNDS {
        let does =
            |guest: &mut Guest, line: &str| assert_eq!(guest.ask(line), "done", "round {round}, {line}");
        // Nobody else has anything of it.
        does(&mut one, "create f 10 1");
        does(&mut one, "chmod f 600");
        let former = file.metadata().unwrap().ino();
        does(&mut one, "unlink f");
        does(&mut two, "create f 20 2");
        let number = file.metadata().unwrap().ino();
        again += usize::from(number == former);
        // Both have it, and one has it open to write.
        does(&mut one, "open 0 f w");
        two.ask("look f");
        for mode in [755, 644] {
            does(&mut one, &format!("chmod f {mode}"));
            assert_eq!(two.ask("look f"), look(&file), "round {round}: {former} was removed, {number} made");
        }
        does(&mut one, "close 0");
        does(&mut two, "unlink f");
    }
    println!("in {again} of {ROUNDS} rounds the number came again");
    drop((one, two));
    lab.down().unwrap();
}
