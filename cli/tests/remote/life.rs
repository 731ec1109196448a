//! Everything that a pool does, on another host, held against what the pool says there.

use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use volmux::{
    Access, AttachOptions, AttachTarget, AuditOptions, ByteRange, ByteSize, CloneOptions, Control,
    CopyOptions, CreateOptions, ExtentQuery, FindingKind, FlattenOptions, Holder, OpenOptions,
    Pool, PoolExt, ResizeOptions, RevertOptions, Sharing, SnapshotOptions, Volume,
};

use crate::host::{Host, name, open};

const MIB: u64 = 1 << 20;

/// As it can be told in a document: times to the microsecond.
fn told(mut volume: Volume) -> Volume {
    let since = volume.created.duration_since(UNIX_EPOCH).expect("time");
    let micros = u64::try_from(since.as_micros()).expect("time");
    volume.created = UNIX_EPOCH + Duration::from_micros(micros);
    volume
}

async fn write(pool: &Arc<dyn Pool>, volume: &str, offset: u64, text: &[u8]) {
    let options = OpenOptions::read_write();
    let device = pool
        .open_volume(&name(volume), options)
        .await
        .expect("open");
    let data = Bytes::copy_from_slice(&text.repeat(4096 / text.len()));
    device.write_at(offset, data).await.expect("write");
    device.flush().await.expect("flush");
}

async fn begin(pool: &Arc<dyn Pool>, volume: &str) -> Bytes {
    let options = OpenOptions::read_only();
    let device = pool
        .open_volume(&name(volume), options)
        .await
        .expect("open");
    device.read_at(0, 4).await.expect("read")
}

/// What is known of a volume here and there is the same.
async fn same(here: &impl Pool, there: &Arc<dyn Pool>, volume: &str) -> Volume {
    let found = here.volume(&name(volume)).await.expect("volume here");
    let wanted = there.volume(&name(volume)).await.expect("volume there");
    assert_eq!(found, told(wanted));
    found
}

#[tokio::test]
async fn a_volume_lives_on_another_host() {
    let host = Host::start();
    let (here, there) = (host.pool().await, host.there().await);
    assert_eq!(here.capabilities(), there.capabilities());
    assert_eq!(here.policy(), there.policy());
    let shown = here.to_string();
    assert!(
        shown.contains(&there.to_string()) && shown.contains(" over ssh://"),
        "{shown}"
    );

    let (web, day) = (name("web"), name("day-1"));
    let options = CreateOptions::thin(ByteSize::mib(8));
    let made = here.create_volume(&web, options).await.expect("create");
    assert_eq!(made.virtual_size, ByteSize::mib(8));
    let again = here.create_volume(&web, options).await.expect("again");
    assert_eq!(again.id, made.id);
    write(&there, "web", MIB, b"one!").await;
    write(&there, "web", 0, b"one!").await;
    same(&here, &there, "web").await;

    let snapshot = here
        .snapshot_volume(&web, &day, SnapshotOptions::default())
        .await;
    assert!(snapshot.expect("snapshot").is_snapshot());
    let snapshot = same(&here, &there, "day-1").await;
    assert_eq!(snapshot.origin.expect("origin").parent_id, made.id);
    write(&there, "web", 0, b"two!").await;

    let clone = here
        .clone_volume(&day, &name("clone"), CloneOptions::default())
        .await;
    clone.expect("clone");
    assert_eq!(begin(&there, "clone").await, "one!");
    let copy = here
        .copy_volume(&web, &name("copy"), CopyOptions::default())
        .await;
    copy.expect("copy");
    assert_eq!(begin(&there, "copy").await, "two!");
    here.flatten_volume(&name("clone"), FlattenOptions::default())
        .await
        .expect("flatten");
    for volume in ["web", "day-1", "clone", "copy"] {
        same(&here, &there, volume).await;
    }

    let reverted = here
        .revert_volume(&web, &day, RevertOptions::default())
        .await;
    assert_eq!(reverted.expect("revert").id, made.id);
    assert_eq!(begin(&there, "web").await, "one!");

    let grown = ResizeOptions::grow(ByteSize::mib(16));
    let grown = here.resize_volume(&web, grown).await.expect("grow");
    assert_eq!(grown.virtual_size, ByteSize::mib(16));
    let less = ResizeOptions {
        size: ByteSize::mib(4),
        allow_shrink: true,
    };
    let less = here.resize_volume(&web, less).await.expect("shrink");
    assert_eq!(less.virtual_size, ByteSize::mib(4));
    let renamed = here
        .rename_volume(&web, &name("shop"))
        .await
        .expect("rename");
    assert_eq!((renamed.id, renamed.name.as_str()), (made.id, "shop"));
    let thick = CreateOptions::thick(ByteSize::mib(1));
    here.create_volume(&name("thick"), thick)
        .await
        .expect("thick");
    same(&here, &there, "thick").await;

    let (found, wanted) = (here.volumes().await, there.volumes().await);
    let wanted: Vec<Volume> = wanted.expect("there").into_iter().map(told).collect();
    assert_eq!(found.expect("here"), wanted);
    assert_eq!(wanted.len(), 5);
    for volume in ["day-1", "clone", "copy", "shop", "thick", "thick"] {
        here.delete_volume(&name(volume)).await.expect("delete");
    }
    assert_eq!(there.volumes().await.expect("there"), []);
}

#[tokio::test]
async fn names_of_imports_and_strange_ones_work() {
    let host = Host::start();
    let here = host.pool().await;
    let longest = "x".repeat(127);
    let options = CreateOptions::thin(ByteSize::mib(1));
    for volume in ["web.importing", "_", "a+b.c-d", "0", longest.as_str()] {
        let made = here.create_volume(&name(volume), options).await;
        assert_eq!(made.expect(volume).name.as_str(), volume);
    }
    let web = here
        .rename_volume(&name("web.importing"), &name("web"))
        .await;
    web.expect("rename");
    assert_eq!(here.volumes().await.expect("volumes").len(), 5);
}

#[tokio::test]
async fn extents_are_those_of_the_pool_there() {
    let host = Host::start();
    let (here, there) = (host.pool().await, host.there().await);
    let (web, day) = (name("web"), name("day"));
    let options = CreateOptions::thin(ByteSize::mib(64));
    here.create_volume(&web, options).await.expect("create");
    for at in 0..50 {
        write(&there, "web", at * MIB, b"one!").await;
    }
    let snapshot = here
        .snapshot_volume(&web, &day, SnapshotOptions::default())
        .await;
    snapshot.expect("snapshot");
    write(&there, "web", 5 * MIB, b"two!").await;
    write(&there, "web", 63 * MIB, b"two!").await;
    let queries = [
        ExtentQuery::allocated(),
        ExtentQuery::changed_since(day.clone()),
        ExtentQuery::allocated().within(ByteRange::new(MIB, 10 * MIB)),
        ExtentQuery::changed_since(day).within(ByteRange::new(0, 6 * MIB)),
        ExtentQuery::allocated().within(ByteRange::new(64 * MIB, 0)),
    ];
    for query in queries {
        let found = here.extents(&web, query.clone()).await.expect("here");
        let wanted = there.extents(&web, query.clone()).await.expect("there");
        assert_eq!(found.grade(), wanted.grade(), "{query:?}");
        assert_eq!(found.granularity(), wanted.granularity(), "{query:?}");
        let (found, wanted) = (found.collect_joined().await, wanted.collect_joined().await);
        assert_eq!(found.expect("here"), wanted.expect("there"), "{query:?}");
    }
    // A list that nobody reads to its end is let go.
    let mut some = here
        .extents(&web, ExtentQuery::allocated())
        .await
        .expect("here");
    some.next().await.expect("one").expect("extent");
    drop(some);
    here.usage().await.expect("usage");
}

#[tokio::test]
async fn attachments_are_made_seen_and_ended() {
    let host = Host::start();
    let (here, there) = (host.pool().await, host.there().await);
    let web = name("web");
    let options = CreateOptions::thin(ByteSize::mib(1));
    let made = here.create_volume(&web, options).await.expect("create");
    let options = AttachOptions {
        holder: Holder::new("-vm'1;`id`").expect("holder"),
        access: Access::ReadWrite,
        sharing: Sharing::Shared,
    };
    let attached = here
        .attach_volume(&web, options.clone())
        .await
        .expect("attach");
    assert_eq!(
        attached,
        there
            .attach_volume(&web, options.clone())
            .await
            .expect("there")
    );
    assert_eq!((attached.id, &attached.holder), (made.id, &options.holder));
    let file = matches!(&attached.target,
        AttachTarget::File { path } | AttachTarget::Qcow2 { path } if path.exists());
    assert!(file, "{attached:?}");
    let reader = AttachOptions {
        holder: Holder::new("reader").expect("holder"),
        access: Access::ReadOnly,
        sharing: Sharing::Exclusive,
    };
    let read = here
        .attach_volume(&web, reader.clone())
        .await
        .expect("attach");
    assert_eq!(read.access, Access::ReadOnly);
    let seen = same(&here, &there, "web").await.attachments;
    assert_eq!(seen.len(), 2);
    assert!(
        seen.contains(&options) && seen.contains(&reader),
        "{seen:?}"
    );
    for _ in 0..2 {
        for holder in [&options.holder, &reader.holder] {
            here.detach_volume(&web, holder).await.expect("detach");
        }
    }
    assert_eq!(there.volume(&web).await.expect("there").attachments, []);
    here.delete_volume(&web).await.expect("delete");
    here.detach_volume(&web, &options.holder)
        .await
        .expect("it is gone");
}

#[tokio::test]
async fn the_pool_is_looked_after() {
    let host = Host::start();
    let (here, there) = (host.pool().await, host.there().await);
    let web = name("web");
    here.create_volume(&web, CreateOptions::thin(ByteSize::mib(1)))
        .await
        .expect("create");
    let (found, wanted) = (here.usage().await, there.usage().await);
    let (found, wanted) = (found.expect("here"), wanted.expect("there"));
    // Others use this file system too, so what is used may differ.
    assert_eq!(
        (found.total, found.provisioned),
        (wanted.total, wanted.provisioned)
    );
    assert_eq!(
        found.metadata.map(|m| m.total),
        wanted.metadata.map(|m| m.total)
    );
    std::fs::write(host.place.path("pool/stranger"), b"x").expect("file");
    let look = AuditOptions::default();
    let report = here.audit(look).await.expect("audit");
    assert_eq!(report, there.audit(look).await.expect("there"));
    assert_eq!((report.volumes, report.is_clean()), (1, true));
    assert_eq!(report.findings[0].kind, FindingKind::Foreign);

    std::fs::write(host.place.path("pool/volumes/bad.json"), b"{").expect("file");
    for repair in [false, true] {
        let report = here.audit(AuditOptions { repair }).await.expect("audit");
        assert!(!report.is_clean(), "{report:?}");
        let damaged = |f: &volmux::Finding| f.kind == FindingKind::Damaged;
        assert!(report.findings.iter().any(damaged), "{report:?}");
    }
    let (found, wanted) = (
        here.scrub(Control::new()).await,
        there.scrub(Control::new()).await,
    );
    match (found, wanted) {
        (Ok(found), Ok(wanted)) => assert_eq!(found, wanted),
        (Err(found), Err(wanted)) => assert_eq!(found.kind(), wanted.kind()),
        (found, wanted) => panic!("{found:?}, {wanted:?}"),
    }
    let _ = std::fs::remove_file(host.place.path("pool/volumes/bad.json"));
    let collected = here.collect_garbage().await.expect("gc");
    assert_eq!(collected, there.collect_garbage().await.expect("there"));
}

#[tokio::test]
async fn what_is_there_is_adopted() {
    let host = Host::start();
    let here = host.pool().await;
    let options = CreateOptions::thin(ByteSize::mib(1));
    here.create_volume(&name("first"), options)
        .await
        .expect("create");
    let odd = "it's a \"disk\"; $(touch oops).raw";
    let file = std::fs::File::create(host.place.path("pool").join(odd)).expect("file");
    file.set_len(MIB).expect("size");
    let adopted = here.adopt_volume(odd, &name("old")).await.expect("adopt");
    assert_eq!(adopted.virtual_size, ByteSize::mib(1));
    assert_eq!(here.volumes().await.expect("volumes").len(), 2);
}

#[tokio::test]
async fn work_tells_of_its_progress() {
    let host = Host::start();
    let (here, there) = (host.pool().await, host.there().await);
    let (web, copy) = (name("web"), name("copy"));
    here.create_volume(&web, CreateOptions::thin(ByteSize::mib(4)))
        .await
        .expect("create");
    write(&there, "web", 0, b"one!").await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let control = Control::new().with_progress(move |p| told.lock().expect("lock").push(p));
    let made = here.copy_volume(&web, &copy, CopyOptions { control }).await;
    made.expect("copy");
    let seen = seen.lock().expect("lock");
    let last = seen.last().expect("progress");
    assert!(last.total > 0 && last.done == last.total, "{seen:?}");
}

#[tokio::test]
async fn many_calls_and_lists_at_a_time_share_a_connection() {
    let host = Host::start();
    let here = host.pool().await;
    let options = CreateOptions::thin(ByteSize::mib(1));
    let names: Vec<_> = (0..12).map(|n| name(&format!("v{n}"))).collect();
    let before = here.started();
    let made = join_all(names.iter().map(|name| here.create_volume(name, options))).await;
    made.into_iter()
        .for_each(|volume| drop(volume.expect("create")));
    assert_eq!(
        here.started() - before,
        12,
        "a process a call, and no connection"
    );
    // More sessions than sshd allows in one connection.
    let mut lists: Vec<_> = (0..12).map(|_| here.list_volumes()).collect();
    let first = join_all(lists.iter_mut().map(|list| list.next())).await;
    first
        .into_iter()
        .for_each(|item| drop(item.expect("one").expect("volume")));
    let rest = join_all(lists.into_iter().map(|list| list.count())).await;
    assert_eq!(rest, [11; 12]);
}

#[tokio::test]
async fn pools_beside_each_other_are_different_ones() {
    let (host, other) = (Host::start(), Host::start());
    let (a, b, c) = (host.pool().await, other.pool().await, host.pool().await);
    let (web, options) = (name("web"), CreateOptions::thin(ByteSize::mib(1)));
    let (made, same) = tokio::join!(
        a.create_volume(&web, options),
        c.create_volume(&web, options)
    );
    let other = b.create_volume(&web, options).await.expect("create");
    let made = made.expect("create");
    assert_eq!(made.id, same.expect("create").id);
    assert_ne!(made.id, other.id);
    a.delete_volume(&web).await.expect("delete");
    drop(a);
    assert_eq!(
        c.volumes().await.expect("volumes"),
        [],
        "it has a connection of its own"
    );
    assert_eq!(b.volumes().await.expect("volumes").len(), 1);
    let mut config = host.config();
    config.pool = format!("{}?read_only=true", config.pool);
    let reader = open(config).await.expect("open");
    let refused = reader
        .create_volume(&web, options)
        .await
        .expect_err("read-only");
    assert_eq!(refused.kind(), volmux::ErrorKind::PermissionDenied);
}
