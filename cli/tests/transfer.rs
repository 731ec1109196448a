//! Import and export: round trips judged by qemu-img, and images that are refused.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use common::{Place, qemu_img, sha256_of, text};
use serde_json::Value;

const SIZE: u64 = 32 << 20;

#[test]
fn every_format_goes_round() {
    let place = Place::new();
    let raw = place.image("image.raw", SIZE + 512);
    let hash = sha256_of(text(&raw));
    for format in ["raw", "qcow2", "vhdx", "vpc"] {
        let (image, name) = (place.text(&format!("in.{format}")), format!("v-{format}"));
        let options: &[&str] = match format {
            "vpc" => &["-o", "force_size=on"],
            _ => &[],
        };
        let convert = ["convert", "-f", "raw", "-O", format];
        qemu_img(&[&convert[..], options, &[text(&raw), &image]].concat());
        let imported = place
            .json(&["volume", "import", &image, &name, "-f", format, "--verify"])
            .json();
        assert_eq!(imported["schema"], "volmux.import.v1");
        assert_eq!(imported["sha256"], hash.as_str(), "{format}");
        assert_eq!(imported["image_size"], SIZE + 512, "{format}");
        assert_eq!(imported["verified"], true);
        assert_eq!(imported["format"], format);
        let keys: Vec<&String> = imported.as_object().expect("object").keys().collect();
        assert_eq!(
            keys,
            [
                "file",
                "format",
                "image_size",
                "schema",
                "sha256",
                "verified",
                "volume"
            ]
        );
        let volume = &imported["volume"];
        assert_eq!(
            (&volume["name"], &volume["virtual_size"]),
            (&name.clone().into(), &(SIZE + 512).into())
        );
        let allocated = volume["allocated"].as_u64().expect("allocated");
        assert!(allocated < 4 << 20, "{format} is sparse: {allocated}");

        let out = place.text(&format!("out.{format}"));
        let exported = place
            .json(&["volume", "export", &name, &out, "-f", format, "--verify"])
            .json();
        assert_eq!(exported["schema"], "volmux.export.v1");
        assert_eq!(exported["sha256"], hash.as_str(), "{format}");
        assert_eq!(exported["image_size"], SIZE + 512, "{format}");
        qemu_img(&["compare", "-f", "raw", "-F", format, text(&raw), &out]);
        let occupied = fs::metadata(&out).expect("out").blocks() * 512;
        assert!(occupied < 16 << 20, "{format} is sparse: {occupied}");
        let again = format!("again-{format}");
        place
            .json(&["volume", "import", &out, &again, "-f", format])
            .json();
        let kept = place.json(&["volume", "info", &again]).json();
        assert_eq!(kept["virtual_size"], SIZE + 512, "{format} keeps the size");
    }
    let left: Vec<_> = fs::read_dir(place.path(""))
        .expect("list")
        .flatten()
        .collect();
    assert!(
        left.iter()
            .all(|e| !e.file_name().to_string_lossy().contains(".partial-"))
    );
}

#[test]
fn pools_that_attach_nothing_have_every_format_too() {
    let place = Place::new();
    let raw = place.image("image", SIZE);
    let import = ["volume", "import", text(&raw), "web", "-f", "raw"];
    place.run(&import).ok();
    let read_only = format!("{}?read_only=true", place.url());
    let before = place.pool_state();
    for format in ["qcow2", "vhdx", "vpc"] {
        let image = place.text(&format!("out.{format}"));
        let export = ["-p", &read_only, "volume", "export", "web", &image];
        let done = place.json(&[&export[..], &["-f", format, "--verify"]].concat());
        assert_eq!(done.json()["sha256"], sha256_of(text(&raw)).as_str());
        qemu_img(&["compare", "-f", "raw", "-F", format, text(&raw), &image]);
        // The pool ends with the process, but until then it holds the volume.
        let import = [
            "-p", "memory:", "volume", "import", &image, "new", "-f", format,
        ];
        let done = place.json(&[&import[..], &["--verify"]].concat()).json();
        assert_eq!(done["sha256"], sha256_of(text(&raw)).as_str());
        assert_eq!(done["volume"]["virtual_size"], SIZE);
    }
    assert!(
        place.pool_state() == before,
        "nothing was written to the pool"
    );
    assert_eq!(place.sockets(), 0, "no socket is left");
}

#[test]
fn progress_is_shown_on_a_terminal_only() {
    let place = Place::new();
    fs::write(place.path("image"), vec![7; 16 << 20]).expect("image");
    // However full the disk is, nothing is warned of.
    let pool = format!("{}?warn_percent=95", place.url());
    let import = ["volume", "import", "image", "piped", "-f", "raw"];
    let piped = place.run(&[&["-p", &pool], &import[..]].concat());
    assert!(piped.ok().starts_with("imported piped"));
    assert_eq!(piped.stderr, "");
    let script = |arguments: &str| {
        let program = place.command(&[]).get_program().to_owned();
        let line = format!("{} {arguments}", program.display());
        let mut command = Command::new("/usr/bin/script");
        command.args(["-qec", &line, "/dev/null"]);
        command
            .current_dir(place.path(""))
            .env("TERM", "xterm")
            .env("VOLMUX_POOL", place.url());
        let output = command.output().expect("script");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let seen = script("volume import image seen -f raw");
    assert!(seen.contains("import ["), "{seen}");
    assert!(seen.contains("imported seen"), "{seen}");
    let json = script("volume import image json -f raw --json");
    assert!(json.starts_with("{\"schema\":"), "{json}");
}

#[test]
fn a_raw_image_of_an_odd_size_is_filled_up_with_zeros() {
    let place = Place::new();
    let raw = place.image("image", SIZE - 3);
    let done = place.run(&[
        "volume",
        "import",
        text(&raw),
        "web",
        "-f",
        "raw",
        "--verify",
    ]);
    assert!(
        done.ok().starts_with("imported web (32 MiB, thin) from "),
        "{done:?}"
    );
    assert!(done.stdout.contains("\nverified, sha256 "), "{done:?}");
    place
        .run(&["volume", "export", "web", "out", "-f", "raw"])
        .ok();
    let (mut wanted, found) = (
        fs::read(&raw).expect("in"),
        fs::read(place.path("out")).expect("out"),
    );
    wanted.resize(SIZE as usize, 0);
    assert!(wanted == found);
}

#[test]
fn size_and_thick_are_heeded() {
    let place = Place::new();
    let raw = place.image("image", SIZE);
    let qcow2 = place.text("image.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&raw), &qcow2]);
    for (image, format) in [(text(&raw), "raw"), (&qcow2, "qcow2")] {
        let import = |name: &str, more: &[&str]| {
            place.json(
                &[
                    &["volume", "import", image, name, "-f", format, "--verify"],
                    more,
                ]
                .concat(),
            )
        };
        let error = import("small", &["--size", "1MiB"]).error(14, "InvalidInput");
        assert_eq!(error["context"]["image_size"], SIZE.to_string());
        import("small", &["--size", "x"]).error(14, "InvalidInput");
        let large = import(&format!("large-{format}"), &["--size", "64MiB"]).json();
        assert_eq!(large["volume"]["virtual_size"], 64 << 20);
        let thick = import(&format!("thick-{format}"), &["--thick"]).json();
        assert_eq!(thick["volume"]["provisioning"], "thick");
        assert!(thick["volume"]["allocated"].as_u64().expect("allocated") >= SIZE);
    }
    assert_eq!(
        place.names(),
        ["large-qcow2", "large-raw", "thick-qcow2", "thick-raw"]
    );
}

#[test]
fn images_that_refer_to_others_or_are_encrypted_are_refused() {
    let place = Place::new();
    let base = place.image("base.raw", SIZE);
    let create = |args: &[&str]| qemu_img(&[&["create", "-q", "-f", "qcow2"], args].concat());
    let (backing, data) = (place.text("backing.qcow2"), place.text("data.qcow2"));
    create(&["-b", text(&base), "-F", "raw", &backing]);
    create(&[
        "-o",
        &format!("data_file={}", place.text("data.raw")),
        &data,
        "1M",
    ]);
    let (luks, aes) = (place.text("luks.qcow2"), "secret,id=s,data=x");
    create(&[
        "--object",
        aes,
        "-o",
        "encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=s",
        &luks,
        "1M",
    ]);
    let (parent, child) = (place.text("base.vpc"), place.text("child.vpc"));
    qemu_img(&["create", "-q", "-f", "vpc", &parent, "4M"]);
    let mut footer = fs::read(&parent).expect("vpc");
    footer[63] = 4;
    fs::write(&child, footer).expect("vpc");
    let differencing = place.text("child.vhdx");
    qemu_img(&["create", "-q", "-f", "vhdx", &differencing, "4M"]);
    let mut image = fs::read(&differencing).expect("vhdx");
    // The id of the file parameters, in the metadata region; HasParent is bit 1 of its flags.
    let id = [0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d];
    let entry = image.windows(8).position(|bytes| bytes == id);
    let region = image.windows(8).position(|bytes| bytes == b"metadata");
    let (entry, region) = (entry.expect("an entry"), region.expect("a region"));
    let item = u32::from_le_bytes(image[entry + 16..entry + 20].try_into().expect("four"));
    image[region + item as usize + 4] |= 2;
    fs::write(&differencing, image).expect("vhdx");
    let before = place.pool_state();
    for (image, format, word) in [
        (differencing.as_str(), "vhdx", "parent image"),
        (backing.as_str(), "qcow2", "backing file"),
        (&data, "qcow2", "another file"),
        (&luks, "qcow2", "encrypted"),
        (&child, "vpc", "parent image"),
        (text(&base), "qcow2", "not a qcow2"),
        (text(&base), "vhdx", "not a vhdx"),
        (text(&base), "vpc", "not a vpc"),
        (&parent, "qcow2", "not a qcow2"),
    ] {
        let error = place
            .json(&["volume", "import", image, "x", "-f", format])
            .error(14, "InvalidInput");
        assert!(
            error["context"]["reason"]
                .as_str()
                .expect("reason")
                .contains(word),
            "{error}"
        );
    }
    assert_eq!(place.pool_state(), before);
    // What is given as raw is raw: nothing in it is looked at.
    place
        .run(&["volume", "import", &backing, "raw", "-f", "raw"])
        .ok();
    assert_eq!(
        place.json(&["volume", "info", "raw"]).json()["virtual_size"],
        fs::metadata(&backing)
            .expect("metadata")
            .len()
            .next_multiple_of(512)
    );
}

#[test]
fn absurd_and_broken_images_are_refused() {
    let place = Place::new();
    let import =
        |image: &str, format: &str| place.json(&["volume", "import", image, "x", "-f", format]);
    let huge = place.text("huge.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=2M",
        &huge,
        "100T",
    ]);
    let error = import(&huge, "qcow2").error(14, "InvalidInput");
    assert!(
        error["context"]["help"]
            .as_str()
            .expect("help")
            .contains("--size"),
        "{error}"
    );
    let empty = place.text("empty");
    fs::write(&empty, "").expect("write");
    for format in ["raw", "qcow2", "vhdx", "vpc"] {
        import(&empty, format).error(14, "InvalidInput");
    }
    let raw = place.image("image", SIZE);
    for (format, code, kind) in [
        ("qcow2", 23, "Corrupt"),
        ("vhdx", 14, "InvalidInput"),
        ("vpc", 14, "InvalidInput"),
    ] {
        let (whole, cut) = (place.text("whole"), place.text("cut"));
        qemu_img(&["convert", "-f", "raw", "-O", format, text(&raw), &whole]);
        // Without a check of its own, a qcow2 image that was cut off would read as zeros there.
        fs::write(&cut, &fs::read(&whole).expect("read")[..1_500_000]).expect("write");
        import(&cut, format).error(code, kind);
    }
    import(place.path("pool").to_str().expect("UTF-8"), "raw").error(14, "InvalidInput");
    let fifo = place.text("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .expect("mkfifo")
            .success()
    );
    import(&fifo, "raw").error(14, "InvalidInput");
    import("/dev/zero", "raw").error(14, "InvalidInput");
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn file_names_are_never_protocols_or_options() {
    let place = Place::new();
    let raw = place.image("image", SIZE);
    place
        .run(&["volume", "import", text(&raw), "web", "-f", "raw"])
        .ok();
    for name in ["nbd:localhost:1", "json:{}", "a,b=c %s \"q", "-o"] {
        for format in ["qcow2", "raw"] {
            let file = format!("{name}.{format}");
            place
                .run(&["volume", "export", "web", "-f", format, "--", &file])
                .ok();
            let volume = format!("from-{format}");
            place
                .run(&[
                    "volume", "import", "-f", format, "--verify", "--", &file, &volume,
                ])
                .ok();
            place.run(&["volume", "delete", &volume]).ok();
            fs::remove_file(place.path(&file)).expect("the file with that very name");
        }
    }
}

#[test]
fn file_names_need_not_be_utf_8() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "1MiB"]).ok();
    let name = std::ffi::OsStr::from_bytes(b"image-\xff\xfe");
    for format in ["raw", "qcow2"] {
        for args in [["export", "web"], ["import", "back"]] {
            let mut command = place.command(&["volume", args[0], "-f", format]);
            match args[0] {
                "export" => command.arg(args[1]).arg(name),
                _ => command.arg(name).arg(args[1]),
            };
            common::finish(command.spawn().expect("spawn")).ok();
        }
        place.run(&["volume", "delete", "back"]).ok();
        fs::remove_file(place.path("").join(name)).expect("the file with that very name");
    }
}

#[test]
fn export_overwrites_only_with_force() {
    let place = Place::new();
    let raw = place.image("image", SIZE);
    place
        .run(&["volume", "import", text(&raw), "web", "-f", "raw"])
        .ok();
    let out = place.path("out");
    let export = |file: &str, more: &[&str]| {
        place.json(&[&["volume", "export", "web", file, "-f", "raw"], more].concat())
    };
    fs::write(&out, "mine").expect("write");
    export("out", &[]).error(12, "AlreadyExists");
    assert_eq!(fs::read(&out).expect("read"), b"mine");
    symlink("out", place.path("link")).expect("symlink");
    export("link", &[]).error(14, "InvalidInput");
    symlink("nowhere", place.path("dangling")).expect("symlink");
    for more in [&[][..], &["--force"]] {
        assert_ne!(export("dangling", more).code, Some(0));
        assert_ne!(export("pool", more).code, Some(0));
        assert_ne!(export("no/such/directory/x", more).code, Some(0));
        assert_ne!(export("/dev/null", more).code, Some(0));
    }
    assert_eq!(fs::read(&out).expect("read"), b"mine");
    export("link", &["--force"]).json();
    assert!(
        fs::symlink_metadata(place.path("link"))
            .expect("link")
            .is_symlink()
    );
    assert!(fs::read(&out).expect("read") == fs::read(&raw).expect("read"));
    fs::write(&out, "mine").expect("write");
    export("out", &["--force"]).json();
    assert!(fs::read(&out).expect("read") == fs::read(&raw).expect("read"));
    assert!(!place.path("nowhere").exists());
    let mode = fs::metadata(&out).expect("out").permissions().mode();
    let umask = fs::metadata(&raw).expect("image").permissions().mode();
    assert_eq!(mode, umask, "as any program makes files");
}

#[test]
fn a_volume_too_large_for_a_format_is_refused() {
    let place = Place::new();
    place.run(&["volume", "create", "web", "3TiB"]).ok();
    place
        .json(&["volume", "export", "web", "out", "-f", "vpc"])
        .error(14, "InvalidInput");
    assert!(!place.path("out").exists());
}

#[test]
fn what_was_written_wrongly_is_noticed_and_not_kept() {
    let place = Place::new();
    let raw = place.image("image", SIZE);
    let qcow2 = place.text("image.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&raw), &qcow2]);
    place
        .run(&["volume", "import", text(&raw), "web", "-f", "raw"])
        .ok();
    // A converter that does nothing when it should write into a volume, and makes an empty image
    // when it should export one.
    let fake = place.script(
        "case \"$*\" in\n\
         *--target-is-zero*) exit 0 ;;\n\
         convert*) for last; do :; done; exec /usr/bin/qemu-img create -q -f qcow2 \"$last\" 32M ;;\n\
         esac\nexec /usr/bin/qemu-img \"$@\"",
    );
    let run = |args: &[&str]| {
        let mut command = place.command(&[&["--json"], args].concat());
        command.env("VOLMUX_QEMU_IMG", &fake);
        common::finish(command.spawn().expect("spawn"))
    };
    run(&["volume", "import", &qcow2, "bad", "-f", "qcow2", "--verify"]).error(23, "Corrupt");
    run(&["volume", "export", "web", "bad", "-f", "qcow2", "--verify"]).error(23, "Corrupt");
    assert_eq!(place.names(), ["web"]);
    assert!(!place.path("bad").exists());
    let names: Vec<Value> = place.json(&["volume", "list"]).documents();
    assert_eq!(names.len(), 1);
    place.run(&["volume", "delete", "web"]).ok();
}

#[test]
fn an_import_into_a_taken_name_is_refused() {
    let place = Place::new();
    let raw = place.image("image", SIZE);
    place.run(&["volume", "create", "web", "1MiB"]).ok();
    place
        .json(&["volume", "import", text(&raw), "web", "-f", "raw"])
        .error(12, "AlreadyExists");
    assert_eq!(
        place.json(&["volume", "info", "web"]).json()["virtual_size"],
        1 << 20
    );
    let longest = "x".repeat(127);
    place
        .run(&["volume", "import", text(&raw), &longest, "-f", "raw"])
        .ok();
    assert_eq!(place.names(), ["web".to_owned(), longest]);
}

#[test]
fn an_import_that_does_not_fit_is_refused_before_it_begins() {
    let place = Place::new();
    let raw = place.image("image", SIZE);
    let full = format!("{}?overcommit_limit=0.0000000001", place.url());
    let import = [
        "-p",
        &full,
        "volume",
        "import",
        text(&raw),
        "web",
        "-f",
        "raw",
    ];
    let error = place.json(&import).error(16, "NoSpace");
    assert_eq!(error["op"], "import_volume");
    assert_eq!(place.names(), Vec::<String>::new());
}
