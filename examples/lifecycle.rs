//! The life of a volume: create, write, snapshot, clone, diff, revert, copy, resize, delete.
//!
//! ```sh
//! cargo run --example lifecycle                      # a directory pool that is gone afterwards
//! cargo run --example lifecycle dir:///srv/volumes   # any other pool
//! ```

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use volmux::{
    AuditOptions, ByteRange, ByteSize, CloneOptions, CopyOptions, CreateOptions, ErrorKind,
    ExtentQuery, OpenOptions, Pool, PoolExt, ResizeOptions, RevertOptions, SnapshotOptions,
    VolumeName,
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Pools answer in units of at most this size, so what is written below is a multiple of it.
const BLOCK: usize = 64 << 10;

#[tokio::main]
async fn main() -> Outcome {
    let directory = tempfile::tempdir()?;
    let url = match std::env::args().nth(1) {
        Some(url) => url,
        None => format!("dir://{}", directory.path().display()),
    };
    let pool = volmux::registry().open(&url).await?;
    println!("pool {pool}");
    for (what, support) in pool.capabilities().iter() {
        println!("  {what:<16} {support}");
    }

    let names = Names::new()?;
    let before = pool.volumes().await?.len();
    create_and_write(&pool, &names).await?;
    snapshot_and_clone(&pool, &names).await?;
    diff(&pool, &names).await?;
    revert(&pool, &names).await?;
    copy_and_resize(&pool, &names).await?;
    delete(&pool, &names).await?;

    assert_eq!(pool.volumes().await?.len(), before);
    let report = pool.audit(AuditOptions::default()).await?;
    assert!(report.is_clean(), "{report:?}");
    println!("lifecycle: all as it should be");
    Ok(())
}

struct Names {
    web: VolumeName,
    monday: VolumeName,
    test: VolumeName,
    spare: VolumeName,
}

impl Names {
    fn new() -> Outcome<Self> {
        Ok(Names {
            web: VolumeName::new("lifecycle-web")?,
            monday: VolumeName::new("lifecycle-web-monday")?,
            test: VolumeName::new("lifecycle-test")?,
            spare: VolumeName::new("lifecycle-spare")?,
        })
    }
}

async fn create_and_write(pool: &Arc<dyn Pool>, names: &Names) -> Outcome {
    let options = CreateOptions::thin(ByteSize::mib(64));
    let web = pool.create_volume(&names.web, options).await?;
    println!(
        "create   {}: {}, {}",
        web.name, web.virtual_size, web.provisioning
    );
    assert_eq!(web.virtual_size, ByteSize::mib(64));
    // The same call again returns the same volume: a caller that lost the answer may just repeat.
    assert_eq!(pool.create_volume(&names.web, options).await?.id, web.id);

    assert_eq!(
        read(pool, &names.web, 0).await?,
        block(0),
        "what was never written is zeros"
    );
    write(pool, &names.web, 0, block(b'A')).await?;
    write(pool, &names.web, 32 << 20, block(b'B')).await?;
    let held = pool.extents(&names.web, ExtentQuery::allocated()).await?;
    let held = held.collect_joined().await?;
    assert!(held.iter().map(|r| r.length).sum::<u64>() >= 2 * BLOCK as u64);
    println!("write    two blocks; allocated: {}", show(&held));
    Ok(())
}

async fn snapshot_and_clone(pool: &Arc<dyn Pool>, names: &Names) -> Outcome {
    let options = SnapshotOptions::default();
    let monday = pool
        .snapshot_volume(&names.web, &names.monday, options)
        .await?;
    assert!(monday.is_snapshot());
    println!("snapshot {} of {}", monday.name, names.web);
    let refused = pool
        .open_volume(&names.monday, OpenOptions::read_write())
        .await;
    assert_eq!(
        refused.expect_err("a snapshot is read-only").kind(),
        ErrorKind::InvalidInput
    );

    let options = CloneOptions::default();
    let test = pool
        .clone_volume(&names.monday, &names.test, options)
        .await?;
    println!("clone    {} of {}", test.name, names.monday);
    assert_eq!(read(pool, &names.test, 32 << 20).await?, block(b'B'));
    Ok(())
}

async fn diff(pool: &Arc<dyn Pool>, names: &Names) -> Outcome {
    write(pool, &names.web, 0, block(b'C')).await?;
    write(pool, &names.test, 16 << 20, block(b'D')).await?;
    for (name, offset) in [(&names.web, 0), (&names.test, 16 << 20)] {
        let query = ExtentQuery::changed_since(names.monday.clone());
        let changed = pool.extents(name, query).await?;
        let grade = changed.grade();
        let ranges = changed.collect_joined().await?;
        println!(
            "diff     {name} since {}: {} ({grade})",
            names.monday,
            show(&ranges)
        );
        // A stream may name more than what changed, if its grade says so, and never less.
        assert!(
            ranges
                .iter()
                .any(|r| r.offset <= offset && r.end() >= offset + BLOCK as u64)
        );
    }
    assert_eq!(
        read(pool, &names.monday, 0).await?,
        block(b'A'),
        "the snapshot stays as it was"
    );
    Ok(())
}

async fn revert(pool: &Arc<dyn Pool>, names: &Names) -> Outcome {
    let before = pool.volume(&names.web).await?;
    let options = RevertOptions::default();
    let after = pool
        .revert_volume(&names.web, &names.monday, options)
        .await?;
    assert_eq!(before.id, after.id);
    assert_eq!(read(pool, &names.web, 0).await?, block(b'A'));
    assert_eq!(
        read(pool, &names.test, 16 << 20).await?,
        block(b'D'),
        "the clone stays"
    );
    println!("revert   {} to {}", names.web, names.monday);
    Ok(())
}

async fn copy_and_resize(pool: &Arc<dyn Pool>, names: &Names) -> Outcome {
    let options = CopyOptions::default();
    let spare = pool.copy_volume(&names.test, &names.spare, options).await?;
    assert_eq!(read(pool, &names.spare, 16 << 20).await?, block(b'D'));
    println!(
        "copy     {} of {}: shares no block with it",
        spare.name, names.test
    );

    let grow = ResizeOptions::grow(ByteSize::mib(128));
    let grown = pool.resize_volume(&names.spare, grow).await?;
    assert_eq!(grown.virtual_size, ByteSize::mib(128));
    assert_eq!(read(pool, &names.spare, 100 << 20).await?, block(0));
    println!("resize   {} to {}", grown.name, grown.virtual_size);

    let shrink = ResizeOptions::grow(ByteSize::mib(64));
    let refused = pool.resize_volume(&names.spare, shrink).await;
    assert_eq!(
        refused.expect_err("shrinking needs leave").kind(),
        ErrorKind::InvalidInput
    );
    Ok(())
}

async fn delete(pool: &Arc<dyn Pool>, names: &Names) -> Outcome {
    // The parents first: what came from them does not mind.
    pool.delete_volume(&names.web).await?;
    pool.delete_volume(&names.monday).await?;
    assert_eq!(read(pool, &names.test, 0).await?, block(b'A'));
    assert!(pool.find_volume(&names.web).await?.is_none());
    pool.delete_volume(&names.test).await?;
    pool.delete_volume(&names.spare).await?;
    pool.delete_volume(&names.spare).await?; // what does not exist is deleted already
    println!("delete   all four, parents first");
    Ok(())
}

fn block(byte: u8) -> Bytes {
    vec![byte; BLOCK].into()
}

async fn write(pool: &Arc<dyn Pool>, name: &VolumeName, offset: u64, data: Bytes) -> Outcome {
    let device = pool.open_volume(name, OpenOptions::read_write()).await?;
    device.write_at(offset, data).await?;
    device.flush().await?;
    Ok(())
}

async fn read(pool: &Arc<dyn Pool>, name: &VolumeName, offset: u64) -> Outcome<Bytes> {
    let device = pool.open_volume(name, OpenOptions::read_only()).await?;
    Ok(device.read_at(offset, BLOCK).await?)
}

/// Ranges as `offset+length`.
fn show(ranges: &[ByteRange]) -> String {
    let text = ranges
        .iter()
        .map(|r| format!("{}+{}", r.offset, ByteSize::new(r.length)));
    text.collect::<Vec<_>>().join(", ")
}
