//! The life of a guest's volume, in each kind of pool.

use super::*;

/// A guest writes and trims, its volume is snapshotted and cloned, the clone's guest finds what it
/// wrote, and so does the guest itself once its volume is reverted. `kinds`: what QEMU is given
/// before the snapshot, and after it.
fn life(scene: &Scene, kinds: [&str; 2]) {
    let run = |volume: &str, kind: &str, work: &[&str]| {
        let reached = scene.reach(volume);
        assert_eq!(driver(&disk(&reached)), kind, "{:?}", reached.attached);
        let said = scene.boot(&reached, work).finish();
        scene.store.leave(reached);
        said
    };
    let store = &scene.store;
    let first = run("guest", kinds[0], &["boots", "write", "trim"]);
    assert_eq!(first.number("boots"), 1);
    let written = first.lines("sum");
    assert_eq!(written.len(), 8);
    // The guest wrote 24 MiB more and gave them back.
    let data = store.data("guest");
    assert!(data < 30 * MIB, "{data} bytes: nothing trimmed");

    store.snapshot("guest", "before");
    store.clone_volume("before", "clone");
    let clone = run("clone", kinds[1], &["boots", "sums"]);
    assert_eq!(clone.number("boots"), 2);
    assert_eq!(clone.lines("sum"), written);

    let second = run("guest", kinds[1], &["boots", "write"]);
    assert_eq!(second.number("boots"), 2, "the clone counts for itself");
    assert_ne!(second.lines("sum"), written);
    let before = store.content("before");
    assert!(store.content("guest") != before, "the guest wrote anew");
    store.revert("guest", "before").expect("revert");
    assert!(store.content("guest") == before, "byte by byte");

    let third = run("guest", kinds[1], &["boots", "sums"]);
    assert_eq!(third.number("boots"), 2, "the second boot never was");
    assert_eq!(third.lines("sum"), written);
    assert!(store.content("before") == before, "a snapshot stays");
    for volume in ["guest", "clone", "before"] {
        store.assert_in_order(volume);
    }
}

/// The drivers of QEMU that a rendered disk names, from the top.
fn driver(disk: &Disk) -> String {
    let is_node = |argument: &&String| argument.contains("node-name");
    let node = disk.arguments.iter().find(is_node).expect("a node");
    let node: serde_json::Value = serde_json::from_str(node).expect("JSON");
    let name = |node: &serde_json::Value| node["driver"].as_str().expect("a driver").to_owned();
    format!("{} {}", name(&node), name(&node["file"]))
}

#[test]
fn guests_live_on_files_that_share_blocks() {
    life(&Scene::on_xfs(), ["raw file", "raw file"]);
}

#[test]
fn guests_live_on_files_and_then_on_images() {
    life(&Scene::on_ext4(), ["raw file", "qcow2 file"]);
}

#[test]
fn guests_live_on_block_devices() {
    life(&Scene::on_loop_devices(), ["raw host_device"; 2]);
}

#[test]
fn guests_live_on_logical_units() {
    life(&Scene::of_an_array(), ["raw iscsi"; 2]);
}

#[test]
#[ignore = "takes long: make check-guests"]
fn guests_live_on_volumes_in_memory() {
    life(&Scene::in_memory(), ["raw nbd"; 2]);
}

#[test]
fn guests_live_on_objects() {
    life(&Scene::of_objects(), ["raw nbd"; 2]);
}
