//! Pools without control: the logical units that a target has.

use volmux::{
    ByteRange, CreateOptions, ErrorKind, ExtentQuery, OpenOptions, PoolExt, Provisioning,
    ResizeOptions, Support,
};
use volmux_conformance::pattern;

use super::*;

const TARGET: &str = "iqn.2026-11.org.volmux.test:disks";

const TAKE_OVER: OpenOptions = OpenOptions {
    access: Access::ReadWrite,
    sharing: Sharing::Exclusive,
    take_over: true,
};
const SHARED: OpenOptions = OpenOptions {
    access: Access::ReadWrite,
    sharing: Sharing::Shared,
    take_over: false,
};

/// A target with one disk, which nobody controls, and the URL of the pool.
fn scene() -> (Scene, String) {
    let scene = Scene::new();
    let disk = scene.root().join("disk");
    let file = std::fs::File::create(&disk).expect("a disk");
    file.set_len(16 * MIB).expect("its size");
    scene.tgtd.show(1, TARGET, &disk);
    let url = scene.tgtd.plain_url(TARGET);
    (scene, url)
}

async fn open(url: &str) -> Arc<dyn Pool> {
    volmux::registry().open(url).await.expect("the pool opens")
}

#[test]
fn disks_are_listed_and_read_and_written() {
    let (scene, url) = scene();
    on(async {
        let pool = open(&url).await;
        let volumes = pool.volumes().await.expect("volumes");
        assert_eq!(volumes.len(), 1, "the controller is no volume: {volumes:?}");
        let volume = &volumes[0];
        assert_eq!(
            (volume.name.as_str(), volume.virtual_size.bytes()),
            ("lun-1", 16 * MIB)
        );
        assert_eq!(
            volume.provisioning,
            Provisioning::Thick,
            "tgt was not told otherwise"
        );
        let again = open(&url).await.volume(&n("lun-1")).await.expect("volume");
        assert_eq!(again.id, volume.id, "the identity is the unit's");

        let device = writer(pool.as_ref(), "lun-1").await;
        device
            .write_at(1000, pattern(1, 100_000))
            .await
            .expect("write");
        device.flush().await.expect("flush");
        let found = device.read_at(1000, 100_000).await.expect("read");
        assert_eq!(found, pattern(1, 100_000));
        let stored = std::fs::read(scene.root().join("disk")).expect("the disk");
        assert_eq!(stored[1000..101_000], pattern(1, 100_000));
        let extents = pool.extents(&n("lun-1"), ExtentQuery::allocated()).await;
        let extents = extents
            .expect("extents")
            .collect_joined()
            .await
            .expect("extents");
        let held = |at: u64| extents.iter().any(|e| e.offset <= at && at < e.end());
        assert!(held(1000) && held(100_999), "{extents:?}");
    });
}

#[test]
fn what_needs_control_is_unsupported() {
    let (_scene, url) = scene();
    on(async {
        let pool = open(&url).await;
        let capabilities = pool.capabilities();
        assert_eq!(capabilities.fencing, Support::Native);
        assert_eq!(capabilities.snapshot, Support::None);
        let name = n("lun-1");
        let size = ByteSize::new(32 * MIB);
        let errors = [
            pool.create_volume(&n("a"), CreateOptions::thin(size))
                .await
                .map(drop),
            pool.snapshot_volume(&name, &n("s"), Default::default())
                .await
                .map(drop),
            pool.clone_volume(&name, &n("c"), Default::default())
                .await
                .map(drop),
            pool.resize_volume(&name, ResizeOptions::grow(size))
                .await
                .map(drop),
            pool.delete_volume(&name).await,
            pool.attach_volume(&name, writing("host")).await.map(drop),
            pool.detach_volume(&name, &host("host")).await,
        ];
        for error in errors.map(|done| done.expect_err("nobody controls it")) {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", told(&error));
            assert!(told(&error).contains("control="), "{}", told(&error));
        }
        for missing in ["lun-0", "lun-7", "lun-01", "a"] {
            let error = pool.volume(&n(missing)).await.expect_err(missing);
            assert_eq!(error.kind(), ErrorKind::NotFound, "{}", told(&error));
        }
    });
}

#[test]
fn writers_are_kept_apart_by_reservations() {
    let (_scene, url) = scene();
    on(async {
        let (pool, other) = (open(&url).await, open(&url).await);
        let name = n("lun-1");
        let first = writer(pool.as_ref(), "lun-1").await;
        first.write_at(0, pattern(1, 4096)).await.expect("write");
        for options in [OpenOptions::read_write(), SHARED] {
            let error = other
                .open_volume(&name, options)
                .await
                .expect_err("reserved");
            assert_eq!(error.kind(), ErrorKind::Busy, "{}", told(&error));
        }
        let reader = other.open_volume(&name, OpenOptions::read_only()).await;
        let found = reader.expect("beside it").read_at(0, 4096).await;
        assert_eq!(found.expect("read"), pattern(1, 4096));

        let second = other
            .open_volume(&name, TAKE_OVER)
            .await
            .expect("take over");
        let error = first
            .write_at(0, pattern(2, 4096))
            .await
            .expect_err("fenced");
        assert_eq!(error.kind(), ErrorKind::Fenced, "{}", told(&error));
        let error = first.flush().await.expect_err("for good");
        assert_eq!(error.kind(), ErrorKind::Fenced, "{}", told(&error));
        second
            .write_at(4096, pattern(3, 4096))
            .await
            .expect("write");
        drop(first);
        second
            .write_at(8192, pattern(4, 4096))
            .await
            .expect("the other's end harms nobody");
        let found = second.read_at(0, 4096).await.expect("read");
        assert_eq!(found, pattern(1, 4096), "nothing of the old writer");
        drop(second);
        until_free(pool.as_ref()).await;

        let shared = pool.open_volume(&name, SHARED).await.expect("shared");
        let too = other.open_volume(&name, SHARED).await.expect("shared too");
        shared.write_at(0, pattern(5, 512)).await.expect("write");
        too.write_at(512, pattern(6, 512)).await.expect("write");
        drop(shared);
        too.write_at(1024, pattern(7, 512))
            .await
            .expect("it holds without the first");
        let error = pool.open_volume(&name, OpenOptions::read_write()).await;
        assert_eq!(error.expect_err("shared").kind(), ErrorKind::Busy);
        drop(too);
        until_free(pool.as_ref()).await;
    });
}

/// A closed volume is free once its session has ended, in the background.
async fn until_free(pool: &dyn Pool) {
    for _ in 0..200 {
        match pool
            .open_volume(&n("lun-1"), OpenOptions::read_write())
            .await
        {
            Err(error) if error.kind() == ErrorKind::Busy => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            opened => {
                opened.expect("free");
                return;
            }
        }
    }
    panic!("it stays reserved");
}

#[test]
fn a_writer_whose_reservation_is_lost_is_fenced() {
    let (mut scene, url) = scene();
    on(async {
        let pool = open(&url).await;
        let device = writer(pool.as_ref(), "lun-1").await;
        device.write_at(0, pattern(1, 4096)).await.expect("write");
        device.flush().await.expect("flush");
        let reader = pool
            .open_volume(&n("lun-1"), OpenOptions::read_only())
            .await;
        let reader = reader.expect("open for reading");
        scene.tgtd.restart();
        scene.tgtd.show(1, TARGET, &scene.root().join("disk"));
        let error = device.write_at(0, pattern(2, 4096)).await;
        let error = error.expect_err("tgtd has forgotten who may write");
        assert_eq!(error.kind(), ErrorKind::Fenced, "{}", told(&error));
        assert!(
            told(&error).contains("registration is gone"),
            "{}",
            told(&error)
        );
        let found = reader.read_at(0, 4096).await.expect("readers go on");
        assert_eq!(found, pattern(1, 4096));
        let range = ByteRange::new(0, 4096);
        let again = writer(pool.as_ref(), "lun-1").await;
        again
            .write_zeroes(range, Default::default())
            .await
            .expect("zero");
        let found = reader.read_at(0, 4096).await.expect("read");
        assert!(found.iter().all(|&byte| byte == 0));
    });
}

#[test]
fn a_writer_whose_connection_broke_goes_on() {
    let (scene, url) = scene();
    on(async {
        let (pool, other) = (open(&url).await, open(&url).await);
        let device = writer(pool.as_ref(), "lun-1").await;
        for round in 0..3u64 {
            device
                .write_at(0, pattern(round, 4096))
                .await
                .expect("write");
            scene.tgtd.break_connections(1);
            device
                .write_at(4096, pattern(round, 4096))
                .await
                .expect("the same writer");
            device.flush().await.expect("flush");
            let error = other
                .open_volume(&n("lun-1"), OpenOptions::read_write())
                .await;
            assert_eq!(error.expect_err("reserved").kind(), ErrorKind::Busy);
        }
        let taken = other
            .open_volume(&n("lun-1"), TAKE_OVER)
            .await
            .expect("take over");
        taken.write_at(0, pattern(9, 4096)).await.expect("write");
        scene.tgtd.break_connections(1);
        let error = device
            .write_at(0, pattern(8, 4096))
            .await
            .expect_err("fenced");
        assert_eq!(error.kind(), ErrorKind::Fenced, "{}", told(&error));
        let found = taken.read_at(0, 4096).await.expect("read");
        assert_eq!(found, pattern(9, 4096), "the new writer's");
    });
}
