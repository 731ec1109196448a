//! Pools in object stores: an encrypted one, an incremental backup to another store, and a host
//! that takes over from one that is gone.
//!
//! ```sh
//! cargo run --example objects                      # in a directory that is gone afterwards
//! cargo run --example objects s3://bucket/prefix   # credentials from the environment
//! ```

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use volmux::object::{Encryption, Location, ObjectConfig, ObjectPool, PoolKey};
use volmux::{
    AuditOptions, ByteSize, Control, CreateOptions, ErrorKind, ExtentQuery, OpenOptions, Pool,
    SnapshotOptions, VolumeName,
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const SIZE: ByteSize = ByteSize::gib(1);
const BLOCK: usize = 4096;

#[tokio::main]
async fn main() -> Outcome {
    let directory = tempfile::tempdir()?;
    let mut config = match std::env::args().nth(1) {
        Some(url) => ObjectConfig::from_url(&url.parse()?)?,
        None => ObjectConfig::new(Location::Directory(directory.path().to_owned())),
    };
    without_a_key_nothing_is_read(&mut config).await?;

    let pool: Arc<dyn Pool> = ObjectPool::open(config.clone()).await?;
    let names = ["objects-web", "objects-monday", "objects-tuesday"];
    let names = names.map(VolumeName::new);
    let [web, monday, tuesday] = names;
    let (web, monday, tuesday) = (web?, monday?, tuesday?);
    pool.create_volume(&web, CreateOptions::thin(SIZE)).await?;
    write(&pool, &web, 0, b'A').await?;
    write(&pool, &web, 512 << 20, b'B').await?;
    snapshot(&pool, &web, &monday).await?;
    write(&pool, &web, 512 << 20, b'C').await?;
    snapshot(&pool, &web, &tuesday).await?;

    back_up(&pool, &monday, &tuesday).await?;
    take_over(&pool, &config, &web).await?;

    for name in [&web, &monday, &tuesday] {
        pool.delete_volume(name).await?;
    }
    let collected = pool.collect_garbage().await?;
    println!(
        "gc          {} in {} objects",
        collected.freed, collected.objects
    );
    assert!(collected.freed >= ByteSize::new(4 * BLOCK as u64));
    let report = pool.audit(AuditOptions::default()).await?;
    assert!(report.is_clean(), "{report:?}");
    println!("objects: all as it should be");
    Ok(())
}

/// Makes an encrypted pool; leaves the key in `config`. A program has it from where it keeps its
/// secrets; on the command line it comes from a file or the environment.
async fn without_a_key_nothing_is_read(config: &mut ObjectConfig) -> Outcome {
    config.encryption = Some(Encryption::Aes256Gcm);
    config.key = Some(PoolKey::new([7; 32]));
    let pool = ObjectPool::open(config.clone()).await?;
    // The first change makes the pool.
    let name = VolumeName::new("objects-first")?;
    pool.create_volume(&name, CreateOptions::thin(SIZE)).await?;
    pool.delete_volume(&name).await?;
    let mut stranger = config.clone();
    stranger.key = Some(PoolKey::new([8; 32]));
    let refused = ObjectPool::open(stranger).await;
    let error = refused.expect_err("another key opens nothing");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    println!("pool        {pool}, encrypted; with another key: {error}");
    Ok(())
}

/// Copies what is in `older` to another store, and then only what changed from there to `newer`.
async fn back_up(pool: &Arc<dyn Pool>, older: &VolumeName, newer: &VolumeName) -> Outcome {
    let elsewhere = volmux::registry().open("memory+object:").await?;
    let backup = VolumeName::new("backup")?;
    elsewhere
        .create_volume(&backup, CreateOptions::thin(SIZE))
        .await?;
    let whole = pool.extents(older, ExtentQuery::allocated()).await?;
    copy(pool, older, &elsewhere, &backup, whole).await?;
    assert_eq!(read(&elsewhere, &backup, 512 << 20).await?, block(b'B'));

    let changed = ExtentQuery::changed_since(older.clone());
    let changed = pool.extents(newer, changed).await?;
    let copied = copy(pool, newer, &elsewhere, &backup, changed).await?;
    println!(
        "backup      {} of {SIZE} copied for {newer}",
        ByteSize::new(copied)
    );
    assert_eq!(copied, BLOCK as u64);
    for (at, byte) in [(0, b'A'), (512 << 20, b'C')] {
        assert_eq!(read(&elsewhere, &backup, at).await?, block(byte));
    }
    Ok(())
}

/// Copies these extents; returns how many bytes they have.
async fn copy(
    from: &Arc<dyn Pool>,
    source: &VolumeName,
    to: &Arc<dyn Pool>,
    target: &VolumeName,
    extents: volmux::ExtentStream,
) -> Outcome<u64> {
    let source = from.open_volume(source, OpenOptions::read_only()).await?;
    let target = to.open_volume(target, OpenOptions::read_write()).await?;
    let mut copied = 0;
    for extent in extents.collect_joined().await? {
        // A long extent would be copied in pieces.
        let data = source
            .read_at(extent.offset, extent.length.try_into()?)
            .await?;
        target.write_at(extent.offset, data).await?;
        copied += extent.length;
    }
    target.flush().await?;
    Ok(copied)
}

/// A volume has one writer. Another host is refused until it is told to take over; from then on
/// the first one can change nothing any more.
async fn take_over(pool: &Arc<dyn Pool>, config: &ObjectConfig, web: &VolumeName) -> Outcome {
    let here = pool.open_volume(web, OpenOptions::read_write()).await?;
    here.write_at(0, block(b'D')).await?;
    here.flush().await?;

    let there: Arc<dyn Pool> = ObjectPool::open(config.clone()).await?;
    let refused = there.open_volume(web, OpenOptions::read_write()).await;
    let error = refused.expect_err("it is open for writing");
    assert_eq!(error.kind(), ErrorKind::Busy);
    let options = OpenOptions {
        take_over: true,
        ..OpenOptions::read_write()
    };
    let device = there.open_volume(web, options).await?;
    assert_eq!(device.read_at(0, BLOCK).await?, block(b'D'));
    device.write_at(0, block(b'E')).await?;
    device.flush().await?;

    let late = async {
        here.write_at(0, block(b'F')).await?;
        here.flush().await
    };
    let error = late.await.expect_err("its time is over");
    assert_eq!(error.kind(), ErrorKind::Fenced);
    println!("take-over   the host before: {error}");
    assert_eq!(read(&there, web, 0).await?, block(b'E'));
    let report = there.scrub(Control::default()).await?;
    assert!(report.is_clean(), "{report:?}");
    Ok(())
}

async fn snapshot(pool: &Arc<dyn Pool>, volume: &VolumeName, snapshot: &VolumeName) -> Outcome {
    let options = SnapshotOptions::default();
    let made = pool.snapshot_volume(volume, snapshot, options).await?;
    println!("snapshot    {} of {volume}", made.name);
    Ok(())
}

fn block(byte: u8) -> Bytes {
    vec![byte; BLOCK].into()
}

async fn write(pool: &Arc<dyn Pool>, name: &VolumeName, offset: u64, byte: u8) -> Outcome {
    let device = pool.open_volume(name, OpenOptions::read_write()).await?;
    device.write_at(offset, block(byte)).await?;
    device.flush().await?;
    Ok(())
}

async fn read(pool: &Arc<dyn Pool>, name: &VolumeName, offset: u64) -> Outcome<Bytes> {
    let device = pool.open_volume(name, OpenOptions::read_only()).await?;
    Ok(device.read_at(offset, BLOCK).await?)
}
