//! Disks that come and go while a guest runs.

use serde_json::json;
use sha2::{Digest, Sha256};
use volmux::hypervisor::{Hypervisor, RenderOptions};
use volmux::{ByteSize, CreateOptions, ErrorKind};

use super::*;

const ROOT_PORT: [&str; 2] = ["-device", "pcie-root-port,id=port-1,chassis=1"];

fn plug(scene: &Scene) {
    let store = &scene.store;
    let size = CreateOptions::thin(ByteSize::mib(16));
    let made = store.on(store.pool.create_volume(&name("second"), size));
    made.expect("create the volume");
    let root = scene.reach("guest");
    let second = scene.reach("second");
    let disk = disk(&root).and(ROOT_PORT);
    let mut guest = Guest::boot(&scene.image, &disk, &["boots", "plugged", &second.serial()]);
    guest.wait_for("boots 1");
    let mut qmp = guest.qmp();
    let options = RenderOptions {
        bus_id: Some("port-1".into()),
        ..second.options()
    };
    let rendered = second.attached.render(Hypervisor::Qmp, &options);
    let rendered = rendered.expect("rendered");
    for command in &rendered.arguments {
        let answer = qmp.send(command);
        answer.unwrap_or_else(|error| panic!("{command}: {error}"));
    }
    guest.wait_for("plugged");
    let refused = store.detach("second", HOST);
    assert_eq!(refused.expect_err("in use").kind(), ErrorKind::Busy);

    let node = rendered.node.expect("a node");
    qmp.execute("device_del", &json!({ "id": node }));
    qmp.wait_for("DEVICE_DELETED", &node);
    qmp.execute("blockdev-del", &json!({ "node-name": node }));
    guest.wait_for("unplugged");
    scene.store.leave(second);
    let said = guest.finish();
    scene.store.leave(root);

    let content = store.content("second");
    let (before, rest) = content.split_at(MIB as usize);
    let (written, after) = rest.split_at(MIB as usize);
    assert!(before.iter().chain(after).all(|&byte| byte == 0));
    let sum = Sha256::digest(written);
    let sum: String = sum.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(said.lines("sum"), [format!("sum 9 {sum}")]);
}

#[test]
fn a_file_is_plugged_in_and_out() {
    plug(&Scene::on_xfs());
}

/// With its secret, which is an object of its own.
#[test]
#[ignore = "takes long: make check-guests"]
fn a_logical_unit_is_plugged_in_and_out() {
    plug(&Scene::of_an_array());
}
