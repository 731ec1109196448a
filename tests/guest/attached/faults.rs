//! What must not be done to a volume that a guest runs on is refused, and the guest does not
//! notice.

use volmux::{AuditOptions, Error, ErrorKind, OpenOptions};

use super::*;

/// The guest goes on writing, and nothing of it is lost.
fn end(scene: &Scene, mut guest: Guest, reached: Reached) {
    let next = guest.last_record() + 10;
    guest.wait_for(&format!("record {next}"));
    let last = guest.end().number("record");
    scene.store.leave(reached);
    assert_eq!(scene.run("guest", &["records"]).number("records"), last);
    scene.store.assert_in_order("guest");
}

/// What else is done to the volume is refused: `calls` with what names who has it, and a second
/// guest for what QEMU says.
fn everything_else_is_refused(scene: &Scene, calls: &[(&str, &str)], second: Option<&str>) {
    let store = &scene.store;
    store.snapshot("guest", "before");
    let reached = scene.reach("guest");
    let mut guest = scene.boot(&reached, &["record"]);
    guest.wait_for("record 10");
    let before = store.volume("guest");
    for (call, who) in calls {
        let error = refused(scene, call);
        assert_eq!(error.kind(), ErrorKind::Busy, "{call}: {error:?}");
        assert!(error.to_string().contains(who), "{call}: {error}");
    }
    if let Some(why) = second {
        let said = Guest::refused(&scene.image, &disk(&reached));
        assert!(said.contains(why), "{said}");
    }
    if scene.way == Way::Attach {
        let again = store.attach("guest", HOST).expect("it has it");
        assert_eq!(again, reached.attached);
    }
    let after = store.volume("guest");
    assert_eq!(after.id, before.id);
    assert_eq!(after.attachments, before.attachments);
    end(scene, guest, reached);
    store.delete("guest").expect("nobody has it");
}

fn refused(scene: &Scene, call: &str) -> Error {
    let store = &scene.store;
    let refused = match call {
        "attach" => store.attach("guest", OTHER).map(drop),
        "detach" => store.detach("guest", HOST),
        "delete" => store.delete("guest"),
        "revert" => store.revert("guest", "before").map(drop),
        "open" => {
            let options = OpenOptions::read_write();
            let volume = name("guest");
            store.on(store.pool.open_volume(&volume, options)).map(drop)
        }
        _ => panic!("{call}"),
    };
    refused.expect_err(call)
}

/// What names the holder, or else QEMU, which has the file open.
const ATTACHED: [(&str, &str); 5] = [
    ("attach", HOST),
    ("detach", "qemu-system"),
    ("delete", HOST),
    ("revert", HOST),
    ("open", HOST),
];

/// QEMU's own.
const LOCK: Option<&str> = Some("lock");

#[test]
#[ignore = "takes long: make check-guests"]
fn what_a_guest_runs_on_is_left_alone_as_a_file() {
    everything_else_is_refused(&Scene::on_xfs(), &ATTACHED, LOCK);
}

#[test]
fn what_a_guest_runs_on_is_left_alone_as_an_image() {
    everything_else_is_refused(&Scene::on_ext4(), &ATTACHED, LOCK);
}

/// The target lets the holder in as often as it likes, for that is what several paths need.
#[test]
fn what_a_guest_runs_on_is_left_alone_as_a_logical_unit() {
    let mut calls = ATTACHED;
    calls[1] = ("detach", HOST);
    everything_else_is_refused(&Scene::of_an_array(), &calls, None);
}

#[test]
#[ignore = "takes long: make check-guests"]
fn what_a_guest_runs_on_is_left_alone_as_an_export() {
    let calls = ["delete", "revert", "open"].map(|call| (call, ""));
    let refused = Some("busy");
    everything_else_is_refused(&Scene::of_objects(), &calls, refused);
}

/// tgtd dies under a guest, and forgets everything; started again, and told by an audit what to
/// show, it is found by the guest.
#[test]
fn a_guest_outlives_its_target() {
    let mut scene = Scene::of_an_array();
    let reached = scene.reach("guest");
    let mut guest = scene.boot(&reached, &["record"]);
    guest.wait_for("record 30");
    scene.tgtd.as_mut().expect("a target").restart();
    let audit = scene.store.pool.audit(AuditOptions { repair: true });
    scene.store.on(audit).expect("audit");
    end(&scene, guest, reached);
}
