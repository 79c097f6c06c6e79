//! Decoys: planted once, found again, never in the way of a user's own file, and given away by any change.

use std::sync::Arc;

use strongroom_contracts::Rights;
use strongroom_gateway::engine::{EngineOptions, EngineSession, SessionBounds, Turnstile};
use strongroom_protocol::op::RenameMode;

use super::support::{BOTH, Guest, READ, World, contract, grant, opened, rights};

fn world() -> World {
    let world = World::with(EngineOptions { decoys: Some([9; 64]), ..EngineOptions::default() });
    world.file("users/alice/letter.txt", b"Dear reader");
    world
}

fn guest(world: &World, allowed: Rights, decoys: u8) -> Guest {
    let mut contract = contract(vec![grant("users/alice", "/alice", allowed)]);
    contract.detection.decoys = decoys;
    let session = EngineSession::new(&world.engine, &contract, SessionBounds::default(), &[]);
    Guest { engine: world.engine.clone(), session: Arc::new(session), turnstile: Turnstile::new() }
}

fn names(world: &World) -> Vec<String> {
    let entries = std::fs::read_dir(world.path("users/alice")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn they_are_planted_once_where_something_can_be_changed() {
    let world = world();
    guest(&world, Rights::READ_ONLY, 3);
    guest(&world, rights("list read create append"), 3);
    assert_eq!(names(&world), ["letter.txt"]);
    guest(&world, Rights::READ_WRITE, 3);
    let planted = names(&world);
    assert_eq!(planted.len(), 4);
    assert!(planted.iter().filter(|name| name.starts_with('.')).count() == 3, "{planted:?}");
    guest(&world, Rights::READ_WRITE, 3);
    assert_eq!(names(&world), planted);
}

#[test]
fn any_change_of_one_is_a_verdict_and_reading_is_not() {
    for change in ["write", "cut", "unlink", "rename", "replace"] {
        let world = world();
        // Planted under one session, changed in another one whose contract asks for none.
        guest(&world, Rights::READ_WRITE, 1);
        let one = guest(&world, Rights::READ_WRITE, 0);
        let decoy = names(&world).into_iter().find(|name| name.starts_with('.')).unwrap();
        let (root, node) = (one.root(0), one.node(0, &decoy));
        let handle = opened(one.open(node, READ));
        one.read(handle, 0, 100).unwrap();
        let handle = opened(one.open(one.node(0, "letter.txt"), BOTH));
        one.write(handle, 0, b"Dear friend");
        assert_eq!(one.session.take_verdict(), None);
        match change {
            "write" => drop(one.write(opened(one.open(node, BOTH)), 0, b"x")),
            "cut" => drop(one.truncate(node, 0)),
            "unlink" => drop(one.unlink(root, &decoy)),
            "rename" => drop(one.rename((root, &decoy), (root, "else"), RenameMode::Replace)),
            _ => drop(one.rename((root, "letter.txt"), (root, &decoy), RenameMode::Replace)),
        }
        let verdict = one.session.take_verdict().unwrap_or_else(|| panic!("{change}: no verdict"));
        assert!(verdict.evidence.contains("decoy") && verdict.evidence.contains(&decoy), "{verdict:?}");
    }
}

#[test]
fn a_file_of_the_users_own_under_its_name_is_left_alone() {
    let world = world();
    guest(&world, Rights::READ_WRITE, 1);
    let decoy = names(&world).into_iter().find(|name| name.starts_with('.')).unwrap();
    let world = self::world();
    world.file(&format!("users/alice/{decoy}"), b"my own");
    let one = guest(&world, Rights::READ_WRITE, 1);
    assert_eq!(world.bytes(&format!("users/alice/{decoy}")), b"my own");
    one.unlink(one.root(0), &decoy);
    assert_eq!(one.session.take_verdict(), None);
}
