//! What a pool can do, by what the array keeps its volumes in, and how full it is.

use serde_json::json;
use volmux_core::{ByteRange, ExtentQuery, OpenOptions, Provisioning, ResizeOptions, Support};

use super::*;
use crate::array::EXTENT;

#[tokio::test(flavor = "multi_thread")]
async fn usage_and_policy_see_what_targetd_tells_wrongly() {
    let server = Server::new().await;
    let mut config = server.config();
    config.overcommit_limit = Some(2.0);
    let pool = TargetdPool::open(config, Arc::new(Closed))
        .await
        .expect("open");
    create(&pool, "a", 4).await;
    let usage = pool.usage().await.expect("usage");
    assert_eq!((usage.total.bytes(), usage.used.bytes()), (1 << 40, 0));
    assert_eq!(usage.provisioned.bytes(), EXTENT);
    let much = CreateOptions::thin(ByteSize::gib(2048));
    let refused = pool.create_volume(&n("b"), much).await;
    fails(refused, ErrorKind::NoSpace, "create_volume", &["b"]);
    // 96 percent, as targetd tells it.
    server.array().free = (1 << 40) - (1 << 40) / 100_000_000 * 97;
    let usage = pool.usage().await.expect("usage");
    assert!((95.0..97.0).contains(&usage.used_percent()), "{usage:?}");
    let full = pool.create_volume(&n("b"), thin(4)).await;
    fails(full, ErrorKind::NoSpace, "create_volume", &["b"]);
    let grow = ResizeOptions::grow(ByteSize::mib(8));
    fails(
        pool.resize_volume(&n("a"), grow).await,
        ErrorKind::NoSpace,
        "resize_volume",
        &["a"],
    );
    let cloned = pool
        .clone_volume(&n("a"), &n("b"), Default::default())
        .await;
    fails(cloned, ErrorKind::NoSpace, "clone_volume", &["b"]);
    assert_eq!(server.changes(), ["vol_create"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said_beforehand() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    create(&pool, "a", 4).await;
    let caps = pool.capabilities();
    assert_eq!((caps.thin, caps.thick), (Support::Native, Support::None));
    assert_eq!(
        (caps.clone, caps.attach),
        (Support::Native, Support::Native)
    );
    let none = [
        caps.snapshot,
        caps.revert,
        caps.shrink,
        caps.discard,
        caps.changed_extents,
    ];
    let none = [&none[..], &[caps.adopt, caps.shared_writers, caps.fencing]].concat();
    assert!(
        none.iter().all(|support| *support == Support::None),
        "{caps:?}"
    );
    assert_eq!(server.changes(), ["vol_create"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_cannot_be_done_say_so_and_change_nothing() {
    let server = Server::new().await;
    let pool = pool(&server).await;
    create(&pool, "a", 4).await;
    let (a, b) = (n("a"), n("b"));
    let no = ErrorKind::Unsupported;
    fails(
        pool.snapshot_volume(&a, &b, Default::default()).await,
        no,
        "snapshot_volume",
        &["b"],
    );
    fails(
        pool.revert_volume(&a, &b, Default::default()).await,
        no,
        "revert_volume",
        &["a"],
    );
    fails(
        pool.rename_volume(&a, &b).await,
        no,
        "rename_volume",
        &["a"],
    );
    fails(pool.adopt_volume("x", &b).await, no, "adopt_volume", &["b"]);
    fails(
        pool.scrub(Default::default()).await,
        no,
        "scrub",
        &["vg/pool"],
    );
    let changed = pool
        .extents(&a, ExtentQuery::changed_since(b.clone()))
        .await;
    fails(changed, no, "extents", &["a"]);
    let past = ExtentQuery::allocated().within(ByteRange::new(4 * MIB, 1));
    fails(
        pool.extents(&a, past).await,
        ErrorKind::InvalidInput,
        "extents",
        &["a"],
    );
    let take = OpenOptions {
        take_over: true,
        ..OpenOptions::read_write()
    };
    fails(pool.open_volume(&a, take).await, no, "open_volume", &["a"]);
    let shared = OpenOptions {
        sharing: Sharing::Shared,
        ..OpenOptions::read_write()
    };
    fails(
        pool.open_volume(&a, shared).await,
        no,
        "open_volume",
        &["a"],
    );
    pool.flatten_volume(&a, Default::default())
        .await
        .expect("nothing to do");
    let missing = pool.flatten_volume(&b, Default::default()).await;
    fails(missing, ErrorKind::NotFound, "flatten_volume", &["b"]);
    assert_eq!(server.changes(), ["vol_create"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_stores_can_do_less() {
    let (a, b) = (n("a"), n("b"));
    for (name, uuid, thick) in [
        ("vg", json!("lQb2ee-kUgp-d4uQ-FV7b-Jw2u-LdC9-e4mjej"), false),
        ("tank/volumes", json!(1234567), true),
    ] {
        let server = Server::new().await;
        {
            let mut array = server.array();
            (array.pool, array.pool_uuid) = (name.into(), uuid);
            array.add("a", 4 * MIB);
        }
        let mut config = server.config();
        config.pool = name.into();
        let pool = TargetdPool::open(config, Arc::new(Closed))
            .await
            .expect("open");
        let caps = pool.capabilities();
        let expected = if thick {
            Support::Native
        } else {
            Support::None
        };
        assert_eq!(
            (caps.thin, caps.thick, caps.clone),
            (Support::None, expected, Support::None)
        );
        let found = pool.volume(&a).await.expect("there");
        assert_eq!(found.provisioning, Provisioning::Thick);
        let no = ErrorKind::Unsupported;
        fails(
            pool.create_volume(&b, thin(4)).await,
            no,
            "create_volume",
            &["b"],
        );
        fails(
            pool.clone_volume(&a, &b, Default::default()).await,
            no,
            "clone_volume",
            &["b"],
        );
        fails(
            pool.copy_volume(&a, &b, Default::default()).await,
            no,
            "copy_volume",
            &["b"],
        );
        let options = CreateOptions::thick(ByteSize::mib(4));
        let made = pool.create_volume(&b, options).await;
        let grow = ResizeOptions::grow(ByteSize::mib(8));
        let grown = pool.resize_volume(&a, grow).await;
        if thick {
            made.expect("made");
            grown.expect("grown");
        } else {
            fails(made, no, "create_volume", &["b", "thin pool"]);
            fails(grown, no, "resize_volume", &["a"]);
        }
        pool.attach_volume(&a, attach(ONE, Access::ReadWrite))
            .await
            .expect("attached");
        pool.detach_volume(&a, &holder(ONE))
            .await
            .expect("detached");
        pool.delete_volume(&a).await.expect("deleted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_activation_there_are_no_clones() {
    let server = Server::new().await;
    let mut config = server.config();
    config.clones = false;
    let pool = TargetdPool::open(config, Arc::new(Closed))
        .await
        .expect("open");
    create(&pool, "a", 4).await;
    assert_eq!(pool.capabilities().clone, Support::None);
    let cloned = pool
        .clone_volume(&n("a"), &n("b"), Default::default())
        .await;
    let error = fails(cloned, ErrorKind::Unsupported, "clone_volume", &["b"]);
    assert!(
        error
            .get("help")
            .is_some_and(|help| help.contains("auto_set_activation_skip"))
    );
    assert_eq!(server.changes(), ["vol_create"]);
    // Who says that there are, and there are not, hears why.
    let pool = super::pool(&server).await;
    server.array().activates = false;
    pool.clone_volume(&n("a"), &n("b"), Default::default())
        .await
        .expect("cloned");
    let attached = pool
        .attach_volume(&n("b"), attach(ONE, Access::ReadWrite))
        .await;
    let error = fails(attached, ErrorKind::Unsupported, "attach_volume", &["b"]);
    assert!(
        error
            .get("help")
            .is_some_and(|help| help.contains("lvchange")),
        "{error}"
    );
    assert!(server.array().exports.is_empty());
}
