//! What a running `volmux export` tells: text, JSON, Prometheus.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use common::serving::{Serving, tool};
use common::{Place, wait_until};

/// Serves one volume, which a client wrote and read.
fn used(place: &Place) -> (Serving, String) {
    place.run(&["volume", "create", "web", "8MiB"]).ok();
    let args = [
        "web",
        "--socket",
        "s",
        "--statistics",
        "tcp:127.0.0.1:0",
        "--json",
    ];
    let serving = Serving::start(place, &args);
    let document: serde_json::Value = serde_json::from_str(&serving.line()).expect("JSON");
    let uri = document["exports"][0]["uris"][0].as_str().expect("URI");
    let statistics = document["statistics"].as_str().expect("address").to_owned();
    let commands = ["-c", "write 0 128k", "-c", "read 0 64k", "-c", "flush"];
    tool("qemu-io", &[&["-f", "raw"], &commands[..], &[uri]].concat()).ok();
    // The client went away with its answers; its connection may be there a little longer.
    wait_until("gone", || {
        let status = place.json(&["export", "--status", &statistics]).json();
        status["connections"] == 0
    });
    (serving, statistics)
}

#[test]
fn the_status_is_told_as_json_and_as_text() {
    let place = Place::new();
    let (serving, at) = used(&place);
    let status = place.json(&["export", "--status", &at]).json();
    assert_eq!(status["schema"], "volmux.gateway.v1");
    assert_eq!(status["addresses"][0], format!("unix:{}", place.text("s")));
    assert_eq!(status["tls"], false);
    assert!(status["connections_total"].as_u64().expect("count") >= 1);
    assert_eq!(status["in_flight_bytes"], 0);
    assert_eq!(status["limits"]["connections"], 256);
    assert_eq!(status["limits"]["handshake_seconds"], 10.0);
    let export = &status["exports"][0];
    assert_eq!(export["name"], "web");
    assert_eq!(export["access"], "read-write");
    assert_eq!(export["sharing"], "exclusive");
    assert_eq!(export["size"], 8 << 20);
    assert_eq!(export["open"], true);
    assert_eq!(export["requests"]["write"]["bytes"], 128 << 10);
    assert_eq!(export["requests"]["read"]["bytes"], 64 << 10);
    assert!(
        export["requests"]["flush"]["requests"]
            .as_u64()
            .expect("count")
            >= 1
    );
    assert_eq!(export["requests"]["write"]["errors"], 0);
    let text = place.run(&["export", "--status", &at]);
    let web = text.ok().lines().find(|line| line.starts_with("web "));
    let web: Vec<&str> = web.expect("web").split_ascii_whitespace().collect();
    assert_eq!(web[..5], ["web", "read-write", "8", "MiB", "0"]);
    assert!(
        text.stdout.contains("128 KiB") && text.stdout.contains("64 KiB"),
        "{text:?}"
    );
    serving.stop();
    place
        .json(&["export", "--status", &at])
        .error(21, "Unavailable");
}

/// Every key in a document, and in those inside of it.
fn keys(document: &serde_json::Value, into: &mut Vec<String>) {
    match document {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                into.push(key.clone());
                keys(value, into);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| keys(item, into)),
        _ => {}
    }
}

#[test]
fn every_field_of_the_status_is_documented() {
    let place = Place::new();
    let (serving, at) = used(&place);
    let mut found = Vec::new();
    let status = place.json(&["export", "--status", &at]).json();
    keys(&status, &mut found);
    assert!(found.len() > 40, "{found:?}");
    let docs = include_str!("../../docs/json.md");
    for key in found {
        assert!(docs.contains(&format!("`{key}`")), "{key}");
    }
    serving.stop();
}

/// One metric family as a scraper takes it: its type, and samples by name and labels.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    helped: bool,
    samples: BTreeMap<String, f64>,
}

/// Parses OpenMetrics text as strictly as Prometheus does, as far as this text goes.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let (body, end) = text.split_at(text.len() - "# EOF\n".len());
    assert_eq!(end, "# EOF\n");
    for line in body.lines() {
        let mut words = line.splitn(4, ' ');
        let (first, second) = (words.next(), words.next());
        if first != Some("#") {
            let (sample, value) = line.rsplit_once(' ').expect("a value");
            let name = sample.split('{').next().expect("name");
            let family = families.get_mut(&current).expect("TYPE comes first");
            let wanted = match family.kind.as_str() {
                "counter" => format!("{current}_total"),
                _ => current.clone(),
            };
            assert_eq!(name, wanted, "{line}");
            let value: f64 = value.parse().expect("number");
            let before = family.samples.insert(sample.to_owned(), value);
            assert_eq!(before, None, "twice: {line}");
            continue;
        }
        let name = words.next().expect("name");
        let rest = words.next().expect("text");
        let legal = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(name.chars().all(legal), "{line}");
        match second.expect("keyword") {
            "HELP" => {
                assert!(!families.contains_key(name), "twice: {line}");
                current = name.to_owned();
                families.entry(current.clone()).or_default().helped = true;
            }
            "TYPE" => {
                assert_eq!(name, current);
                families.get_mut(name).expect("HELP").kind = rest.to_owned();
            }
            "UNIT" => assert!(
                name == current && name.ends_with(&format!("_{rest}")),
                "{line}"
            ),
            other => panic!("{other}: {line}"),
        }
    }
    families
}

#[test]
fn prometheus_can_scrape_it() {
    let place = Place::new();
    let (serving, at) = used(&place);
    let mut stream = TcpStream::connect(&at["tcp:".len()..]).expect("connect");
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    let families = parse(body);
    assert!(families.values().all(|f| f.helped), "{families:?}");
    let sample = |family: &str, labels: &str| {
        let family = &families[family];
        let found = family
            .samples
            .iter()
            .find(|(name, _)| name.ends_with(labels));
        *found.unwrap_or_else(|| panic!("{labels}: {family:?}")).1
    };
    let write = "{export=\"web\",op=\"write\"}";
    assert_eq!(
        sample("volmux_nbd_request_bytes", write),
        f64::from(128 << 10)
    );
    assert!(sample("volmux_nbd_requests", write) >= 1.0);
    assert!(sample("volmux_nbd_request_duration_seconds", write) > 0.0);
    assert_eq!(sample("volmux_nbd_request_errors", write), 0.0);
    assert_eq!(sample("volmux_nbd_export_open", "{export=\"web\"}"), 1.0);
    assert_eq!(sample("volmux_nbd_connections", ""), 0.0);
    assert!(sample("volmux_nbd_start_time_seconds", "") > 1_700_000_000.0);
    let docs = include_str!("../../docs/gateway.md");
    for name in families.keys() {
        assert!(docs.contains(name.as_str()), "docs/gateway.md: {name}");
    }
    serving.stop();
}
