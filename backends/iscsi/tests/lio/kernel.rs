//! The kernel's own initiator (open-iscsi) as a client.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use volmux_iscsi::control::TargetControl;
use volmux_iscsi_initiator::Credentials;

use crate::machine::{Machine, run, set_size};
use crate::{MIB, ONE, OP, within};

/// iscsid, for one test. It is ended when this is dropped; the lab forgets the rest.
struct Daemon(std::process::Child);

impl Daemon {
    fn start() -> Daemon {
        run("modprobe iscsi_tcp");
        run("modprobe sd_mod");
        fs::create_dir_all("/run/lock/iscsi").expect("a directory");
        fs::write(
            "/etc/iscsi/initiatorname.iscsi",
            format!("InitiatorName={ONE}\n"),
        )
        .expect("a name");
        Daemon(
            Command::new("iscsid")
                .arg("-f")
                .spawn()
                .expect("iscsid; run .ci/setup"),
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only if it ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The disk that a session leads to.
fn disk(machine: &Machine) -> PathBuf {
    let (portal, target) = (machine.portal(), machine.target());
    let link = format!("/dev/disk/by-path/ip-{portal}-iscsi-{target}-lun-1");
    let start = Instant::now();
    loop {
        if let Ok(disk) = fs::canonicalize(&link) {
            return disk;
        }
        assert!(start.elapsed().as_secs() < 60, "no {link}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn sectors(disk: &Path) -> u64 {
    let name = disk
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let size = fs::read_to_string(format!("/sys/block/{name}/size")).expect("a size");
    size.trim().parse().expect("a number")
}

#[tokio::test]
#[ignore = "needs LIO: tests/lab/run"]
async fn the_kernel_sees_a_disk() {
    let machine = Machine::new("kernel");
    let control = machine.control();
    let device = machine.device(16 * MIB);
    let mut export = machine.export(&device, 16 * MIB);
    export.chap = Some(Credentials::new("initiator", "initiator-secret"));
    export.mutual_chap = Some(Credentials::new("target", "secret-of-target"));
    // Somebody else's, at the same portal.
    let mut other = machine.export(&machine.other_file(MIB), MIB);
    other.target = format!("{}.other", export.target);
    other.serial = "other".into();
    other.initiators = vec![crate::TWO.into()];
    within(async {
        control.export(OP, &export).await.expect("an export");
        control.export(OP, &other).await.expect("another one");
        let _daemon = Daemon::start();
        let portal = machine.portal();
        let found = run(&format!("iscsiadm -m discovery -t sendtargets -p {portal}"));
        let targets: Vec<&str> = found.split_ascii_whitespace().skip(1).step_by(2).collect();
        assert!(targets.contains(&export.target.as_str()), "{found}");
        assert!(
            !targets.contains(&other.target.as_str()),
            "not for this one: {found}"
        );
        let node = format!("iscsiadm -m node -T {} -p {portal}", export.target);
        for (name, value) in [
            ("authmethod", "CHAP"),
            ("username", "initiator"),
            ("password", "initiator-secret"),
            ("username_in", "target"),
            ("password_in", "secret-of-target"),
        ] {
            run(&format!(
                "{node} -o update -n node.session.auth.{name} -v {value}"
            ));
        }
        run(&format!("{node} --login"));
        let disk = disk(&machine);
        let name = disk
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let serial = fs::read(format!("/sys/block/{name}/device/vpd_pg80")).expect("page 80h");
        let serial = String::from_utf8_lossy(&serial[4..]).into_owned();
        assert_eq!(serial.trim_matches([' ', '\0']), export.serial);
        assert_eq!(sectors(&disk), 16 * MIB / 512);
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&disk)
            .expect("a disk");
        file.write_all_at(&[7; 8192], MIB).expect("written");
        file.sync_all().expect("flushed");
        let content = fs::read(machine.content()).expect("the content");
        assert_eq!(content[MIB as usize..][..8192], [7; 8192]);
        set_size(&device, 24 * MIB);
        export.size = 24 * MIB;
        control.resize(OP, &export).await.expect("resized");
        run(&format!("{node} --rescan"));
        assert_eq!(sectors(&disk), 24 * MIB / 512, "it sees that");
        drop(file);
        run(&format!("{node} --logout"));
        for export in [&export, &other] {
            control.unexport(OP, &export.target).await.expect("it goes");
        }
    })
    .await;
}
