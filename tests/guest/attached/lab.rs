//! Guests on what only the lab has: QEMU in QEMU, so they boot seldom, and do little.

use volmux_conformance::lvm::ScratchGroup;
use volmux_conformance::nfs::Export;

use super::*;

fn clones_carry_guests(scene: &Scene) {
    assert_eq!(scene.run("guest", &["boots"]).number("boots"), 1);
    scene.store.snapshot("guest", "before");
    scene.store.clone_volume("before", "clone");
    assert_eq!(scene.run("clone", &["boots"]).number("boots"), 2);
    for volume in ["guest", "before", "clone"] {
        scene.store.assert_in_order(volume);
    }
}

#[test]
#[ignore = "needs the lab"]
fn guests_live_on_thin_volumes_of_lvm() {
    let group = ScratchGroup::with_pool(256 * MIB, 4 * MIB);
    let store = Store::open(&format!("lvm://{}/pool?timeout=120", group.name()));
    clones_carry_guests(&Scene::new(store, Way::Attach, None, group));
}

#[test]
#[ignore = "needs the lab"]
fn guests_live_on_files_of_an_nfs_server() {
    let export = Export::new("xfs", 512 * MIB);
    let path = export.path();
    let name = path.file_name().expect("a name").to_string_lossy();
    let store = Store::open(&format!("nfs://127.0.0.1/{name}?vers=4.2"));
    clones_carry_guests(&Scene::new(store, Way::Attach, None, export));
}
