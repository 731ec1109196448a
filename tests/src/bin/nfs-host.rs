//! What a host does to a pool in an NFS export while another one works on it too. Started by
//! `tests/nfs_server.rs`, on either host.
//!
//! `nfs-host WHAT SERVER EXPORT`: WHAT is `count` (takes the volume `a`, counts in it and gives it back,
//! so often), `change` (volumes come, are renamed and go, until there is one called `stop`), `grow`
//! (makes the volume `a` twice as large) or `hold` (writes and flushes numbers in the volume `a`, tells
//! of each in the volume `told`, and ends once the volume is taken from it).

use std::time::{Duration, Instant};

use bytes::Bytes;
use volmux::nfs::NfsConfig;
use volmux::{
    ByteSize, CreateOptions, ErrorKind, OpenOptions, Pool, ResizeOptions, SnapshotOptions,
};
use volmux_conformance::checked_name as n;
use volmux_conformance::nfs::ROUNDS;

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, what, server, export] = &args[..] else {
        panic!("usage: nfs-host count|change|grow SERVER EXPORT");
    };
    let mut config = NfsConfig::new(server, export);
    config.vers = Some("4.2".into());
    let pool = volmux::nfs::open(config).await.expect("open the pool");
    match &**what {
        "count" => count(&*pool).await,
        "change" => change(&*pool).await,
        "grow" => grow(&*pool).await,
        "hold" => hold(&*pool).await,
        _ => panic!("count, change, grow or hold, and not {what}"),
    }
}

async fn count(pool: &dyn Pool) {
    let end = Instant::now() + Duration::from_secs(400);
    let mut done = 0;
    while done < ROUNDS {
        assert!(Instant::now() < end, "it is never free");
        let device = match pool.open_volume(&n("a"), OpenOptions::read_write()).await {
            Ok(device) => device,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
        };
        let found = device.read_at(0, 8).await.expect("read");
        let number = u64::from_le_bytes(found[..].try_into().expect("eight bytes"));
        // Long enough for another writer to do harm, were it let in.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let next = Bytes::copy_from_slice(&(number + 1).to_le_bytes());
        device.write_at(0, next).await.expect("write");
        device.flush().await.expect("flush");
        done += 1;
    }
}

async fn change(pool: &dyn Pool) {
    let options = CreateOptions::thin(ByteSize::mib(1));
    for _ in 0..1000 {
        let (name, to, taken) = (n("there"), n("renamed"), n("taken"));
        pool.create_volume(&name, options).await.expect("create");
        pool.rename_volume(&name, &to).await.expect("rename");
        let made = pool.snapshot_volume(&to, &taken, SnapshotOptions::default());
        made.await.expect("snapshot");
        pool.delete_volume(&to).await.expect("delete");
        pool.delete_volume(&taken).await.expect("delete");
        if pool.volume(&n("stop")).await.is_ok() {
            return;
        }
    }
}

async fn hold(pool: &dyn Pool) {
    let options = OpenOptions::read_write();
    let device = pool.open_volume(&n("a"), options).await.expect("open");
    let told = pool.open_volume(&n("told"), options).await.expect("open");
    for number in 1u64.. {
        let bytes = Bytes::copy_from_slice(&number.to_le_bytes());
        let written = device.write_at(0, bytes.clone()).await;
        let flushed = match written {
            Ok(()) => device.flush().await,
            failed => failed,
        };
        if let Err(error) = flushed {
            assert_eq!(error.kind(), ErrorKind::Fenced, "{error:?}");
            let error = device.write_at(0, bytes).await.expect_err("nor later");
            assert_eq!(error.kind(), ErrorKind::Fenced, "{error:?}");
            return;
        }
        told.write_at(0, bytes).await.expect("write");
        told.flush().await.expect("flush");
    }
}

async fn grow(pool: &dyn Pool) {
    let size = pool
        .volume(&n("a"))
        .await
        .expect("it is there")
        .virtual_size;
    let twice = ResizeOptions::grow(ByteSize::new(2 * size.bytes()));
    pool.resize_volume(&n("a"), twice).await.expect("grow");
}
