//! An array on another host: the program there makes volumes logical units of tgt, and they are used
//! from here over iSCSI.

use volmux::{
    Access, AttachOptions, AttachTarget, ByteRange, ByteSize, CreateOptions, ErrorKind,
    ExtentQuery, Holder, OpenOptions, Pool, ResizeOptions, Sharing,
};
use volmux_conformance::host::HostDisk;
use volmux_conformance::iscsi::{Tgtd, escaped};
use volmux_conformance::scratch::LoopFs;
use volmux_conformance::{on, pattern};

use crate::host::{Host, PROGRAM, name};

const MIB: u64 = 1 << 20;

#[test]
fn volumes_of_an_array_on_another_host_are_used_from_here() {
    // In this order: each sees what was mounted before it was started.
    let fs = LoopFs::xfs(320 * MIB);
    let tgtd = Tgtd::start();
    let host = Host::start();
    let store = format!("dir://{}?init=true", fs.path().join("store").display());
    std::fs::create_dir(fs.path().join("store")).expect("a directory");
    let mut url = tgtd.url("iqn.2026-11.org.volmux.test:array", &store);
    let config = host.config();
    for (key, value) in [
        ("ssh", format!("{}@127.0.0.1:{}", config.user, config.port)),
        ("ssh_key", host.place.path("user").display().to_string()),
        (
            "ssh_known_hosts",
            host.place.path("known_hosts").display().to_string(),
        ),
        ("ssh_program", PROGRAM.to_owned()),
    ] {
        url.push_str(&format!("&{key}={}", escaped(&value)));
    }
    on(async {
        let pool = volmux::registry()
            .open(&url)
            .await
            .expect("the array opens");
        live(pool.as_ref()).await;
        taken_over(&url, pool.as_ref()).await;
    });
}

async fn live(pool: &dyn Pool) {
    let (a, s, c) = (name("a"), name("s"), name("c"));
    let size = CreateOptions::thin(ByteSize::new(4 * MIB));
    pool.create_volume(&a, size).await.expect("create");
    let device = pool
        .open_volume(&a, OpenOptions::read_write())
        .await
        .expect("open");
    device
        .write_at(1000, pattern(1, 100_000))
        .await
        .expect("write");
    device.flush().await.expect("flush");
    pool.snapshot_volume(&a, &s, Default::default())
        .await
        .expect("snapshot");
    device.write_at(0, pattern(2, 4096)).await.expect("write");
    device.flush().await.expect("flush");
    let grown = pool
        .resize_volume(&a, ResizeOptions::grow(ByteSize::new(8 * MIB)))
        .await;
    grown.expect("grow while it is open");
    assert_eq!(device.refresh().await.expect("refresh"), 8 * MIB);
    let end = ByteRange::new(8 * MIB - 4096, 4096);
    device
        .write_at(end.offset, pattern(3, 4096))
        .await
        .expect("in the new part");
    let busy = pool.delete_volume(&a).await.expect_err("it is open");
    assert_eq!(busy.kind(), ErrorKind::Busy, "{busy:?}");
    drop(device);
    let changed = pool
        .extents(&a, ExtentQuery::changed_since(s.clone()))
        .await;
    let changed = changed
        .expect("extents")
        .collect_joined()
        .await
        .expect("extents");
    assert_eq!(
        changed,
        [ByteRange::new(0, 4096), end],
        "of blocks that differ"
    );
    pool.clone_volume(&s, &c, Default::default())
        .await
        .expect("clone");
    let reader = pool
        .open_volume(&c, OpenOptions::read_only())
        .await
        .expect("open");
    let found = reader.read_at(1000, 100_000).await.expect("read");
    assert_eq!(found, pattern(1, 100_000));
    drop(reader);

    let holder = Holder::new("iqn.2026-11.org.volmux.test:host").expect("a holder");
    let options = AttachOptions {
        holder: holder.clone(),
        access: Access::ReadWrite,
        sharing: Sharing::Exclusive,
    };
    let attached = pool.attach_volume(&c, options).await.expect("attach");
    assert!(
        matches!(attached.target, AttachTarget::Iscsi { .. }),
        "{attached:?}"
    );
    let disk = HostDisk::open(&attached).await;
    disk.write_at_start(pattern(4, 4096)).await;
    disk.close().await;
    pool.detach_volume(&c, &holder).await.expect("detach");
    for volume in [&a, &s, &c] {
        pool.delete_volume(volume).await.expect("delete");
    }
}

async fn taken_over(url: &str, pool: &dyn Pool) {
    let a = name("a");
    let size = CreateOptions::thin(ByteSize::new(MIB));
    pool.create_volume(&a, size).await.expect("create");
    let old = pool
        .open_volume(&a, OpenOptions::read_write())
        .await
        .expect("open");
    old.write_at(0, pattern(1, 4096)).await.expect("write");
    old.flush().await.expect("flush");
    let other = volmux::registry()
        .open(url)
        .await
        .expect("the array opens again");
    let take_over = OpenOptions {
        take_over: true,
        ..OpenOptions::read_write()
    };
    let new = other.open_volume(&a, take_over).await.expect("take over");
    let error = old.write_at(0, pattern(2, 4096)).await.expect_err("fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error:?}");
    let found = new.read_at(0, 4096).await.expect("read");
    assert_eq!(found, pattern(1, 4096));
    new.write_at(0, pattern(3, 4096)).await.expect("write");
    new.flush().await.expect("flush");
}
