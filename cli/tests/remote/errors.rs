//! Errors of the pool there come through as they are.

use futures::StreamExt;
use serde_json::json;
use volmux::{
    ByteRange, ByteSize, CopyOptions, CreateOptions, Error, ErrorKind, ExtentQuery, Holder,
    OpenOptions, Pool, ResizeOptions, RevertOptions, SnapshotOptions,
};

use crate::host::{Host, PROGRAM, name, open};

/// The same failure, with the host besides.
#[track_caller]
fn same(host: &Host, found: &Error, wanted: &Error) {
    assert_eq!(
        (found.kind(), found.op()),
        (wanted.kind(), wanted.op()),
        "{found}"
    );
    for (key, value) in wanted.context() {
        // Which of several texts under a key it is differs, and a hint may be the program's.
        let seen = found.get(key).is_some_and(|seen| seen.contains(value));
        assert!(seen || key == "help", "{key} of {wanted} in {found}");
    }
    let place = found.get("host").expect("host");
    assert!(
        place.ends_with(&format!("@127.0.0.1:{}", host.port)),
        "{found}"
    );
}

#[tokio::test]
async fn failures_are_the_same_here_and_there() {
    let host = Host::start();
    let (here, there) = (host.pool().await, host.there().await);
    let (web, no, s) = (name("web"), name("no"), name("s"));
    let thin = |mib| CreateOptions::thin(ByteSize::mib(mib));
    there.create_volume(&web, thin(4)).await.expect("create");
    let snapshot = SnapshotOptions::default;
    there
        .snapshot_volume(&web, &s, snapshot())
        .await
        .expect("snapshot");
    macro_rules! compare {
        ($kind:ident, $($call:tt)*) => {
            let found = here.$($call)*.await.expect_err("here");
            let wanted = there.$($call)*.await.expect_err("there");
            assert_eq!(wanted.kind(), ErrorKind::$kind, "{wanted}");
            same(&host, &found, &wanted);
        };
    }
    compare!(NotFound, volume(&no));
    compare!(NotFound, snapshot_volume(&no, &name("x"), snapshot()));
    compare!(NotFound, rename_volume(&no, &name("x")));
    compare!(NotFound, adopt_volume("no", &name("x")));
    compare!(AlreadyExists, create_volume(&web, thin(8)));
    compare!(AlreadyExists, copy_volume(&web, &s, CopyOptions::default()));
    compare!(AlreadyExists, rename_volume(&web, &s));
    compare!(InvalidInput, create_volume(&no, thin(0)));
    compare!(
        InvalidInput,
        create_volume(&no, CreateOptions::thin(ByteSize::new(u64::MAX)))
    );
    compare!(
        InvalidInput,
        resize_volume(&web, ResizeOptions::grow(ByteSize::mib(1)))
    );
    compare!(
        InvalidInput,
        resize_volume(&s, ResizeOptions::grow(ByteSize::mib(9)))
    );
    compare!(
        InvalidInput,
        revert_volume(&web, &web, RevertOptions::default())
    );
    let past = ExtentQuery::allocated().within(ByteRange::new(4 << 20, 1));
    compare!(InvalidInput, extents(&web, past.clone()));
    compare!(
        NoSpace,
        create_volume(&no, CreateOptions::thick(ByteSize::gib(1 << 20)))
    );
    let error = here.extents(&no, ExtentQuery::allocated()).await;
    let error = error.expect_err("missing");
    assert_eq!(
        (error.kind(), error.get("volume")),
        (ErrorKind::NotFound, Some("no"))
    );
    let device = there.open_volume(&web, OpenOptions::read_write()).await;
    let device = device.expect("open");
    compare!(Busy, delete_volume(&web));
    compare!(Busy, revert_volume(&web, &s, RevertOptions::default()));
    drop(device);

    std::fs::write(host.place.path("pool/volumes/bad.json"), b"{").expect("file");
    compare!(Corrupt, volume(&name("bad")));
    let found: Vec<_> = here.list_volumes().collect().await;
    let (good, bad): (Vec<_>, Vec<_>) = found.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (2, 1), "the others are listed");
    let bad = bad.into_iter().next().expect("one").expect_err("an error");
    assert_eq!((bad.kind(), bad.op()), (ErrorKind::Corrupt, "list_volumes"));
}

#[tokio::test]
async fn what_a_pool_there_can_not_do_is_said_so() {
    let host = Host::start();
    let mut config = host.config();
    config.pool.push_str("?read_only=true");
    let here = open(config).await.expect("open");
    let registry = volmux::registry();
    let url = format!("{}?read_only=true", host.place.url());
    let there = registry.open(&url).await.expect("there");
    let thin = CreateOptions::thin(ByteSize::mib(1));
    let found = here
        .create_volume(&name("x"), thin)
        .await
        .expect_err("here");
    let wanted = there
        .create_volume(&name("x"), thin)
        .await
        .expect_err("there");
    assert_eq!(wanted.kind(), ErrorKind::PermissionDenied);
    same(&host, &found, &wanted);
    // A pool in memory has no volumes that a host could be given, and forgets all after each call.
    let mut config = host.config();
    config.pool = "memory:".into();
    let here = open(config).await.expect("open");
    let holder = Holder::new("x").expect("holder");
    let unsupported = here.detach_volume(&name("x"), &holder).await;
    let wanted = registry.open("memory:").await.expect("memory");
    let wanted = wanted.detach_volume(&name("x"), &holder).await;
    assert_eq!(
        unsupported.as_ref().map_err(Error::kind),
        wanted.as_ref().map_err(Error::kind)
    );
}

#[tokio::test]
async fn pools_that_can_not_be_opened_there_say_why() {
    let host = Host::start();
    for (pool, kind) in [
        ("dir:///no/such/directory", ErrorKind::NotFound),
        ("dir:relative", ErrorKind::InvalidConfig),
        ("paper:///x", ErrorKind::InvalidConfig),
        ("no-such-name", ErrorKind::NotFound),
    ] {
        let mut config = host.config();
        config.pool = pool.into();
        let error = open(config).await.expect_err(pool);
        assert_eq!((error.kind(), error.op()), (kind, "open_pool"), "{error}");
        assert!(
            error.get("host").is_some() && error.get("reason").is_some(),
            "{error}"
        );
    }
}

#[tokio::test]
async fn every_kind_comes_through_with_all_that_it_says() {
    let host = Host::start();
    let here = host.pool_by("exit 0").await;
    for kind in ErrorKind::ALL {
        let code = 10 + kind.code();
        let document = json!({
            "schema": "volmux.error.v1", "kind": kind.name(), "op": "copy_volume",
            "context": {"volume": "other", "thin_pool": "tp", "colour": "red", "reason": "why"},
            "cause": ["near", "deep"], "retryable": false,
        });
        let body = format!("cat >&2 <<'E'\n{document}\nE\nexit {code}");
        host.program(&body);
        let error = here.volume(&name("web")).await.expect_err("error");
        assert_eq!((error.kind(), error.op()), (kind, "copy_volume"));
        let mut context: Vec<_> = error.context().map(|(key, _)| key).collect();
        context.sort_unstable();
        let keys = ["host", "pool", "reason", "remote", "thin_pool", "volume"];
        assert_eq!(context, keys);
        assert_eq!(error.get("volume"), Some("other"));
        assert_eq!(error.get("remote"), Some("colour=red"));
        let cause = std::error::Error::source(&error).expect("cause");
        assert_eq!(cause.to_string(), "near");
        assert_eq!(cause.source().expect("deeper").to_string(), "deep");
        // The exit code of another kind is not what volmux does.
        let other = 11 + kind.code() % 14;
        let body = format!("cat >&2 <<'E'\n{document}\nE\nexit {other}");
        host.program(&body);
        let error = here.volume(&name("web")).await.expect_err("error");
        assert_eq!(
            (error.kind(), error.op()),
            (ErrorKind::InvalidConfig, "volume")
        );
    }
}

#[tokio::test]
async fn what_no_command_line_can_hold_is_refused_before_anything_runs() {
    let host = Host::start();
    let here = host.pool().await;
    let before = here.started();
    for what in ["a\0b", &"x".repeat(5000)] {
        let error = here.adopt_volume(what, &name("x")).await.expect_err("what");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let cancelled = CopyOptions::default();
    cancelled.control.cancel();
    let error = here.copy_volume(&name("a"), &name("b"), cancelled).await;
    assert_eq!(error.expect_err("cancelled").kind(), ErrorKind::TimedOut);
    assert_eq!(here.started(), before);
    for bad in ["-oProxyCommand=touch oops", "127.0.0.1; touch oops"] {
        let mut config = host.config();
        config.host = bad.into();
        let error = open(config).await.expect_err(bad);
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    }
    let mut config = host.config();
    config.program = format!("{PROGRAM};true");
    let error = open(config).await.expect_err("program");
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
}
