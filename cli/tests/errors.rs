//! Wrong input and every exit code that the program can give.
#![allow(missing_docs)]

mod common;

use std::fs;

use common::Place;
use serde_json::json;
use volmux::{OpenOptions, VolumeName};

#[test]
fn the_command_line_is_checked() {
    let place = Place::new();
    for wrong in [
        &[][..],
        &["nonsense"],
        &["volume"],
        &["volume", "create", "web"],
        &["volume", "create", "web", "1MiB", "--nonsense"],
        &["volume", "delete"],
        &["volume", "list", "--sort", "colour"],
        &["volume", "import", "f", "n"],
        &["volume", "import", "f", "n", "--format", "vmdk"],
        &["completions", "tcsh"],
    ] {
        let done = place.run(wrong);
        assert_eq!(done.code, Some(2), "{wrong:?}: {done:?}");
        assert!(done.stderr.contains("--help"), "{done:?}");
    }
}

#[test]
fn names_and_sizes_are_checked_before_anything_happens() {
    let place = Place::new();
    let before = place.pool_state();
    for name in ["", "a/b", "../x", "é", "a b", &"x".repeat(128)] {
        let error = place
            .json(&["volume", "create", name, "1MiB"])
            .error(14, "InvalidInput");
        assert_eq!(error["context"]["volume"], name);
    }
    place
        .json(&["volume", "create", "--", "-rf", "1MiB"])
        .error(14, "InvalidInput");
    place
        .json(&["volume", "delete", "--", "-rf"])
        .error(14, "InvalidInput");
    for size in ["0", "", "x", "1Q", "-1", "99999999999999999999", "9EiB"] {
        let create = ["volume", "create", "web", "--", size];
        let create = if size.starts_with('-') {
            &create[..]
        } else {
            &["volume", "create", "web", size]
        };
        place.json(create).error(14, "InvalidInput");
    }
    for reserved in [
        &["volume", "create", "web.importing", "1MiB"][..],
        &["volume", "rename", "web", "web.importing"],
        &["volume", "snapshot", "web", "web.importing"],
        &["volume", "clone", "web", "web.importing"],
        &["volume", "copy", "web", "web.importing"],
        &["volume", "adopt", "x", "web.importing"],
        &["volume", "import", "x", "web.importing", "-f", "raw"],
    ] {
        place.json(reserved).error(14, "InvalidInput");
    }
    assert_eq!(place.pool_state(), before);
}

#[test]
fn an_error_has_this_shape() {
    let place = Place::new();
    let done = place.json(&["volume", "create", "web", "1Q"]);
    assert_eq!(
        done.error(14, "InvalidInput"),
        json!({
            "schema": "volmux.error.v1", "kind": "InvalidInput", "op": "parse_size",
            "context": {
                "size": "1Q", "reason": "the unit is not known",
                "help": "write bytes (1048576) or a unit: 512MiB, 10GiB, 1.5TiB, 500MB",
            },
            "cause": [], "retryable": false,
        })
    );
    assert_eq!(done.stdout, "");
    let text = place.run(&["volume", "create", "web", "1Q"]);
    assert_eq!(
        text.stderr,
        "error: parse size: invalid input\n  size: 1Q\n  reason: the unit is not known\n  \
         help: write bytes (1048576) or a unit: 512MiB, 10GiB, 1.5TiB, 500MB\n"
    );
}

#[test]
fn pools_are_found_by_url_name_and_environment() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "1MiB"]).ok();
    let none = |args: &[&str]| {
        let mut command = place.command(args);
        command.env_remove("VOLMUX_POOL");
        common::finish(command.spawn().expect("spawn"))
    };
    let error = none(&["--json", "volume", "list"]).error(14, "InvalidInput");
    assert!(
        error["context"]["help"]
            .as_str()
            .expect("help")
            .contains("VOLMUX_POOL")
    );
    let error = none(&["--json", "-p", "fast", "volume", "list"]).error(11, "NotFound");
    assert!(
        error["context"]["help"]
            .as_str()
            .expect("help")
            .contains("[pools.fast]")
    );

    let config = place.path(".config/volmux/config.toml");
    fs::create_dir_all(config.parent().expect("parent")).expect("directories");
    let text = format!(
        "[pools.fast]\nurl = \"{0}\"\nread_only = true\n[pools.slow]\nurl = \"{0}\"\n",
        place.url()
    );
    fs::write(&config, &text).expect("config");
    let list = none(&["--json", "-p", "fast", "volume", "list"]);
    assert_eq!(list.json()["name"], "web");
    none(&["--json", "-p", "fast", "volume", "create", "x", "1MiB"]).error(19, "PermissionDenied");
    none(&["--json", "volume", "create", "x", "1MiB", "-p", "slow"]).json();
    let error = none(&["--json", "-p", "fats", "volume", "list"]).error(11, "NotFound");
    assert_eq!(
        error["context"]["reason"],
        "the configured pools are: fast, slow"
    );

    // --config is before $VOLMUX_CONFIG, which is before the usual places.
    let (one, two) = (place.text("one.toml"), place.text("two.toml"));
    fs::write(&one, text.replace("fast", "one")).expect("config");
    fs::write(&two, text.replace("fast", "two")).expect("config");
    let with = |args: &[&str]| {
        let mut command = place.command(args);
        command.env("VOLMUX_CONFIG", &two);
        common::finish(command.spawn().expect("spawn"))
    };
    with(&["--json", "-p", "two", "volume", "info", "web"]).json();
    with(&["--json", "-p", "fast", "volume", "list"]).error(11, "NotFound");
    with(&[
        "--json", "--config", &one, "-p", "one", "volume", "info", "web",
    ])
    .json();
}

#[test]
fn wrong_configurations_are_refused() {
    let place = Place::new();
    let path = place.text("config.toml");
    let list = ["--json", "--config", &path, "-p", "a", "volume", "list"];
    place.run(&list).error(11, "NotFound");
    for text in [
        "nonsense = 1\n",
        "[pools.a]\nurl = \"dir:///tmp\"\nno_such_option = 1\n",
        "[pools.a]\nurl = \"dir:///tmp\"\nrefuse_percent = 900\n",
        "[pools.a]\nurl = \"dir:relative\"\n",
        "[pools.a]\nurl = \"nonsense:x\"\n",
        "[pools.a]\n",
        "not toml",
    ] {
        fs::write(&path, text).expect("config");
        let error = place.run(&list).error(15, "InvalidConfig");
        assert!(
            !error["context"]["reason"]
                .as_str()
                .expect("reason")
                .is_empty(),
            "{text}"
        );
    }
    fs::write(&path, [0xff, 0xfe]).expect("config");
    assert_ne!(place.run(&list).code, Some(0));
    for url in [
        "dir:///x?nonsense=1",
        "dir://host/x",
        "s3://key:secret@bucket/",
        "nonsense:x",
    ] {
        let error = place
            .json(&["-p", url, "pool", "info"])
            .error(15, "InvalidConfig");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn each_kind_of_error_has_its_exit_code() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "1MiB"]).ok();
    place.run(&["volume", "snapshot", "web", "s"]).ok();
    let json = |args: &[&str]| place.json(args);
    for missing in [
        &["volume", "info", "nix"][..],
        &["volume", "resize", "nix", "1GiB"],
        &["volume", "rename", "nix", "x"],
        &["volume", "snapshot", "nix", "x"],
        &["volume", "clone", "nix", "x"],
        &["volume", "copy", "nix", "x"],
        &["volume", "revert", "nix", "s"],
        &["volume", "flatten", "nix"],
        &["volume", "extents", "nix"],
        &["volume", "export", "nix", "x", "-f", "raw"],
        &["volume", "import", "no-file", "x", "-f", "raw"],
        &["-p", "dir:///no/such/directory", "pool", "info"],
    ] {
        json(missing).error(11, "NotFound");
    }
    json(&["volume", "create", "web", "2MiB"]).error(12, "AlreadyExists");
    json(&["volume", "rename", "s", "web"]).error(12, "AlreadyExists");
    json(&["volume", "resize", "s", "2MiB"]).error(14, "InvalidInput");
    json(&["volume", "flatten", "s"]).error(14, "InvalidInput");
    let full = format!("{}?overcommit_limit=0.0000001", place.url());
    json(&["-p", &full, "volume", "create", "x", "1TiB"]).error(16, "NoSpace");
    let read_only = format!("{}?read_only=true", place.url());
    json(&["-p", &read_only, "volume", "delete", "web"]).error(19, "PermissionDenied");
    json(&["-p", "memory:", "volume", "adopt", "x", "y"]).error(13, "Unsupported");
    let error = json(&["volume", "resize", "web", "512KiB"]).error(14, "InvalidInput");
    assert_eq!(error["op"], "resize_volume");
    let text = place.run(&["volume", "resize", "web", "512KiB"]);
    assert!(
        text.stderr.ends_with("help: --shrink allows it\n"),
        "{text:?}"
    );
}

#[tokio::test]
async fn a_volume_in_use_is_not_deleted_reverted_or_shrunk() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "1MiB"]).ok();
    place.run(&["volume", "snapshot", "web", "s"]).ok();
    let pool = volmux::registry().open(&place.url()).await.expect("open");
    let name = VolumeName::new("web").expect("name");
    let device = pool
        .open_volume(&name, OpenOptions::read_write())
        .await
        .expect("open");
    for args in [
        &["volume", "delete", "web"][..],
        &["volume", "revert", "web", "s"],
        &["volume", "resize", "web", "512KiB", "--shrink"],
    ] {
        place.json(args).error(17, "Busy");
        place
            .json(&[args, &["--dry-run"]].concat())
            .error(17, "Busy");
    }
    let both = place.json(&["volume", "delete", "web", "s"]);
    both.error(17, "Busy");
    assert_eq!(
        place.names(),
        ["web"],
        "the other one is deleted all the same"
    );
    drop(device);
    place.run(&["volume", "delete", "web"]).ok();
}

#[test]
fn a_strange_qemu_img_is_told_of() {
    let place = Place::new();
    let image = place.path("image");
    common::qemu_img(&[
        "create",
        "-f",
        "qcow2",
        image.to_str().expect("UTF-8"),
        "1M",
    ]);
    let import = |program: &str| {
        let args = [
            "--json",
            "volume",
            "import",
            image.to_str().expect("UTF-8"),
            "x",
            "-f",
            "qcow2",
        ];
        let mut command = place.command(&args);
        command.env("VOLMUX_QEMU_IMG", program);
        common::finish(command.spawn().expect("spawn"))
    };
    import("qemu-img").error(15, "InvalidConfig");
    import("/no/such/program").error(15, "InvalidConfig");
    let script = |body: &str| place.script(body).to_str().expect("UTF-8").to_owned();
    import(&script("echo garbage")).error(24, "Internal");
    let error = import(&script("echo 'out of luck' >&2; exit 1")).error(14, "InvalidInput");
    assert_eq!(error["cause"], json!(["out of luck"]));
    import(&script("kill -9 $$")).error(21, "Unavailable");
    let convert = "[ $1 = info ] && exec /usr/bin/qemu-img \"$@\"\n";
    let full = format!("{convert}echo 'No space left on device' >&2; exit 1");
    import(&script(&full)).error(16, "NoSpace");
    assert_eq!(
        place.names(),
        Vec::<String>::new(),
        "no import left anything"
    );
}
