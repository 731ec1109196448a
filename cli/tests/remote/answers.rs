//! Programs that do not answer as volmux does.

use futures::StreamExt;
use serde_json::json;
use volmux::{Control, Error, ErrorKind, ExtentQuery, Pool, Result};

use volmux_iscsi::remote::RemotePool;

use crate::host::{Host, name};

/// What `here` makes of `body`'s answer to `volume info web`.
async fn info(host: &Host, here: &RemotePool, body: &str) -> Error {
    host.program(body);
    here.volume(&name("web")).await.expect_err(body)
}

fn volume(called: &str) -> String {
    let id = "5076921c-d867-447e-a122-5bb2e3cdd88b";
    let created = "2026-01-23T04:36:39.646417Z";
    json!({
        "schema": "volmux.volume.v1", "name": called, "id": id, "virtual_size": 512,
        "allocated": 0, "exclusive": null, "fragments": null, "depth": null,
        "provisioning": "thin", "origin": null, "created": created, "attachments": [],
    })
    .to_string()
}

#[tokio::test]
async fn what_is_not_an_answer_is_told_with_host_and_cause() {
    let host = Host::start();
    let here = host.pool_by("exit 0").await;
    let right = volume("web");
    let cut = &right[..right.len() - 9];
    for (body, said) in [
        ("echo hello".to_owned(), "this is no document"),
        (
            "echo 'Welcome to array 7!'; exec false".into(),
            "exit code 1",
        ),
        ("echo '{}'".into(), "no document"),
        (
            r#"echo '{"schema":"volmux.pool.v1"}'"#.into(),
            "not a volmux.volume.v1",
        ),
        (
            r#"echo '{"schema":"volmux.volume.v1"}'"#.into(),
            "missing field",
        ),
        (format!("echo '{}'", volume("other")), "volume other"),
        (format!("echo '{right}'; echo '{right}'"), "second document"),
        (format!("echo Welcome; echo '{right}'"), "second document"),
        (format!("echo '{right}'; exit 77"), "exit code 77"),
        (format!("printf %s '{cut}'"), "breaks off"),
        ("exit 0".into(), "says nothing"),
        ("head -c 3000 /dev/urandom; echo".into(), "not an answer"),
        (format!("echo '{}'", "[".repeat(50_000)), "no document"),
        ("exec cat /dev/zero".into(), "longer than"),
        ("echo oops >&2; exit 2".into(), "same version"),
        ("exec cat /dev/zero >&2".into(), "longer than"),
        (
            "exec yes complaining >&2".into(),
            "does not stop complaining",
        ),
    ] {
        let error = info(&host, &here, &body).await;
        assert_eq!(
            (error.kind(), error.op()),
            (ErrorKind::InvalidConfig, "volume"),
            "{error}"
        );
        assert!(error.to_string().contains(said), "{said:?} in {error}");
        assert_eq!(error.get("volume"), Some("web"), "{error}");
        let context = ["host", "reason", "help"].map(|key| error.get(key).is_some());
        assert_eq!(context, [true; 3], "{error}");
        assert!(error.to_string().len() < 32 << 10, "{error}");
    }
    host.program(&format!("echo '{right}'"));
    here.volume(&name("web")).await.expect("a right answer");
}

#[tokio::test]
async fn an_error_without_a_document_has_the_kind_of_the_exit_code() {
    let host = Host::start();
    let here = host.pool_by("exit 0").await;
    let error = info(&host, &here, "echo 'killed while cleaning up' >&2; exit 22").await;
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("killed while"), "{error}");
    let error = info(
        &host,
        &here,
        "echo \"thread 'main' panicked\" >&2; exit 101",
    )
    .await;
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("panicked"), "{error}");
    let error = info(&host, &here, "kill -9 $$").await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("was killed"), "{error}");
}

#[tokio::test]
async fn lists_are_checked_as_they_come() {
    let host = Host::start();
    let here = host.pool_by("exit 0").await;
    let (a, b) = (volume("a"), volume("b"));
    for (end, kind) in [
        ("exit 0", None),
        ("exit 1", Some(ErrorKind::InvalidConfig)),
        ("exit 21", Some(ErrorKind::Unavailable)),
        ("echo no", Some(ErrorKind::InvalidConfig)),
        ("kill -9 $$", Some(ErrorKind::Unavailable)),
        ("printf %s '{\"schema\"'; exit 23", Some(ErrorKind::Corrupt)),
    ] {
        host.program(&format!("echo '{a}'; echo '{b}'; {end}"));
        let found: Vec<Result<_>> = here.list_volumes().collect().await;
        let names = found.iter().flatten().map(|volume| volume.name.as_str());
        assert_eq!(names.collect::<Vec<_>>(), ["a", "b"], "{end}");
        let errors: Vec<_> = found
            .iter()
            .filter_map(|item| item.as_ref().err())
            .collect();
        assert_eq!(errors.first().map(|error| error.kind()), kind, "{end}");
        assert_eq!(found.len(), 2 + errors.len());
        assert!(errors.len() < 2, "{errors:?}");
    }
    // It does not end by itself, and takes no more memory than one line does.
    host.program(&format!("exec yes '{a}'"));
    let some = here.list_volumes().take(5000);
    let count = some
        .filter(|item| std::future::ready(item.is_ok()))
        .count()
        .await;
    assert_eq!(count, 5000);
}

#[tokio::test]
async fn extents_are_in_order_and_whole_or_an_error() {
    let host = Host::start();
    let here = host.pool_by("exit 0").await;
    let head = json!({
        "schema": "volmux.extents.v1", "volume": "web", "changed_since": null, "offset": 0,
        "length": 4096, "grade": "exact", "granularity": 512,
    });
    let head = format!("echo '{head}';");
    let extent = |offset: u64, length: u64| {
        format!(r#"echo '{{"schema":"volmux.extent.v1","offset":{offset},"length":{length}}}';"#)
    };
    let end = |count: u64, bytes: u64| {
        format!(r#"echo '{{"schema":"volmux.extents_end.v1","count":{count},"bytes":{bytes}}}';"#)
    };
    let right = format!(
        "{head}{}{}{}",
        extent(0, 512),
        extent(1024, 512),
        end(2, 1024)
    );
    let broken = [
        format!("{head}{}", extent(0, 512)),
        format!("{head}{}{}", extent(0, 512), end(2, 512)),
        format!("{head}{}{}", extent(0, 512), end(1, 1024)),
        format!(
            "{head}{}{}{}",
            extent(512, 512),
            extent(0, 512),
            end(2, 1024)
        ),
        format!(
            "{head}{}{}{}",
            extent(0, 1024),
            extent(512, 512),
            end(2, 1536)
        ),
        format!("{head}{}{}", extent(4096, 512), end(1, 512)),
        format!("{head}{}{}", extent(u64::MAX, 2), end(1, 2)),
        format!("{head}{}{}", extent(512, 0), end(1, 0)),
        format!("{head}{}{}", end(0, 0), extent(0, 512)),
        format!("{head}{} exit 1", end(0, 0)),
        format!("{head}{} kill -9 $$", end(0, 0)),
        format!("{head} echo hello"),
        format!(
            "{head} exec yes '{{\"schema\":\"volmux.extent.v1\",\"offset\":0,\"length\":512}}'"
        ),
    ];
    host.program(&right);
    let web = name("web");
    let whole = here
        .extents(&web, ExtentQuery::allocated())
        .await
        .expect("extents");
    assert_eq!(whole.collect_joined().await.expect("whole").len(), 2);
    for body in broken {
        host.program(&body);
        let list = here
            .extents(&web, ExtentQuery::allocated())
            .await
            .expect(&body);
        list.collect_joined().await.expect_err(&body);
    }
    for (was, is) in [
        ("\"volume\":\"web\"", "\"volume\":\"other\""),
        ("\"granularity\":512", "\"granularity\":0"),
        ("exact", "excellent"),
        ("\"changed_since\":null", "\"changed_since\":\"s\""),
        ("\"length\":4096", "\"length\":-1"),
    ] {
        host.program(&right.replace(was, is));
        let list = here.extents(&web, ExtentQuery::allocated()).await;
        assert_eq!(list.expect_err(is).kind(), ErrorKind::InvalidConfig);
    }
}

#[tokio::test]
async fn audits_that_contradict_themselves_are_not_believed() {
    let host = Host::start();
    let here = host.pool_by("exit 0").await;
    let audit = |clean: bool| {
        let audit = json!({
            "schema": "volmux.audit.v1", "pool": "p", "repair": false, "dry_run": false,
            "clean": clean, "volumes": 1, "findings": [],
        });
        format!("echo '{audit}';")
    };
    for (body, right) in [
        (audit(true), true),
        (format!("{} exit 1", audit(true)), false),
        (audit(false), false),
        (format!("{} exit 1", audit(false)), false),
    ] {
        host.program(&body);
        let report = here.scrub(Control::new()).await;
        assert_eq!(report.is_ok(), right, "{body}: {report:?}");
    }
}
