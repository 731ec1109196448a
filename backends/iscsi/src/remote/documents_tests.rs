//! Documents that are right, and others.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn volume_json() -> Value {
    json!({
        "schema": "volmux.volume.v1", "name": "s1", "id": "5076921c-d867-447e-a122-5bb2e3cdd88b",
        "virtual_size": 1073741824u64, "allocated": 0, "exclusive": null, "fragments": 3,
        "depth": null, "provisioning": "thick",
        "origin": {"kind": "snapshot", "parent_id": "326f4278-f84c-4d52-a47d-f53e3cabfea7",
                   "parent_name": "web"},
        "created": "2026-01-23T04:36:39.646417Z",
        "attachments": [{"holder": "iqn.x:a", "access": "read-write", "sharing": "shared"}],
    })
}

fn pool_json() -> Value {
    json!({
        "schema": "volmux.pool.v1", "pool": "dir:///x",
        "capabilities": {"snapshot": "native", "clone": "native", "revert": "emulated",
            "thin": "native", "thick": "none", "shrink": "native", "discard": "native",
            "changed_extents": "native", "attach": "native", "adopt": "native",
            "shared_writers": "native", "fencing": "none"},
        "usage": {"total": 100, "used": 40, "free": 50, "provisioned": 7, "used_percent": 44.4,
            "overcommit": 0.07, "metadata": {"total": 9, "used": 1}, "time_to_full_seconds": 60},
        "policy": {"overcommit_limit": null, "warn_percent": 70.5, "refuse_percent": 95.0},
        "pressure": "normal",
    })
}

fn attachment_json() -> Value {
    json!({
        "schema": "volmux.attachment.v1", "name": "web",
        "id": "5076921c-d867-447e-a122-5bb2e3cdd88b",
        "holder": "iqn.x:a", "access": "read-only", "kind": "iscsi", "path": null,
        "portal": "10.0.0.1:3260", "target": "iqn.y:web", "lun": 1, "serial": "s",
        "chap": {"user": "u", "secret": "/there/secret"}, "mutual_chap": null,
    })
}

fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("json")
}

#[test]
fn a_volume_is_read_with_everything() {
    let mut json = volume_json();
    json["of_a_later_version"] = json!([1, {"a": 2}]);
    let volume = parse::<VolumeDoc>(&bytes(&json)).and_then(VolumeDoc::into_volume);
    let volume = volume.expect("volume");
    assert_eq!(volume.name.as_str(), "s1");
    assert_eq!(volume.virtual_size, ByteSize::gib(1));
    assert_eq!(
        (volume.allocated, volume.exclusive),
        (Some(ByteSize::ZERO), None)
    );
    assert_eq!((volume.fragments, volume.depth), (Some(3), None));
    assert_eq!(volume.provisioning, Provisioning::Thick);
    assert!(volume.is_snapshot());
    let created = humantime::format_rfc3339_micros(volume.created).to_string();
    assert_eq!(created, "2026-01-23T04:36:39.646417Z");
    let attached = &volume.attachments[0];
    assert_eq!(
        (attached.access, attached.sharing),
        (Access::ReadWrite, Sharing::Shared)
    );
    assert_eq!(attached.holder.as_str(), "iqn.x:a");
}

#[test]
fn a_pool_is_read_with_everything() {
    let pool = parse::<PoolDoc>(&bytes(&pool_json())).expect("pool");
    assert_eq!(
        pool.capabilities
            .iter()
            .filter(|(_, s)| s.to_string() == "none")
            .count(),
        2
    );
    let usage = pool.usage();
    assert_eq!(
        (usage.total.bytes(), usage.used.bytes(), usage.free.bytes()),
        (100, 40, 50)
    );
    assert_eq!(usage.metadata, Some(MetadataUsage { total: 9, used: 1 }));
    assert_eq!(usage.time_to_full, Some(Duration::from_secs(60)));
    assert_eq!(pool.policy().expect("policy").warn_percent, 70.5);
    let mut wrong = pool_json();
    wrong["policy"]["warn_percent"] = json!(101);
    let wrong = parse::<PoolDoc>(&bytes(&wrong)).expect("shape");
    assert!(wrong.policy().is_err());
}

#[test]
fn an_attachment_has_the_chap_of_this_host() {
    let chap = ChapReference {
        user: "here".into(),
        secret: "/here/secret".into(),
    };
    let document = parse::<AttachmentDoc>(&bytes(&attachment_json())).expect("document");
    let attached = document
        .into_attachment(Some(chap.clone()), None)
        .expect("attachment");
    let wanted = AttachTarget::Iscsi {
        portal: "10.0.0.1:3260".into(),
        target: "iqn.y:web".into(),
        lun: 1,
        serial: "s".into(),
        chap: Some(chap),
        mutual_chap: None,
    };
    assert_eq!(
        (attached.target, attached.access),
        (wanted, Access::ReadOnly)
    );
    for (kind, path) in [
        ("file", json!("/a")),
        ("qcow2", json!("/b")),
        ("block-device", json!("/c")),
    ] {
        let mut json = attachment_json();
        json["kind"] = json!(kind);
        let pathless = parse::<AttachmentDoc>(&bytes(&json)).expect("document");
        assert!(pathless.into_attachment(None, None).is_err(), "{kind}");
        json["path"] = path;
        let whole = parse::<AttachmentDoc>(&bytes(&json)).expect("document");
        assert!(whole.into_attachment(None, None).is_ok(), "{kind}");
    }
    for field in ["portal", "target", "lun", "serial"] {
        let mut json = attachment_json();
        json[field] = Value::Null;
        let document = parse::<AttachmentDoc>(&bytes(&json)).expect("document");
        let wrong = document.into_attachment(None, None).expect_err(field);
        assert!(wrong.contains(field), "{wrong}");
    }
}

/// Each field that is missing, and each of another type.
fn spoilt(json: &Value) -> Vec<(String, Value)> {
    let keys: Vec<String> = json.as_object().expect("object").keys().cloned().collect();
    let mut all = Vec::new();
    for key in keys {
        let mut missing = json.clone();
        missing.as_object_mut().expect("object").remove(&key);
        all.push((format!("{key} missing"), missing));
        let mut wrong = json.clone();
        wrong[&key] = json!({"x": [true]});
        all.push((format!("{key} wrong"), wrong));
    }
    all
}

#[test]
fn what_is_missing_or_wrong_is_told() {
    for (what, json) in spoilt(&volume_json()) {
        let read = parse::<VolumeDoc>(&bytes(&json)).and_then(VolumeDoc::into_volume);
        assert!(read.is_err(), "{what}");
    }
    // Only for people: what is left out of these fields is not read.
    let not_read = ["pressure missing", "pressure wrong"];
    for (what, json) in spoilt(&pool_json()) {
        let read = parse::<PoolDoc>(&bytes(&json));
        assert_eq!(read.is_ok(), not_read.contains(&what.as_str()), "{what}");
    }
    let mut json = volume_json();
    for (key, value) in [
        ("name", json!("../etc")),
        ("virtual_size", json!(-1)),
        ("created", json!("yesterday")),
        ("provisioning", json!("fat")),
        ("schema", json!("volmux.volume.v2")),
        (
            "attachments",
            json!([{"holder": "a b", "access": "read-write", "sharing": "shared"}]),
        ),
    ] {
        let right = json[key].take();
        json[key] = value;
        let read = parse::<VolumeDoc>(&bytes(&json)).and_then(VolumeDoc::into_volume);
        assert!(read.is_err(), "{key}");
        json[key] = right;
    }
}

#[test]
fn audits_agree_with_their_exit_code() {
    let json = |clean: bool, repaired: bool| {
        json!({"schema": "volmux.audit.v1", "pool": "p", "repair": false, "dry_run": false,
            "clean": clean, "volumes": 2, "findings": [{"kind": "leftover", "object": "o",
            "detail": "d", "bytes": 5, "repaired": repaired}]})
    };
    let read = |value: Value, code| {
        parse::<AuditDoc>(&bytes(&value)).and_then(|document| document.into_report(code))
    };
    let report = read(json(false, false), false).expect("unclean");
    assert_eq!((report.volumes, report.findings.len()), (2, 1));
    assert!(read(json(true, true), true).is_ok());
    assert!(read(json(true, false), true).is_err());
    assert!(read(json(false, false), true).is_err());
    assert!(read(json(true, true), false).is_err());
}

proptest! {
    #[test]
    fn nothing_that_is_printed_does_harm(line in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse::<VolumeDoc>(&line).is_err());
    }

    #[test]
    fn nested_garbage_does_no_harm(depth in 1usize..100_000) {
        let line = format!("{{\"schema\":\"volmux.volume.v1\",\"x\":{}", "[".repeat(depth));
        prop_assert!(parse::<VolumeDoc>(line.as_bytes()).is_err());
    }
}
