//! `volmux export --tls`, with certificates made as docs/gateway.md says.
#![allow(missing_docs)]

mod common;

use std::fs;

use common::Place;
use common::qemu::{Qemu, give};
use common::serving::{Serving, tool};
use volmux::hypervisor::{Hypervisor, RenderOptions};
use volmux::{Access, AttachTarget, Attachment, Holder, NbdAddress, VolumeId, VolumeName};

/// Makes an authority and certificates in `tls`, and what a client needs of them in `client`, with
/// its own certificate, and in `stranger`, without.
fn place() -> Place {
    let place = Place::new();
    place.run(&["volume", "create", "web", "8MiB"]).ok();
    for directory in ["tls", "client", "stranger"] {
        fs::create_dir(place.path(directory)).expect("directory");
    }
    let docs = include_str!("../../docs/gateway.md");
    let (_, from) = docs.split_once("With openssl:\n\n```\n").expect("recipe");
    let (recipe, _) = from.split_once("```").expect("its end");
    let recipe = recipe
        .replace("/etc/volmux/tls", &place.text("tls"))
        .replace("IP:192.0.2.10", "IP:127.0.0.1");
    assert!(recipe.contains(&place.text("tls")) && recipe.contains("127.0.0.1"));
    let done = tool("bash", &["-euc", &recipe]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let copy = |file: &str, to: &str| {
        let from = place.path("tls").join(file);
        fs::copy(&from, place.path(to).join(file)).expect("copy");
    };
    for file in ["ca-cert.pem", "client-cert.pem", "client-key.pem"] {
        copy(file, "client");
    }
    copy("ca-cert.pem", "stranger");
    place
}

fn start(place: &Place, more: &[&str]) -> (Serving, String) {
    let args = ["web", "--listen", "127.0.0.1:0", "--tls", "tls"];
    let serving = Serving::start(place, &[&args, more].concat());
    let uri = serving.line();
    assert!(uri.starts_with("nbds://127.0.0.1:"), "{uri}");
    (serving, uri)
}

fn code(uri: &str) -> Option<i32> {
    tool("nbdinfo", &["--size", uri]).code
}

#[test]
fn only_clients_with_a_certificate_are_let_in() {
    let place = place();
    let (serving, uri) = start(&place, &["--tls-verify-clients"]);
    assert_eq!(serving.stderr(), "");
    let with = |directory: &str| format!("{uri}?tls-certificates={}", place.text(directory));
    let size = tool("nbdinfo", &["--size", &with("client")]);
    assert_eq!(size.ok().trim(), (8 << 20).to_string());
    // QEMU's options, as they are documented.
    let docs = include_str!("../../docs/gateway.md");
    let (_, from) = docs.split_once("\nqemu-img info --object").expect("a line");
    let (line, _) = from.split_once("```").expect("its end");
    let port = uri.split([':', '/']).nth(4).expect("port");
    let line = format!("qemu-img info --object{line}")
        .replace("/etc/pki/volmux", &place.text("client"))
        .replace("store-1.example.org", "127.0.0.1")
        .replace("10809", port);
    let info = tool("bash", &["-euc", &line]);
    assert!(info.ok().contains("8 MiB"), "{info:?}");
    let copy = place.image("image", 8 << 20);
    let copy = copy.to_str().expect("UTF-8");
    tool("nbdcopy", &[copy, &with("client")]).ok();
    assert_ne!(code(&with("stranger")), Some(0), "no certificate");
    let plain = uri.replace("nbds://", "nbd://");
    assert_ne!(code(&plain), Some(0), "no TLS");
    serving.wait_for_stderr("WARN");
    let done = serving.stop();
    let key = fs::read_to_string(place.path("tls/server-key.pem")).expect("key");
    let secret = key.lines().nth(1).expect("a line");
    assert!(!done.stderr.contains(secret), "{done:?}");
    let out = place.text("out");
    place
        .run(&["volume", "export", "web", &out, "-f", "raw"])
        .ok();
    assert!(fs::read(&out).expect("out") == fs::read(copy).expect("image"));
}

#[test]
fn without_verification_anybody_gets_in_and_that_is_told() {
    let place = place();
    let (serving, uri) = start(&place, &[]);
    serving.wait_for_stderr("--tls-verify-clients");
    let with = |directory: &str| format!("{uri}?tls-certificates={}", place.text(directory));
    assert_eq!(code(&with("stranger")), Some(0));
    assert_ne!(code(&uri.replace("nbds://", "nbd://")), Some(0), "no TLS");
    // Another authority's clients do not trust this server.
    fs::remove_file(place.path("stranger/ca-cert.pem")).expect("remove");
    fs::copy(
        place.path("tls/client-cert.pem"),
        place.path("stranger/ca-cert.pem"),
    )
    .expect("copy");
    assert_ne!(code(&with("stranger")), Some(0));
    serving.stop();
}

#[test]
fn qemu_takes_what_is_rendered_for_it() {
    let place = place();
    let (_serving, uri) = start(&place, &["--tls-verify-clients"]);
    let port = uri.trim_start_matches("nbds://127.0.0.1:");
    let (port, _) = port.split_once('/').expect("a port");
    let attached = Attachment {
        volume: VolumeName::new("web").expect("a good name"),
        id: VolumeId::random(),
        holder: Holder::new("vm").expect("a good holder"),
        access: Access::ReadWrite,
        target: AttachTarget::Nbd {
            address: NbdAddress::Tcp {
                host: "127.0.0.1".into(),
                port: port.parse().expect("a number"),
            },
            export: "web".into(),
            tls: true,
        },
    };
    let with = |directory: &str| RenderOptions {
        tls_credentials: Some(place.path(directory)),
        ..RenderOptions::default()
    };
    let mut qemu = give(&attached, &with("client"), "raw");
    let read = qemu.io("read -P 0 0 4096");
    assert!(read.contains("read 4096/4096"), "{read}");
    let stranger = attached.render(Hypervisor::Qemu, &with("stranger"));
    Qemu::try_start(&stranger.expect("rendered").arguments).expect_err("no certificate");
}
