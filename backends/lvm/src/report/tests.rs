//! The reader on what lvm2 2.03.16 printed, and on what it never would.

use std::path::Path;

use proptest::prelude::*;

use super::*;

/// A thin pool with its parts, a thin volume and a snapshot of it, and a linear volume, all but the
/// pool inactive.
const LVS: &[u8] = include_bytes!("lvs.json");

fn recorded() -> Report {
    lvs(LVS).expect("it is right").expect("there are some")
}

#[test]
fn a_recorded_report_is_read() {
    let report = recorded();
    assert_eq!((report.group.seqno, report.group.extent_size), (9, 65536));
    let space = [267_386_880, 195_035_136].map(ByteSize::new);
    assert_eq!(report.group.space, Some(space.into()));
    let ordinary = Attributes {
        writable: true,
        exported: false,
        partial: false,
        shared: false,
    };
    assert_eq!(report.group.attributes, ordinary);
    let names: Vec<&str> = report.lvs.iter().map(|lv| lv.name.as_str()).collect();
    assert_eq!(names, [".volmux-s1", "a", "pool", "thick"]);
    let [snapshot, volume, pool, thick] = &report.lvs[..] else {
        panic!("four");
    };
    assert_eq!((snapshot.thin_id, &*snapshot.origin), (Some(2), "a"));
    assert_eq!(volume.tags, ["volmux.id=1234", "x:y/z&#=!"]);
    assert!(volume.skip_activation);
    assert_eq!(pool.segtype, "thin-pool");
    assert_eq!(pool.chunk_size, Some(65536));
    assert!(pool.zero && !pool.skip_activation);
    assert_eq!(pool.transaction_id, Some(2));
    assert_eq!(Vec::from_iter(&report.devices), [Path::new("/dev/vda")]);
    assert_eq!((&*thick.segtype, thick.thin_id), ("linear", None));
}

#[test]
fn segments_are_one_volume() {
    let text = std::str::from_utf8(LVS).expect("UTF-8");
    let line = text
        .lines()
        .find(|line| line.contains("\"thick\""))
        .expect("it is there");
    let twice = text.replace(line, &format!("{line},\n{line}"));
    assert_eq!(lvs(twice.as_bytes()).expect("right"), Some(recorded()));
}

#[test]
fn no_volumes_are_none() {
    let none = lvs(br#"{"report": [{"lv": []}]}"#);
    assert_eq!(none.expect("right"), None);
}

#[test]
fn a_group_is_read() {
    let json = br#"{"report": [{"vg": [{"vg_uuid":"x", "vg_seqno":"1",
        "vg_extent_size":"4194304", "vg_attr":"rzxpns", "pv_name":"/dev/sda"}]}]}"#;
    let report = vgs(json).expect("right").expect("one");
    let group = report.group;
    assert_eq!((group.seqno, group.space), (1, None));
    let special = Attributes {
        writable: false,
        exported: true,
        partial: true,
        shared: true,
    };
    assert_eq!(group.attributes, special);
    assert_eq!(report.devices, [PathBuf::from("/dev/sda")].into());
}

#[test]
fn what_is_missing_or_wrong_is_told() {
    let text = std::str::from_utf8(LVS).expect("UTF-8");
    for (from, to) in [
        ("\"lv_size\":\"16777216\"", "\"lv_size\":\"16m\""),
        ("\"vg_seqno\":\"9\", ", ""),
        ("\"zero\":\"1\"", "\"zero\":\"maybe\""),
        ("\"thin_id\":\"2\"", "\"thin_id\":\"-2\""),
        ("\"vg_attr\":\"wz--n-\"", "\"vg_attr\":\"wz--n\""),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        lvs(changed.as_bytes()).expect_err(from);
    }
    for cut in (0..LVS.len() - 4).step_by(97) {
        lvs(&LVS[..cut]).expect_err("it was cut off");
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = lvs(&bytes);
        let _ = vgs(&bytes);
    }

    #[test]
    fn damage_never_panics(at in 0..LVS.len(), byte: u8) {
        let mut damaged = LVS.to_vec();
        damaged[at] = byte;
        let _ = lvs(&damaged);
    }
}
