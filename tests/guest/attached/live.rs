//! Snapshots of what guests write at that moment.

use volmux::ErrorKind;
use volmux::PoolExt;

use super::*;

/// A snapshot is taken while a guest writes records. The guest of its clone finds every record that
/// was durable before the call, and none that came after it.
fn live(scene: &Scene) {
    let store = &scene.store;
    let reached = scene.reach("guest");
    let mut guest = scene.boot(&reached, &["record"]);
    let within = guest.at_record(40, || store.snapshot("guest", "at-40"));
    store.clone_volume("at-40", "clone");
    // Both run now.
    let found = scene.run("clone", &["records", "write"]).number("records");
    assert!(within.contains(&found), "{found}, not {within:?}");
    guest.end();
    scene.store.leave(reached);
    for volume in ["guest", "clone"] {
        store.assert_in_order(volume);
    }
}

#[test]
fn a_live_snapshot_of_a_file_holds_what_was_durable() {
    live(&Scene::on_xfs());
}

#[test]
#[ignore = "takes long: make check-guests"]
fn a_live_snapshot_of_a_logical_unit_holds_what_was_durable() {
    live(&Scene::of_an_array());
}

/// The guest would go on in the frozen image, as docs/nfs.md tells.
#[test]
fn a_live_snapshot_of_an_image_is_refused_and_changes_nothing() {
    let scene = Scene::on_ext4();
    let store = &scene.store;
    store.snapshot("guest", "first");
    let reached = scene.reach("guest");
    let mut guest = scene.boot(&reached, &["record"]);
    guest.wait_for("record 20");
    let before = store.on(store.pool.volumes()).expect("volumes");
    for call in ["snapshot", "clone"] {
        let refused = match call {
            "snapshot" => store.try_snapshot("guest", "live"),
            _ => store.try_clone("guest", "live"),
        };
        let error = refused.expect_err("it is attached");
        assert_eq!(error.kind(), ErrorKind::Busy, "{call}: {error:?}");
        assert_eq!(error.get("attached_to"), Some(HOST), "{call}: {error:?}");
    }
    let after = store.on(store.pool.volumes()).expect("volumes");
    assert_eq!(after, before);
    let last = guest.end().number("record");
    scene.store.leave(reached);
    store.snapshot("guest", "live");
    store.clone_volume("live", "clone");
    assert_eq!(scene.run("clone", &["records"]).number("records"), last);
}
