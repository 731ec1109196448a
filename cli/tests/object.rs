//! Object pools on the command line.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use common::serving::{Serving, tool};
use common::{Done, Place, finish};
use volmux_s3_server::{Options, Server};

const KIB: usize = 1 << 10;

/// Runs the program on another pool than that of `place`.
fn on(place: &Place, pool: &str, args: &[&str]) -> Done {
    let mut command = place.command(args);
    command.env("VOLMUX_POOL", pool);
    finish(command.spawn().expect("spawn"))
}

/// The newest manifest of the only log of a pool.
fn newest_manifest(server: &Server) -> String {
    let mut keys = server.keys("bucket", "pool/logs/");
    keys.retain(|key| key.contains("/m/"));
    let newest = keys.iter().max().expect("a manifest");
    let bytes = server.object("bucket", newest).expect("it is there");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A host that finds a volume open has to take it over, so a program that ends closes it first.
#[test]
fn what_it_wrote_is_closed_before_it_ends() {
    let place = Place::new();
    let image = place.image("image", 8 << 20);
    let credentials = place.text("credentials");
    let text = "AWS_ACCESS_KEY_ID=test\nAWS_SECRET_ACCESS_KEY=test\n";
    fs::write(&credentials, text).expect("credentials");
    let only_mine = fs::Permissions::from_mode(0o600);
    fs::set_permissions(&credentials, only_mine).expect("mode");
    let server = Server::start(Options::default()).expect("a server");
    // Far longer than a program takes that does not wait.
    server.latency(None, Duration::from_millis(50));
    let pool = format!(
        "s3://bucket/pool?region=us-east-1&endpoint={}&credentials_file={credentials}&gc=1h",
        server.endpoint()
    );
    let import = ["volume", "import", common::text(&image), "web", "-f", "raw"];
    on(&place, &pool, &import).ok();
    let manifest = newest_manifest(&server);
    assert!(manifest.contains("\"closed\""), "{manifest}");
    let mut command = place.command(&["export", "web", "--socket", "s"]);
    command.env("VOLMUX_POOL", &pool);
    let serving = Serving::spawn(command);
    let uri = serving.line();
    tool("qemu-io", &["-f", "raw", "-c", "write -P 7 0 4k", &uri]).ok();
    let open = newest_manifest(&server);
    assert!(open.contains("\"open\""), "{open}");
    serving.stop();
    let manifest = newest_manifest(&server);
    assert!(manifest.contains("\"closed\""), "{manifest}");
    // Who reads a volume leaves its mark no longer than that.
    let out = place.text("out");
    let export = ["volume", "export", "web", &out, "-f", "raw"];
    on(&place, &pool, &export).ok();
    assert!(fs::read(&out).expect("content")[..4 * KIB] == [7; 4 * KIB]);
    let marks = server.keys("bucket", "pool/readers/");
    assert_eq!(marks, Vec::<String>::new());
}
