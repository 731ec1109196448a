//! The life of a volume on whatever file system the temporary directory is on.
use bytes::Bytes;
use volmux_core::*;
use volmux_nfs::{DirConfig, DirPool};

fn n(s: &str) -> VolumeName {
    VolumeName::new(s).expect("name")
}

#[tokio::test]
async fn life() {
    let base = std::env::var_os("SMOKE_DIR").map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(base).expect("dir");
    let pool = DirPool::open(DirConfig::new(dir.path()))
        .await
        .expect("open");
    println!("{pool:?} {:?}", pool.capabilities());
    let (a, s, c) = (n("a"), n("s"), n("c"));
    let v = pool
        .create_volume(&a, CreateOptions::thin(ByteSize::mib(64)))
        .await
        .expect("create");
    println!("{v:?}");
    let d = pool
        .open_volume(&a, OpenOptions::read_write())
        .await
        .expect("open");
    d.write_at(4096, Bytes::from(vec![7; 10_000]))
        .await
        .expect("write");
    d.flush().await.expect("flush");
    println!(
        "{:?}",
        pool.open_volume(&a, OpenOptions::read_write())
            .await
            .expect_err("busy")
    );
    pool.snapshot_volume(&a, &s, SnapshotOptions::default())
        .await
        .expect("snap");
    d.write_at(1 << 20, Bytes::from(vec![8; 4096]))
        .await
        .expect("write");
    d.discard(ByteRange::new(4096, 4096))
        .await
        .expect("discard");
    let changed = pool
        .extents(&a, ExtentQuery::changed_since(s.clone()))
        .await
        .expect("x");
    let changed = changed.collect_joined().await.expect("x");
    assert_eq!(
        changed,
        vec![ByteRange::new(4096, 4096), ByteRange::new(1 << 20, 4096)]
    );
    println!(
        "{:?}",
        pool.revert_volume(&a, &s, RevertOptions::default())
            .await
            .expect_err("busy")
    );
    pool.resize_volume(&a, ResizeOptions::grow(ByteSize::mib(65)))
        .await
        .expect("grow");
    assert_eq!(d.size(), 65 << 20);
    drop(d);
    pool.clone_volume(&s, &c, CloneOptions::default())
        .await
        .expect("clone");
    let v = pool
        .revert_volume(&a, &s, RevertOptions::default())
        .await
        .expect("revert");
    assert_eq!(v.virtual_size, ByteSize::mib(64));
    let d = pool
        .open_volume(&a, OpenOptions::read_only())
        .await
        .expect("open");
    assert_eq!(
        d.read_at(4096, 10_000).await.expect("read"),
        vec![7; 10_000]
    );
    drop(d);
    println!("{:?}", pool.volume(&s).await.expect("s"));
    pool.delete_volume(&s).await.expect("delete");
    pool.rename_volume(&c, &n("d")).await.expect("rename");
    println!("{:?}", pool.volumes().await.expect("list"));
    let r = pool
        .audit(AuditOptions { repair: true })
        .await
        .expect("audit");
    assert!(r.findings.is_empty(), "{r:?}");
    println!("{:?}", pool.usage().await);
}
