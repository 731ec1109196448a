//! Guests of libvirt that boot from volumes, by what is rendered of their attachments.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};
use volmux::hypervisor::{Hypervisor, RenderOptions};
use volmux::{AttachTarget, ByteSize, CreateOptions, ErrorKind};
use volmux_conformance::iscsi::Tgtd;
use volmux_conformance::scratch::LoopFs;
use volmux_guest::{
    Domain, HOST, Image, Libvirt, Reached, SECRET, Said, Store, Way, array, confined,
    directory_url, name,
};

const MIB: u64 = 1 << 20;
/// Another one than the [`HOST`] who has a volume, and wants it.
const OTHER: &str = "iqn.2026-11.org.volmux.test:other";

/// A libvirtd, and a pool with the image of a guest in the volume `guest`.
struct Scene {
    // In this order: what runs ends before what it works on.
    libvirt: Libvirt,
    store: Store,
    way: Way,
    _tgtd: Option<Tgtd>,
    _fs: Option<LoopFs>,
}

impl Scene {
    fn new(store: Store, way: Way, tgtd: Option<Tgtd>, fs: Option<LoopFs>) -> Scene {
        let image = Image::new();
        store.import(&image, "guest");
        Scene {
            libvirt: Libvirt::start(&image),
            store,
            way,
            _tgtd: tgtd,
            _fs: fs,
        }
    }

    fn in_directory(fs: LoopFs, way: Way) -> Scene {
        let store = Store::open(&directory_url(&fs));
        let data = fs.path().join("pool/data");
        let scene = Scene::new(store, way, None, Some(fs));
        // libvirt gives QEMU the files, but leaves the way to them as it is.
        fs::set_permissions(data, Permissions::from_mode(0o711)).expect("its mode");
        scene
    }

    /// An array of tgt over a directory on XFS, which asks for CHAP.
    fn of_an_array() -> Scene {
        let fs = LoopFs::xfs(512 * MIB);
        let (tgtd, store) = array(&fs);
        Scene::new(store, Way::Attach, Some(tgtd), Some(fs))
    }

    /// Makes a volume reachable for guests of this host.
    fn reach(&self, volume: &str) -> Reached {
        let socket = self.libvirt.path(volume);
        let reached = self.store.reach(volume, self.way, &socket);
        if self.way == Way::Gateway {
            self.libvirt.give(&socket);
        }
        reached
    }

    fn boot(&self, reached: &Reached, work: &[&str]) -> Domain<'_> {
        let volume = reached.attached.volume.as_str();
        self.libvirt.boot(volume, &disk(reached, "vda"), work)
    }

    /// A guest boots from the volume `guest`, writes and powers off. The pool has what it wrote.
    fn live(&self, is_target: fn(&AttachTarget) -> bool) -> Said {
        let reached = self.reach("guest");
        assert!(
            is_target(&reached.attached.target),
            "{:?}",
            reached.attached
        );
        let said = self.boot(&reached, &["boots", "write"]).finish();
        self.store.leave(reached);
        self.store.assert_in_order("guest");
        assert_eq!(said.lines("sum"), sums(&self.store.content("guest")));
        said
    }

    /// A guest boots from a clone of a snapshot of `guest`, and finds what the other one wrote.
    fn live_on_a_clone(&self, first: &Said, meanwhile: impl FnOnce()) {
        self.store.snapshot("guest", "written");
        self.store.clone_volume("written", "clone");
        let reached = self.reach("clone");
        let mut guest = self.boot(&reached, &["boots", "sums", "power"]);
        guest.wait_for("running");
        meanwhile();
        self.libvirt.virsh(&["shutdown", "clone"]);
        let said = guest.finish();
        self.store.leave(reached);
        assert_eq!(said.number("boots"), first.number("boots") + 1);
        assert_eq!(said.lines("sum"), first.lines("sum"));
        self.store.assert_in_order("clone");
    }
}

/// What a guest says of the files that it wrote, by what its disk holds.
fn sums(disk: &[u8]) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(&file, disk).expect("write");
    let sum = |number| {
        let mut command = Command::new("/sbin/debugfs");
        let cat = format!("cat /data/{number}");
        let output = command.args(["-R", &cat]).arg(file.path()).output();
        format!("sum {number} {}", sha256(&output.expect("debugfs").stdout))
    };
    (1..=8).map(sum).collect()
}

fn sha256(data: &[u8]) -> String {
    let sum = Sha256::digest(data);
    sum.iter().map(|b| format!("{b:02x}")).collect()
}

/// What libvirt is given.
fn disk(reached: &Reached, device: &str) -> String {
    let options = RenderOptions {
        device: Some(device.to_owned()),
        ..reached.options()
    };
    let rendered = reached.attached.render(Hypervisor::Libvirt, &options);
    rendered.expect("rendered").text
}

/// libvirt takes no snapshot of it: what it would write into the image, or put above it, is nothing
/// that the pool knows.
#[test]
fn guests_live_on_an_image() {
    let scene = Scene::in_directory(LoopFs::ext4(512 * MIB), Way::Attach);
    scene.store.snapshot("guest", "before");
    let said = scene.live(|target| matches!(target, AttachTarget::Qcow2 { .. }));
    scene.live_on_a_clone(&said, || {
        for kind in [&[][..], &["--disk-only"]] {
            let snapshot = [&["snapshot-create", "clone"], kind].concat();
            let refused = scene.libvirt.try_virsh(&snapshot).expect_err("manual");
            assert!(refused.contains("selected for snapshot"), "{refused}");
        }
    });
}

#[test]
#[ignore = "takes long: make check-guests"]
fn guests_live_on_a_block_device() {
    let scene = Scene::in_directory(LoopFs::xfs(512 * MIB), Way::LoopDevice);
    scene.live(|target| matches!(target, AttachTarget::File { .. }));
}

#[test]
#[ignore = "takes long: make check-guests"]
fn guests_live_in_memory_that_is_served() {
    let scene = Scene::new(Store::open("memory:"), Way::Gateway, None, None);
    scene.live(|target| matches!(target, AttachTarget::Nbd { .. }));
}

#[test]
fn guests_live_on_objects_that_are_served() {
    let fs = LoopFs::xfs(512 * MIB);
    let store = Store::open(&format!("file+object://{}", fs.path().display()));
    let scene = Scene::new(store, Way::Gateway, None, Some(fs));
    let said = scene.live(|target| matches!(target, AttachTarget::Nbd { .. }));
    scene.live_on_a_clone(&said, || {});
}

/// libvirt's secret is the one for the CHAP user; with a wrong one no guest starts, and the volume
/// stays as it is.
#[test]
fn guests_live_on_a_logical_unit() {
    let scene = Scene::of_an_array();
    let libvirt = &scene.libvirt;
    let before = sha256(&scene.store.content("guest"));
    let reached = scene.reach("guest");
    libvirt.define("refused", &disk(&reached, "vda"), &["boots"]);
    let refused = libvirt.start_domain("refused").expect_err("no secret");
    assert!(refused.contains("no secret with matching"), "{refused}");
    set_secret(libvirt, "not-that-secret");
    let refused = libvirt.start_domain("refused").expect_err("a wrong secret");
    assert!(refused.contains("Authentication failure"), "{refused}");
    assert_eq!(libvirt.virsh(&["domstate", "refused"]), "shut off");
    scene.store.leave(reached);
    assert_eq!(sha256(&scene.store.content("guest")), before);
    set_secret(libvirt, SECRET);
    let said = scene.live(|target| matches!(target, AttachTarget::Iscsi { .. }));
    scene.live_on_a_clone(&said, || {});
}

/// As docs/hypervisors.md says. It may be there already.
fn set_secret(libvirt: &Libvirt, secret: &str) {
    const UUID: &str = "6b8de2f4-6a33-4f7e-8c68-4e1b7b0b5d8d";
    let xml = format!(
        "<secret ephemeral='no' private='yes'><uuid>{UUID}</uuid>\
         <usage type='iscsi'><target>volmux</target></usage></secret>"
    );
    libvirt.virsh(&["secret-define", &libvirt.file("secret.xml", &xml)]);
    let file = libvirt.file("secret", secret);
    libvirt.virsh(&["secret-set-value", UUID, "--file", &file, "--plain"]);
}

/// While a guest runs: another one gets at its disk neither by volmux nor by libvirt, libvirt takes
/// no snapshot of it, volmux does, and a second disk comes and goes.
#[test]
fn guests_that_run_have_their_disks_alone_and_get_others() {
    let scene = Scene::in_directory(LoopFs::xfs(512 * MIB), Way::Attach);
    let (libvirt, store) = (&scene.libvirt, &scene.store);
    let size = CreateOptions::thin(ByteSize::mib(16));
    let made = store.on(store.pool.create_volume(&name("second"), size));
    made.expect("create the volume");
    let root = scene.reach("guest");
    let second = scene.reach("second");
    let serial = second.serial();
    let work = ["write", "boots", "plugged", &serial, "power"];
    let mut guest = scene.boot(&root, &work);
    guest.wait_for("boots 1");

    let refused = store.attach("guest", OTHER).expect_err("attached");
    assert_eq!(refused.kind(), ErrorKind::Busy);
    libvirt.define("other", &disk(&root, "vda"), &["boots"]);
    let refused = libvirt.start_domain("other").expect_err("locked");
    assert!(refused.contains("lock"), "{refused}");
    let refused = libvirt.try_virsh(&["snapshot-create", "guest", "--disk-only"]);
    let refused = refused.expect_err("snapshot='manual'");
    assert!(
        refused.contains("nothing selected for snapshot"),
        "{refused}"
    );
    store.snapshot("guest", "written");

    let file = libvirt.file("second.xml", &disk(&second, "vdb"));
    libvirt.virsh(&["attach-device", "guest", &file, "--live"]);
    guest.wait_for("plugged");
    let refused = store.detach("second", HOST).expect_err("in use");
    assert_eq!(refused.kind(), ErrorKind::Busy);
    libvirt.virsh(&["detach-device", "guest", &file, "--live"]);
    guest.wait_for("running");
    store.leave(second);
    libvirt.virsh(&["shutdown", "guest"]);
    let said = guest.finish();
    store.leave(root);

    let second = &store.content("second")[MIB as usize..2 * MIB as usize];
    assert_eq!(said.lines("sum")[8], format!("sum 9 {}", sha256(second)));
    store.clone_volume("written", "clone");
    let found = scene.boot(&scene.reach("clone"), &["sums"]).finish();
    assert_eq!(found.lines("sum"), said.lines("sum")[..8]);
    store.assert_in_order("guest");
}

#[test]
fn example_runs_to_its_end() {
    let fs = LoopFs::xfs(1024 * MIB);
    let image = Image::new();
    let libvirt = Libvirt::start(&image);
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/libvirt.sh");
    let mut command = confined(&example);
    let output = command
        .args([fs.path(), &image.disk()])
        .env("LIBVIRT_DEFAULT_URI", libvirt.uri())
        .env("OS", libvirt.os(false, &["power"]))
        .env("QEMU_USER", libvirt.user())
        .env("READY", "vmx: running")
        .env_remove("TYPE")
        .output();
    let output = output.expect("the example");
    let [said, wrong] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(
        output.status.success(),
        "{}\n{said}\n{wrong}",
        output.status
    );
    assert!(said.ends_with(" checks passed\n"), "{said}");
    let left = fs::read_dir(fs.path()).expect("the directory").count();
    assert_eq!(left, 0, "nothing is left");
    assert_eq!(libvirt.virsh(&["list", "--all"]), "");
    assert_eq!(libvirt.virsh(&["secret-list"]), "");
}
