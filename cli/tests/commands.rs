//! Every command: what it does, its text and the exact shape of its JSON.
#![allow(missing_docs)]

mod common;

use common::{Place, normal};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn volume(name: &str, size: u64) -> Value {
    json!({
        "schema": "volmux.volume.v1", "name": name, "id": "ID", "virtual_size": size,
        "allocated": 0, "exclusive": null, "fragments": null, "depth": null, "attachments": [],
        "provisioning": "thin", "origin": null, "created": "TIME",
    })
}

fn derived(name: &str, size: u64, kind: &str, parent: &str) -> Value {
    let mut volume = volume(name, size);
    volume["origin"] = json!({"kind": kind, "parent_id": "PARENT", "parent_name": parent});
    volume
}

/// What is there or not as the file system can tell, and as it can share blocks.
fn without_counts(volume: Value) -> Value {
    let mut volume = normal(volume);
    volume["exclusive"] = Value::Null;
    volume["fragments"] = Value::Null;
    volume["depth"] = Value::Null;
    if volume["allocated"].is_null() {
        volume["allocated"] = 0.into();
    }
    volume
}

#[test]
fn create_info_rename_and_resize() {
    let place = Place::new();
    let made = place.json(&["volume", "create", "web", "10MiB"]).json();
    assert_eq!(without_counts(made.clone()), volume("web", 10 * MIB));
    let again = place.json(&["volume", "create", "web", "10MiB"]).json();
    assert_eq!(
        again["id"], made["id"],
        "creating again gives the same volume"
    );
    let info = place.json(&["volume", "info", "web"]).json();
    assert_eq!(without_counts(info.clone()), volume("web", 10 * MIB));
    assert_eq!(info["id"], made["id"]);
    let text = place.run(&["volume", "info", "web"]);
    for line in [
        "name          web\n",
        "size          10 MiB (10485760 bytes)\n",
        "type          volume\n",
    ] {
        assert!(text.ok().contains(line), "{line} in {text:?}");
    }
    let thick = place
        .json(&["volume", "create", "fat", "1MiB", "--thick"])
        .json();
    assert_eq!(thick["provisioning"], "thick");
    assert_eq!(thick["allocated"], MIB);
    assert_eq!(
        place.run(&["volume", "resize", "web", "20MiB"]).ok(),
        "resized web (20 MiB, thin)\n"
    );
    let resized = place
        .json(&["volume", "resize", "web", "5MiB", "--shrink"])
        .json();
    assert_eq!(without_counts(resized), volume("web", 5 * MIB));
    assert_eq!(
        place.run(&["volume", "rename", "web", "www"]).ok(),
        "renamed web to www\n"
    );
    let renamed = place.json(&["volume", "rename", "www", "www2"]).json();
    assert_eq!(renamed["id"], made["id"]);
    assert_eq!(place.names(), ["fat", "www2"]);
}

#[test]
fn snapshot_clone_copy_revert_and_flatten() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "1MiB"]).ok();
    let run = |args: &[&str]| without_counts(place.json(args).json());
    assert_eq!(
        run(&["volume", "snapshot", "web", "s1"]),
        derived("s1", MIB, "snapshot", "web")
    );
    assert_eq!(
        run(&["volume", "clone", "s1", "c1"]),
        derived("c1", MIB, "clone", "s1")
    );
    assert_eq!(
        run(&["volume", "copy", "web", "d1"]),
        derived("d1", MIB, "copy", "web")
    );
    place.run(&["volume", "resize", "web", "2MiB"]).ok();
    assert_eq!(run(&["volume", "revert", "web", "s1"]), volume("web", MIB));
    assert_eq!(
        run(&["volume", "flatten", "c1"]),
        derived("c1", MIB, "clone", "s1")
    );
    let text = place.run(&["volume", "flatten", "web"]);
    assert_eq!(text.ok(), "flattened web (1 MiB, thin)\n");
    let text = place.run(&["volume", "snapshot", "web", "s2"]);
    assert_eq!(text.ok(), "created s2 (1 MiB, thin, snapshot of web)\n");
    assert_eq!(place.names(), ["c1", "d1", "s1", "s2", "web"]);
}

#[test]
fn copy_into_another_pool() {
    let place = Place::new();
    let image = place.image("image", 8 * MIB);
    let image = image.to_str().expect("UTF-8");
    std::fs::create_dir(place.path("other")).expect("pool");
    let other = format!("dir://{}", place.text("other"));
    place
        .run(&["volume", "import", image, "web", "-f", "raw"])
        .ok();
    let made = place
        .json(&["volume", "copy", "web", "web2", "--to", &other])
        .json();
    assert_eq!(made["virtual_size"], 8 * MIB);
    place
        .run(&[
            "-p", &other, "volume", "export", "web2", "back", "-f", "raw",
        ])
        .ok();
    assert_eq!(
        std::fs::read(image).expect("image"),
        std::fs::read(place.path("back")).expect("back")
    );
    let error = place.json(&["volume", "copy", "web", "web2", "--to", &other]);
    error.error(12, "AlreadyExists");
}

#[test]
fn list_streams_or_sorts() {
    let place = Place::new();
    assert_eq!(place.json(&["volume", "list"]).ok(), "");
    for (name, size) in [("b", "1MiB"), ("a", "3MiB"), ("c", "2MiB")] {
        place.run(&["volume", "create", name, size]).ok();
    }
    let sorted = |key: &str| -> Vec<String> {
        let volumes = place.json(&["volume", "list", "--sort", key]).documents();
        volumes
            .iter()
            .map(|v| v["name"].as_str().expect("name").into())
            .collect()
    };
    assert_eq!(sorted("name"), ["a", "b", "c"]);
    assert_eq!(sorted("size"), ["b", "c", "a"]);
    assert_eq!(sorted("created"), ["b", "a", "c"]);
    let unsorted = place.json(&["volume", "list"]).documents();
    assert_eq!(unsorted.len(), 3);
    for document in unsorted {
        let size = document["virtual_size"].as_u64().expect("size");
        let name = document["name"].as_str().expect("name").to_owned();
        assert_eq!(normal(document), volume(&name, size));
    }
    let text = place.run(&["volume", "list", "--sort", "name"]);
    let lines: Vec<&str> = text.ok().lines().collect();
    assert!(
        lines[0].starts_with("NAME ") && lines[0].ends_with("PARENT"),
        "{text:?}"
    );
    assert!(
        lines[1].starts_with("a  ") && lines[1].contains(" 3 MiB "),
        "{text:?}"
    );
    assert_eq!(lines.len(), 4);
}

#[test]
fn a_broken_volume_does_not_hide_the_others() {
    let place = Place::new();
    for name in ["a", "b", "c"] {
        place.run(&["volume", "create", name, "1MiB"]).ok();
    }
    std::fs::write(place.path("pool/volumes/b.json"), "garbage").expect("damage");
    for sort in [&[][..], &["--sort", "name"]] {
        let args = [&["volume", "list"], sort].concat();
        let listed = place.json(&args);
        let error = listed.error(23, "Corrupt");
        assert_eq!(error["context"]["volume"], "b");
        assert_eq!(common::lines(&listed.stdout).len(), 2);
    }
    let text = place.run(&["volume", "list"]);
    assert_eq!(text.stdout.lines().count(), 3);
    assert!(text.stderr.starts_with("error: "), "{text:?}");
    assert!(text.stderr.contains("  volume: b\n"), "{text:?}");
    place.json(&["volume", "info", "b"]).error(23, "Corrupt");
}

#[test]
fn delete_takes_several_and_says_what_was_not_there() {
    let place = Place::new();
    for name in ["a", "b", "c"] {
        place.run(&["volume", "create", name, "1MiB"]).ok();
    }
    assert_eq!(
        place.json(&["volume", "delete", "a", "nix"]).documents(),
        [
            json!({"schema": "volmux.delete.v1", "name": "a", "existed": true}),
            json!({"schema": "volmux.delete.v1", "name": "nix", "existed": false}),
        ]
    );
    assert_eq!(
        place.run(&["volume", "delete", "b", "nix"]).ok(),
        "deleted b\nnix does not exist: nothing to delete\n"
    );
    place
        .json(&["volume", "delete", "c", "a/b"])
        .error(14, "InvalidInput");
    assert_eq!(
        place.names(),
        ["c"],
        "a wrong name stops it before anything is deleted"
    );
}

#[test]
fn extents_tell_data_and_changes() {
    let place = Place::new();
    let image = place.image("image", 8 * MIB);
    let image = image.to_str().expect("UTF-8");
    place
        .run(&["volume", "import", image, "web", "-f", "raw"])
        .ok();
    let documents = place.json(&["volume", "extents", "web"]).documents();
    let (head, end) = (&documents[0], &documents[documents.len() - 1]);
    // As the file system can tell.
    let grade = head["grade"].as_str().expect("grade");
    assert!(["exact", "superset"].contains(&grade), "{head}");
    assert_eq!(
        *head,
        json!({
            "schema": "volmux.extents.v1", "volume": "web", "changed_since": null,
            "offset": 0, "length": 8 * MIB, "grade": grade, "granularity": 4096,
        })
    );
    let extents = &documents[1..documents.len() - 1];
    let bytes: u64 = extents
        .iter()
        .map(|e| e["length"].as_u64().expect("length"))
        .sum();
    assert_eq!(
        *end,
        json!({"schema": "volmux.extents_end.v1", "count": extents.len(), "bytes": bytes})
    );
    let offset = extents[0]["offset"].as_u64().expect("offset");
    let length = extents[0]["length"].as_u64().expect("length");
    assert_eq!(
        extents[0],
        json!({"schema": "volmux.extent.v1", "offset": offset, "length": length})
    );
    assert_eq!(offset, MIB);

    place.run(&["volume", "snapshot", "web", "s"]).ok();
    let changed = place
        .json(&["volume", "extents", "web", "--changed-since", "s"])
        .documents();
    assert_eq!(changed[0]["changed_since"], "s");
    assert_eq!(
        changed[1],
        json!({"schema": "volmux.extents_end.v1", "count": 0, "bytes": 0})
    );
    let part = [
        "volume", "extents", "web", "--offset", "1MiB", "--length", "4KiB",
    ];
    let documents = place.json(&part).documents();
    assert_eq!(
        documents[1],
        json!({"schema": "volmux.extent.v1", "offset": MIB, "length": 4096})
    );
    assert_eq!(documents.len(), 3);
    let text = place.run(&part);
    let last = format!("1 extents, 4 KiB (4096 bytes), {grade}, in blocks of 4 KiB\n");
    assert!(text.ok().ends_with(&last), "{text:?}");
    for wrong in [
        ["--offset", "9MiB"],
        ["--length", "9MiB"],
        ["--length", "16EiB"],
        ["--offset", "x"],
    ] {
        let args = [&["volume", "extents", "web"][..], &wrong].concat();
        place.json(&args).error(14, "InvalidInput");
    }
    place
        .json(&["volume", "extents", "web", "--changed-since", "nix"])
        .error(11, "NotFound");
}

#[test]
fn adopt_takes_a_file_over() {
    let place = Place::new();
    place.run(&["volume", "create", "first", "1MiB"]).ok();
    std::fs::write(place.path("pool/old.raw"), vec![7; 4096]).expect("file");
    let made = place.json(&["volume", "adopt", "old.raw", "web"]).json();
    assert_eq!(made["virtual_size"], 4096);
    assert_eq!(made["name"], "web");
    place
        .run(&["volume", "export", "web", "out", "-f", "raw"])
        .ok();
    assert_eq!(
        std::fs::read(place.path("out")).expect("out"),
        vec![7; 4096]
    );
    place
        .json(&["volume", "adopt", "nix.raw", "x"])
        .error(11, "NotFound");
}

#[test]
fn attach_prints_where_the_volume_is() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "1MiB"]).ok();
    let path = place.run(&["volume", "attach", "web", "host-1"]);
    let path = path.ok();
    let length = std::fs::metadata(path.trim_end()).expect("a file").len();
    assert_eq!(length, 1 << 20);
    let again = place.json(&["volume", "attach", "web", "host-1"]).json();
    assert_eq!(again["path"], path.trim_end());
    assert_eq!(
        (&again["kind"], &again["access"]),
        (&"file".into(), &"read-write".into())
    );
    place
        .json(&["volume", "attach", "web", "host-2"])
        .error(17, "Busy");
    let reads = ["volume", "attach", "web", "host-2", "--read-only"];
    assert_eq!(place.json(&reads).json()["access"], "read-only");
    place
        .json(&["volume", "attach", "nix", "host-2"])
        .error(11, "NotFound");
    place
        .json(&["volume", "attach", "web", "no spaces"])
        .error(14, "InvalidInput");
}

#[test]
fn detach_frees_a_volume_whose_holder_is_gone() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "1MiB"]).ok();
    place.run(&["volume", "attach", "web", "host-9"]).ok();
    let busy = place.json(&["volume", "delete", "web"]).error(17, "Busy");
    assert_eq!(busy["context"]["attached_to"], "host-9");
    let done = place.json(&["volume", "detach", "web", "host-9"]).json();
    assert_eq!(done["name"], "web");
    assert_eq!(done["holder"], "host-9");
    let again = place.run(&["volume", "detach", "web", "host-9"]);
    assert_eq!(again.ok(), "web is not attached to host-9\n");
    place
        .json(&["volume", "detach", "web", ""])
        .error(14, "InvalidInput");
    place.run(&["volume", "delete", "web"]).ok();
}

#[test]
fn pool_info_tells_capabilities_usage_and_policy() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "1MiB"]).ok();
    let url = format!(
        "{}?overcommit_limit=2.5&warn_percent=100&refuse_percent=100",
        place.url()
    );
    let pool = place.json(&["-p", &url, "pool", "info"]).json();
    let keys = |value: &Value| -> Vec<String> {
        value.as_object().expect("object").keys().cloned().collect()
    };
    assert_eq!(
        keys(&pool),
        [
            "capabilities",
            "policy",
            "pool",
            "pressure",
            "schema",
            "usage"
        ]
    );
    assert_eq!(pool["schema"], "volmux.pool.v1");
    assert_eq!(pool["pool"], place.url());
    assert_eq!(
        pool["policy"],
        json!({"overcommit_limit": 2.5, "warn_percent": 100.0, "refuse_percent": 100.0})
    );
    assert_eq!(
        keys(&pool["usage"]),
        [
            "free",
            "metadata",
            "overcommit",
            "provisioned",
            "time_to_full_seconds",
            "total",
            "used",
            "used_percent"
        ]
    );
    assert_eq!(pool["usage"]["provisioned"], MIB);
    assert_eq!(
        keys(&pool["capabilities"]),
        [
            "adopt",
            "attach",
            "changed_extents",
            "clone",
            "discard",
            "fencing",
            "revert",
            "shared_writers",
            "shrink",
            "snapshot",
            "thick",
            "thin"
        ]
    );
    assert_eq!(pool["capabilities"]["thin"], "native");
    let text = place.run(&["-p", &url, "pool", "info"]);
    assert!(text.ok().contains("over-commit limit  2.5\n"), "{text:?}");
}

#[test]
fn a_pool_that_fills_up_is_warned_of() {
    let place = Place::new();
    let url = format!("{}?warn_percent=0&refuse_percent=100", place.url());
    let made = place.run(&["-p", &url, "volume", "create", "web", "1MiB"]);
    assert_eq!(made.ok(), "created web (1 MiB, thin)\n");
    assert!(made.stderr.starts_with("warning: pool dir:///"), "{made:?}");
    let made = place.json(&["-p", &url, "volume", "create", "web2", "1MiB"]);
    made.json();
    let warning = &common::lines(&made.stderr)[0];
    assert_eq!(warning["schema"], "volmux.warning.v1");
    assert_eq!(
        place.json(&["-p", &url, "pool", "info"]).json()["pressure"],
        "warn"
    );
}

#[test]
fn audit_looks_and_repairs_only_when_asked() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "1MiB"]).ok();
    let audit = |args: &[&str]| place.json(&[&["pool", "audit"], args].concat());
    let document = |repair: bool, dry_run: bool, clean: bool, findings: Value| {
        json!({
            "schema": "volmux.audit.v1", "pool": place.url(), "repair": repair,
            "dry_run": dry_run, "clean": clean, "volumes": 1, "findings": findings,
        })
    };
    assert_eq!(audit(&[]).json(), document(false, false, true, json!([])));
    assert_eq!(place.run(&["pool", "audit"]).ok(), "1 volumes, clean\n");
    let leftover = place.path("pool/data/00000000-0000-4000-8000-000000000000.raw");
    std::fs::write(&leftover, vec![1; 8192]).expect("leftover");
    let before = place.pool_state();
    for args in [&[][..], &["--repair", "--dry-run"]] {
        let found = audit(args);
        assert_eq!(found.code, Some(1), "{found:?}");
        let report = &common::lines(&found.stdout)[0];
        let findings = report["findings"].clone();
        assert_eq!(findings[0]["kind"], "leftover");
        assert_eq!(findings[0]["repaired"], false);
        let repair = !args.is_empty();
        assert_eq!(*report, document(repair, repair, false, findings));
        assert_eq!(place.pool_state(), before, "looking changes nothing");
    }
    let dry = place.run(&["pool", "audit", "--repair", "--dry-run"]);
    assert!(dry.stdout.contains("would be repaired"), "{dry:?}");
    let repaired = audit(&["--repair"]).json();
    assert_eq!(repaired["clean"], true);
    assert_eq!(repaired["findings"][0]["repaired"], true);
    assert!(!leftover.exists());
    assert_eq!(audit(&[]).json()["findings"], json!([]));
}

#[test]
fn a_dry_run_says_what_would_happen_and_changes_nothing() {
    let place = Place::new();
    for args in [
        &["volume", "create", "web", "2MiB"][..],
        &["volume", "snapshot", "web", "s"],
        &["volume", "create", "other", "1MiB"],
    ] {
        place.run(args).ok();
    }
    let before = place.pool_state();
    let cases: [(&[&str], &str, &str); 5] = [
        (&["delete", "web"], "delete_volume", "would be deleted"),
        (&["delete", "s"], "delete_volume", "would be deleted"),
        (&["delete", "nix"], "delete_volume", "nothing would change"),
        (
            &["revert", "web", "s"],
            "revert_volume",
            "would be put back to s",
        ),
        (
            &["resize", "web", "1MiB", "--shrink"],
            "resize_volume",
            "would shrink from 2 MiB to 1 MiB",
        ),
    ];
    for (args, op, effect) in cases {
        let args = [&["volume"], args, &["--dry-run"]].concat();
        let plan = place.json(&args).json();
        assert_eq!(plan["schema"], "volmux.dry_run.v1");
        assert_eq!(plan["op"], op);
        assert!(
            plan["effect"].as_str().expect("effect").contains(effect),
            "{plan}"
        );
        assert_eq!(plan.as_object().expect("object").len(), 4, "{plan}");
        assert!(place.run(&args).ok().ends_with("(dry run)\n"));
    }
    for (args, code, kind) in [
        (&["revert", "web", "other"][..], 14, "InvalidInput"),
        (&["revert", "s", "s"], 14, "InvalidInput"),
        (&["revert", "web", "nix"], 11, "NotFound"),
        (&["resize", "web", "1MiB"], 14, "InvalidInput"),
        (&["resize", "web", "0"], 14, "InvalidInput"),
        (&["resize", "s", "9MiB"], 14, "InvalidInput"),
        (&["resize", "nix", "9MiB"], 11, "NotFound"),
    ] {
        let real = [&["volume"], args].concat();
        place
            .json(&[&real[..], &["--dry-run"]].concat())
            .error(code, kind);
        place.json(&real).error(code, kind);
    }
    assert_eq!(place.pool_state(), before);
}
