//! What becomes of calls that go wrong: typed, bounded, and repeated only where that is safe.

use serde_json::json;

use super::*;
use crate::server::{Fault, Phase};

async fn listed(pool: &TargetdPool) -> Result<usize> {
    pool.usage()
        .await
        .map(|usage| usage.provisioned.bytes() as usize)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_is_repeated() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    for fault in [
        Fault::CloseAfterRequest,
        Fault::DoAndClose,
        Fault::DoAndCut,
        Fault::WrongId,
        Fault::Status(503),
        Fault::Bytes(b"220 mail.example ESMTP\r\n".to_vec()),
        Fault::Body("{".into()),
    ] {
        let before = server.calls("vol_list").len();
        for _ in 0..2 {
            server.fault("vol_list", fault.clone());
        }
        listed(&pool)
            .await
            .unwrap_or_else(|e| panic!("{fault:?}: {e:?}"));
        assert_eq!(server.calls("vol_list").len(), before + 3, "{fault:?}");
    }
    for phase in [Phase::Connected, Phase::Encrypted] {
        server.refuse(phase, 2);
        listed(&pool).await.expect("the third is not closed");
        assert!(server.no_fault_left());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_answers_are_typed_and_name_service_and_method() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    let canary = "canary-in-the-answer";
    for (body, reason) in [
        (String::new(), "broke"),
        ("{".into(), "Eof"),
        ("no JSON".into(), "Syntax"),
        ("[]".into(), "Data"),
        ("{}".into(), "neither"),
        (
            r#"{"result": [], "error": {"code": 1}, "id": 1}"#.into(),
            "result and error",
        ),
        (r#"{"result": [], "id": 0}"#.into(), "another request"),
        (r#"{"result": [], "id": null}"#.into(), "another request"),
        (
            r#"{"error": {"code": -1, "message": "x"}, "id": 9999}"#.into(),
            "another request",
        ),
        (r#"{"result": 7, "id": 1}"#.into(), "Data"),
        (r#"{"result": [{"name": "a"}], "id": 1}"#.into(), "Data"),
        (
            format!(r#"{{"result": [{{"name": "a", "size": "{canary}"}}], "id": 1}}"#),
            "Data",
        ),
        (
            format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)),
            "Data",
        ),
        (
            format!(
                r#"{{"id": {}1{}}}"#,
                "[".repeat(100_000),
                "]".repeat(100_000)
            ),
            "Data",
        ),
    ] {
        for _ in 0..3 {
            server.fault("vol_list", Fault::Body(body.clone()));
        }
        let names = [reason, "localhost", "vol_list"];
        let shown = fails(listed(&pool).await, ErrorKind::Unavailable, "usage", &names);
        assert!(!format!("{shown:?}").contains(canary), "{shown:?}");
        assert!(server.no_fault_left(), "{body}");
    }
    // Where targetd could not read the number, its error is one all the same.
    let unread = json!({"error": {"code": -32700, "message": "parse error"}, "id": 0}).to_string();
    server.fault("vol_list", Fault::Body(unread));
    fails(
        listed(&pool).await,
        ErrorKind::Internal,
        "usage",
        &["parse error"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_are_not_read_to_their_end() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    server.fault("vol_list", Fault::Huge((16 << 20) + 1));
    let names = ["longer", "localhost", "vol_list"];
    fails(listed(&pool).await, ErrorKind::Unavailable, "usage", &names);
    let mut head = b"HTTP/1.0 200 OK\r\n".to_vec();
    head.extend(format!("X: {}\r\n", "x".repeat(1 << 20)).into_bytes());
    for _ in 0..3 {
        server.fault("vol_list", Fault::Bytes(head.clone()));
    }
    fails(
        listed(&pool).await,
        ErrorKind::Unavailable,
        "usage",
        &["vol_list"],
    );
    assert_eq!(server.calls("vol_list").len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_and_codes_are_typed() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    for (status, kind) in [
        (400, ErrorKind::Unauthenticated),
        (401, ErrorKind::Unauthenticated),
        (403, ErrorKind::PermissionDenied),
        (404, ErrorKind::InvalidConfig),
        (500, ErrorKind::Unavailable),
    ] {
        server.fault("vol_list", Fault::Status(status));
        fails(
            listed(&pool).await,
            kind,
            "usage",
            &[&status.to_string(), "vol_list"],
        );
    }
    for (code, kind) in [
        (-1, ErrorKind::Unavailable),
        (-110, ErrorKind::InvalidConfig),
        (-153, ErrorKind::Unsupported),
        (-32601, ErrorKind::Unsupported),
        (i64::MIN, ErrorKind::Unavailable),
    ] {
        server.fault("vol_list", Fault::Error(code, "what it says".into()));
        let names = [&code.to_string(), "what it says", "vol_list"];
        fails(listed(&pool).await, kind, "usage", &names);
    }
    // One line, and not a long one.
    server.fault("vol_list", Fault::Error(-1, "é\n\u{1b}[31m".repeat(10_000)));
    let error = fails(listed(&pool).await, ErrorKind::Unavailable, "usage", &[]);
    let shown = error.to_string();
    assert!(
        shown.len() < 10_000 && !shown.contains(['\n', '\u{1b}']),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_repeated_only_if_nothing_was_sent() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    for (i, fault) in [
        Fault::CloseAfterRequest,
        Fault::Status(503),
        Fault::Body("{".into()),
        Fault::Bytes(b"garbage\r\n\r\n".to_vec()),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("a{i}");
        server.fault("vol_create", fault.clone());
        let made = pool.create_volume(&n(&name), thin(4)).await;
        fails(
            made,
            ErrorKind::Unavailable,
            "create_volume",
            &[&name, "vol_create"],
        );
        assert_eq!(server.calls("vol_create").len(), i + 1, "{fault:?}");
        assert!(!server.array().volumes.contains_key(&name));
    }
    let before = server.calls("vol_create").len();
    server.fault("vol_list", Fault::Then(|_| ()));
    create(&pool, "b", 4).await;
    assert_eq!(server.calls("vol_create").len(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_though_the_answer_was_lost_is_found() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    for (i, fault) in [Fault::DoAndClose, Fault::DoAndCut, Fault::WrongId]
        .into_iter()
        .enumerate()
    {
        let name = format!("a{i}");
        server.fault("vol_create", fault.clone());
        assert_eq!(create(&pool, &name, 4).await.virtual_size.bytes(), 4 * MIB);
        server.fault("vol_resize", fault.clone());
        let options = volmux_core::ResizeOptions::grow(ByteSize::mib(8));
        let grown = pool.resize_volume(&n(&name), options).await.expect("grown");
        assert_eq!(grown.virtual_size.bytes(), 8 * MIB);
        server.fault("vol_copy", fault.clone());
        let clone = format!("c{i}");
        let cloned = pool
            .clone_volume(&n(&name), &n(&clone), Default::default())
            .await;
        cloned.expect("cloned");
        server.fault("vol_destroy", fault);
        pool.delete_volume(&n(&name)).await.expect("deleted");
        // It is heard of: the name can be used again at once.
        create(&pool, &name, 4).await;
        assert!(server.no_fault_left());
    }
    let expected = [
        "vol_create",
        "vol_resize",
        "vol_copy",
        "vol_destroy",
        "vol_create",
    ];
    assert_eq!(server.changes(), expected.repeat(3));
}
