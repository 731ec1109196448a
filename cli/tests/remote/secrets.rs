//! What other users of either host can see of a call.

use std::path::Path;

use volmux::{ChapReference, Pool};

use crate::host::{Host, name};

#[tokio::test]
async fn no_secret_is_on_a_command_line_or_in_an_error() {
    let host = Host::start();
    let body = r#"cd "${0%/*}"
for word; do printf '%s\n' "$word"; done > words.new
env > environment
mv words.new words
cat >/dev/null"#;
    let mut config = host.config();
    config.program = host.program(body);
    let canary = ChapReference {
        user: "canary-user".into(),
        secret: "/canary/secret".into(),
    };
    config.chap = Some(canary.clone());
    config.mutual_chap = Some(canary);
    let here = crate::host::open(config).await.expect("open");
    let web = name("web");
    let lines = tokio::select! {
        found = here.volume(&web) => panic!("{found:?}"),
        lines = async {
            while !host.place.path("words").exists() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            host.connectors()
        } => lines,
    };
    assert_eq!(lines.len(), 2, "the connection and the call: {lines:?}");
    let key = std::fs::read_to_string(host.place.path("user")).expect("key");
    let key = key.lines().nth(1).expect("a line of the key");
    for line in &lines {
        let text = line.join(" ");
        assert!(!text.contains("canary") && !text.contains(key), "{text}");
        assert!(Path::new(&line[0]).is_absolute());
    }
    let pool = format!("--pool={}", host.place.url());
    let words = [
        "--json",
        "--stop-at-eof",
        "--any-name",
        &pool,
        "--time-limit=125",
        "volume",
        "info",
        "--",
        "web",
    ];
    let there = host.written("words");
    assert_eq!(there.lines().collect::<Vec<_>>(), words);
    let environment = host.written("environment");
    assert!(environment.contains("LC_ALL=C\n"), "{environment}");
    assert!(!environment.contains("canary") && !environment.contains(key));
    let shown = format!("{here:?} {here}");
    assert!(
        !shown.contains("canary") && shown.contains("ssh://"),
        "{shown}"
    );
}
