//! Every state that an export can be cut off in.

use std::fs;
use std::path::PathBuf;

use volmux_iscsi::control::TargetControl;
use volmux_iscsi_initiator::Session;

use crate::machine::Machine;
use crate::scsi;
use crate::{MIB, ONE, OP, TWO, within};

#[derive(Clone)]
enum Step {
    Make(PathBuf),
    Set(PathBuf, String),
    Link(PathBuf, PathBuf),
}

impl Step {
    fn take(&self) {
        let done = match self {
            Step::Make(path) => fs::create_dir_all(path),
            Step::Set(path, value) => fs::write(path, value),
            Step::Link(path, to) => std::os::unix::fs::symlink(to, path),
        };
        let what = match self {
            Step::Make(path) | Step::Set(path, _) | Step::Link(path, _) => path,
        };
        done.unwrap_or_else(|error| panic!("{}: {error}", what.display()));
    }
}

/// What an export does, one by one, and more that is not as it should be.
fn steps(machine: &Machine, path: &std::path::Path) -> Vec<Step> {
    let root = PathBuf::from("/sys/kernel/config/target");
    let store = root.join("core/fileio_8653").join(machine.serial());
    let target = root.join("iscsi").join(machine.target());
    let group = target.join("tpgt_1");
    let (unit, acls) = (group.join("lun/lun_1"), group.join("acls"));
    let path = path.display();
    let set = |path: PathBuf, value: &str| Step::Set(path, value.to_owned());
    vec![
        Step::Make(store.clone()),
        set(
            store.join("control"),
            &format!("fd_dev_name={path},fd_dev_size={MIB},fd_buffered_io=1"),
        ),
        set(store.join("udev_path"), &path.to_string()),
        set(store.join("enable"), "1"),
        set(store.join("wwn/vpd_unit_serial"), &machine.serial()),
        Step::Make(target),
        Step::Make(group.clone()),
        set(group.join("attrib/authentication"), "0"),
        Step::Make(group.join("np").join(machine.portal())),
        Step::Make(unit.clone()),
        Step::Link(unit.join("disk"), store),
        Step::Make(acls.join(ONE)),
        Step::Make(acls.join(ONE).join("lun_1")),
        Step::Link(acls.join(ONE).join("lun_1/disk"), unit.clone()),
        set(group.join("enable"), "1"),
        // Not by an export.
        Step::Make(acls.join(TWO)),
        Step::Make(acls.join(TWO).join("lun_1")),
        Step::Link(acls.join(TWO).join("lun_1/disk"), unit),
        set(acls.join(ONE).join("lun_1/write_protect"), "1"),
        Step::Make(group.join("np/127.0.0.9:3270")),
        set(group.join("attrib/generate_node_acls"), "1"),
        set(group.join("enable"), "0"),
    ]
}

#[tokio::test]
#[ignore = "needs LIO: tests/lab/run"]
async fn an_export_goes_on_from_whatever_there_is() {
    let machine = Machine::new("states");
    let control = machine.control();
    let path = machine.file(MIB);
    let export = machine.export(&path, MIB);
    let steps = steps(&machine, &path);
    within(async {
        for count in 0..=steps.len() {
            for step in &steps[..count] {
                step.take();
            }
            control
                .export(OP, &export)
                .await
                .unwrap_or_else(|e| panic!("{count}: {e:?}"));
            let shown = control.list(OP, &export.target).await.expect("a list");
            assert_eq!(shown.len(), 1, "{count}");
            assert_eq!(shown[0].initiators, [ONE], "{count}");
            let session = scsi::login(machine.options(&export.target, ONE)).await;
            assert_eq!(scsi::serial(&session).await, export.serial, "{count}");
            scsi::good(&session, scsi::write(0, vec![count as u8; 512].into())).await;
            let content = fs::read(&path).expect("the file");
            assert_eq!(content[..512], [count as u8; 512], "{count}");
            let stranger = Session::login(machine.options(&export.target, TWO)).await;
            stranger.expect_err("a stranger");
            control.unexport(OP, &export.target).await.expect("it goes");
        }
        // And taken away from any.
        for count in 0..=steps.len() {
            for step in &steps[..count] {
                step.take();
            }
            control
                .unexport(OP, &export.target)
                .await
                .unwrap_or_else(|e| panic!("{count}: {e:?}"));
            assert_eq!(control.list(OP, &export.target).await.expect("a list"), []);
            let store = format!(
                "/sys/kernel/config/target/core/fileio_8653/{}",
                export.serial
            );
            assert!(!PathBuf::from(store).exists(), "{count}");
        }
    })
    .await;
}
