//! Directory pools on ext4, where snapshots and clones are chains of qcow2 images: long histories, how
//! chains are merged and dropped, who may use what meanwhile, and damage.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use volmux::nfs::{DirConfig, DirPool};
use volmux::{
    Access, AttachOptions, AttachTarget, Attachment, AuditOptions, BlockDevice, ByteRange,
    ByteSize, CreateOptions, Error, ErrorKind, ExtentQuery, FindingKind, Holder, OpenOptions, Pool,
    PoolExt, ResizeOptions, Result, Sharing, VolumeName, ZeroOptions,
};
use volmux_conformance::chains::Chains;
use volmux_conformance::scratch::LoopFs;
use volmux_conformance::{pattern, read_all};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 64 * KIB;

fn n(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a good name")
}

/// A pool, and what its volumes should hold.
struct Scene {
    pool: Arc<dyn Pool>,
    root: PathBuf,
    _fs: LoopFs,
}

impl Scene {
    async fn new(bytes: u64) -> Scene {
        let fs = LoopFs::ext4(bytes);
        let root = fs.path().join("pool");
        std::fs::create_dir(&root).expect("a directory");
        Scene {
            pool: open(&root).await,
            root,
            _fs: fs,
        }
    }

    async fn create(&self, name: &str, size: u64) {
        let options = CreateOptions::thin(ByteSize::new(size));
        let made = self.pool.create_volume(&n(name), options).await;
        made.expect("create");
    }

    async fn device(&self, name: &str) -> Arc<dyn BlockDevice> {
        let name = n(name);
        let device = self.pool.open_volume(&name, OpenOptions::read_write());
        device.await.expect("open")
    }

    async fn write(&self, name: &str, offset: u64, data: Bytes) {
        let device = self.device(name).await;
        device.write_at(offset, data).await.expect("write");
        device.flush().await.expect("flush");
    }

    async fn snapshot(&self, source: &str, name: &str) {
        let (source, name) = (n(source), n(name));
        let made = self
            .pool
            .snapshot_volume(&source, &name, Default::default());
        made.await.expect("snapshot");
    }

    async fn clone_of(&self, source: &str, name: &str) {
        let (source, name) = (n(source), n(name));
        let made = self.pool.clone_volume(&source, &name, Default::default());
        made.await.expect("clone");
    }

    async fn delete(&self, name: &str) {
        self.pool.delete_volume(&n(name)).await.expect("delete");
    }

    /// To a host, for writing.
    async fn attach(&self, name: &str) -> Attachment {
        let options = AttachOptions {
            holder: Holder::new("host-1").expect("a holder"),
            access: Access::ReadWrite,
            sharing: Sharing::Exclusive,
        };
        let attached = self.pool.attach_volume(&n(name), options).await;
        attached.expect("attach")
    }

    async fn detach(&self, name: &str) {
        let holder = Holder::new("host-1").expect("a holder");
        let detached = self.pool.detach_volume(&n(name), &holder).await;
        detached.expect("detach");
    }

    async fn collect(&self) -> u64 {
        let collected = self.pool.collect_garbage().await.expect("collect");
        collected.objects
    }

    async fn read(&self, name: &str) -> Bytes {
        read_all(self.pool.as_ref(), &n(name)).await
    }

    async fn used(&self) -> u64 {
        let used = std::fs::File::open(&self.root).expect("open");
        rustix::fs::syncfs(&used).expect("sync");
        self.pool.usage().await.expect("usage").used.bytes()
    }

    /// The files as they are, all whole by what QEMU says.
    fn chains(&self) -> Chains {
        let chains = Chains::of(&self.root);
        chains.check();
        chains
    }

    /// The volume's top file.
    fn top(&self, name: &str) -> PathBuf {
        let chains = Chains::of(&self.root);
        self.root.join("data").join(&chains.tops[name])
    }
}

async fn open(root: &Path) -> Arc<dyn Pool> {
    DirPool::open(DirConfig::new(root)).await.expect("open")
}

fn assert_error<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, says: &str) {
    let error = result.expect_err("refused");
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(text(&error).contains(says), "{says}: {error:?}");
    assert!(error.get("help").is_some(), "{error:?}");
}

fn text(error: &Error) -> String {
    format!("{error:?}")
}

#[tokio::test]
async fn a_long_history_is_made_and_thinned_out() {
    const SNAPSHOTS: usize = 200;
    let scene = Scene::new(512 * MIB).await;
    scene.create("a", 8 * MIB + 512).await;
    let mut data = vec![0; (8 * MIB + 512) as usize];
    let mut history = Vec::new();
    for i in 0..SNAPSHOTS as u64 {
        // Parts of clusters, across their ends, and now and then zeros.
        let (offset, length) = (i * 41_111 % (8 * MIB), 1 + i * 7919 % 20_000);
        let end = (offset + length).min(data.len() as u64);
        let length = end - offset;
        let part = offset as usize..end as usize;
        if i % 9 == 8 {
            let device = scene.device("a").await;
            let range = ByteRange::new(offset / 4, 3 * CLUSTER);
            let options = ZeroOptions::default();
            device.write_zeroes(range, options).await.expect("zeros");
            device.flush().await.expect("flush");
            data[range.offset as usize..range.end() as usize].fill(0);
        } else {
            let written = pattern(i, length as usize);
            data[part].copy_from_slice(&written);
            scene.write("a", offset, written).await;
        }
        scene.snapshot("a", &format!("s{i}")).await;
        history.push(data.clone());
    }
    let volume = scene.pool.volume(&n("a")).await.expect("volume");
    assert_eq!(volume.depth, Some(SNAPSHOTS as u64 + 1));
    assert_eq!(scene.chains().depth("a"), SNAPSHOTS + 1);
    assert!(scene.read("a").await == data, "through all of them");
    // What changed since the last but one is what its writing touched, and not a byte more.
    let query = ExtentQuery::changed_since(n("s198"));
    let changed = scene
        .pool
        .extents(&n("s199"), query)
        .await
        .expect("extents");
    let changed: Vec<ByteRange> = futures::TryStreamExt::try_collect(changed)
        .await
        .expect("all");
    let differ = |range: &ByteRange| {
        let part = range.offset as usize..range.end() as usize;
        history[198][part.clone()] != history[199][part]
    };
    assert!(
        !changed.is_empty() && changed.iter().all(differ),
        "{changed:?}"
    );

    let before = scene.used().await;
    let keep = |i: usize| i % 20 == 7;
    for i in (0..SNAPSHOTS).filter(|i| !keep(*i)) {
        scene.delete(&format!("s{i}")).await;
    }
    assert_eq!(
        scene.chains().depth("a"),
        SNAPSHOTS + 1,
        "nothing is merged yet"
    );
    scene.collect().await;
    let chains = scene.chains();
    assert_eq!(chains.files, chains.needed);
    let kept = (0..SNAPSHOTS).filter(|i| keep(*i)).count();
    assert_eq!(chains.depth("a"), kept + 1);
    assert!(scene.used().await < before / 2, "room is given back");
    assert!(scene.read("a").await == data, "the volume");
    for i in (0..SNAPSHOTS).filter(|i| keep(*i)) {
        assert!(scene.read(&format!("s{i}")).await == history[i], "s{i}");
    }
    for i in (0..SNAPSHOTS).filter(|i| keep(*i)) {
        scene.delete(&format!("s{i}")).await;
    }
    scene.collect().await;
    let chains = scene.chains();
    assert_eq!(
        chains.files.len(),
        1,
        "a volume without snapshots is one file: {chains:?}"
    );
    assert!(chains.tops["a"].ends_with(".raw"), "{chains:?}");
    assert!(scene.read("a").await == data, "the volume");
    scene.write("a", 0, pattern(1, 4096)).await;
}

#[tokio::test]
async fn a_chain_has_an_end() {
    let scene = Scene::new(256 * MIB).await;
    scene.create("a", MIB).await;
    scene.write("a", 0, pattern(1, 4096)).await;
    for i in 0..255 {
        scene.snapshot("a", &format!("s{i}")).await;
    }
    let (a, more) = (n("a"), n("more"));
    let refused = scene.pool.snapshot_volume(&a, &more, Default::default());
    assert_error(refused.await, ErrorKind::Unsupported, "256");
    let refused = scene.pool.clone_volume(&a, &more, Default::default());
    assert_error(refused.await, ErrorKind::Unsupported, "256");
    // Further down there is room, and a flat volume begins anew.
    scene.clone_of("s100", "c").await;
    assert!(scene.read("c").await == scene.read("a").await);
    let flat = scene.pool.flatten_volume(&a, Default::default()).await;
    flat.expect("flatten");
    assert_eq!(scene.pool.volume(&a).await.expect("volume").depth, Some(1));
    scene.snapshot("a", "more").await;
    assert_eq!(&scene.read("more").await[..4096], &pattern(1, 4096)[..]);
}

#[tokio::test]
async fn clones_share_what_is_below_them() {
    let scene = Scene::new(256 * MIB).await;
    scene.create("golden", 16 * MIB).await;
    scene
        .write("golden", 0, pattern(1, 12 * MIB as usize))
        .await;
    scene.snapshot("golden", "s").await;
    let golden = scene.read("s").await;
    let before = scene.used().await;
    for i in 0..20 {
        scene.clone_of("s", &format!("c{i}")).await;
        scene
            .write(&format!("c{i}"), i * CLUSTER, pattern(i, 512))
            .await;
    }
    let taken = scene.used().await - before;
    assert!(taken < 20 * MIB, "20 clones of 12 MiB took {taken} bytes");
    scene.delete("golden").await;
    scene.delete("s").await;
    scene.collect().await;
    let chains = scene.chains();
    assert_eq!(chains.files.len(), 21, "one file below twenty: {chains:?}");
    for i in 0..20 {
        let mut data = golden.to_vec();
        let at = (i * CLUSTER) as usize;
        data[at..at + 512].copy_from_slice(&pattern(i, 512));
        assert!(scene.read(&format!("c{i}")).await == data, "c{i}");
    }
    // The last one has it for itself.
    for i in 1..20 {
        scene.delete(&format!("c{i}")).await;
    }
    scene.collect().await;
    assert_eq!(scene.chains().files.len(), 1);
    let mut data = golden.to_vec();
    data[..512].copy_from_slice(&pattern(0, 512));
    assert!(scene.read("c0").await == data, "c0");
}

#[tokio::test]
async fn what_is_in_use_is_not_merged() {
    let scene = Scene::new(256 * MIB).await;
    scene.create("a", 4 * MIB).await;
    scene.write("a", 0, pattern(1, 2 * MIB as usize)).await;
    scene.snapshot("a", "s").await;
    scene.write("a", MIB, pattern(2, 2 * MIB as usize)).await;
    scene.snapshot("a", "t").await;
    scene.write("a", 2 * MIB, pattern(3, 4096)).await;
    let (a, s, t) = (
        scene.read("a").await,
        scene.read("s").await,
        scene.read("t").await,
    );
    let other = open(&scene.root).await;
    let reader = other.open_volume(&n("t"), OpenOptions::read_only()).await;
    let reader = reader.expect("open");
    let snapshot = other.open_volume(&n("s"), OpenOptions::read_only()).await;
    let snapshot = snapshot.expect("open");
    scene.delete("s").await;
    assert_eq!(scene.collect().await, 0, "read by another process");
    let found = snapshot.read_at(0, 4 * MIB as usize).await;
    assert!(found.expect("read") == s, "deleted, and open all the same");
    drop(snapshot);
    assert_eq!(scene.collect().await, 0, "below a chain that is read");
    let found = reader.read_at(0, 4 * MIB as usize).await.expect("read");
    assert!(found == t);
    drop(reader);
    // Neither where a host may have it open.
    scene.attach("a").await;
    assert_eq!(scene.collect().await, 0, "attached");
    scene.detach("a").await;
    assert_eq!(scene.collect().await, 1);
    assert!(scene.read("a").await == a && scene.read("t").await == t);
    assert_eq!(scene.chains().files.len(), 2);
}

#[tokio::test]
async fn who_wants_a_volume_makes_its_merge_stop() {
    let scene = Scene::new(1024 * MIB).await;
    scene.create("a", 400 * MIB).await;
    scene.snapshot("a", "s").await;
    let device = scene.device("a").await;
    for i in 0..300 {
        let data = pattern(i, MIB as usize);
        device.write_at(i * MIB, data).await.expect("write");
    }
    device.flush().await.expect("flush");
    drop(device);
    scene.delete("s").await;
    let mut stopped = 0;
    for round in 0..20 {
        let pool = open(&scene.root).await;
        let collection = tokio::spawn(async move { pool.collect_garbage().await });
        tokio::time::sleep(std::time::Duration::from_millis(10 * round)).await;
        let device = scene.device("a").await;
        device
            .write_at(round * 4096, pattern(round, 4096))
            .await
            .expect("write");
        device.flush().await.expect("flush");
        drop(device);
        let collected = collection.await.expect("no panic").expect("collect");
        stopped += u64::from(collected.objects == 0);
        if collected.objects > 0 {
            break;
        }
    }
    assert!(stopped > 0, "a merge of 300 MiB was stopped at least once");
    let collected = scene.collect().await;
    assert!(collected <= 1);
    assert_eq!(scene.chains().files.len(), 1);
    for i in [1, 2, 150, 299] {
        let found = scene.read("a").await;
        let at = (i * MIB) as usize;
        assert!(
            found[at..at + MIB as usize] == pattern(i, MIB as usize),
            "{i}"
        );
    }
}

#[tokio::test]
async fn a_merge_that_was_noted_loses_nothing_that_was_written_since() {
    let scene = Scene::new(96 * MIB).await;
    scene.create("a", 4 * MIB).await;
    scene.write("a", 0, pattern(1, MIB as usize)).await;
    scene.snapshot("a", "s").await;
    scene.delete("s").await;
    let chains = Chains::of(&scene.root);
    let from = &chains.tops["a"];
    let into = chains.needed.iter().find(|file| file.ends_with(".raw"));
    let into = into.expect("a raw file").trim_end_matches(".raw");
    let json = format!("{{\"version\":2,\"from\":\"{from}\",\"into\":\"{into}\"}}");
    let note = format!("{json}\ncrc32 {:08x}\n", crc32fast::hash(json.as_bytes()));
    std::fs::write(scene.root.join("merge.json"), note).expect("write");
    scene.write("a", 2 * MIB, pattern(2, MIB as usize)).await;
    let before = scene.read("a").await;
    scene.collect().await;
    assert!(scene.read("a").await == before);
    assert!(!scene.root.join("merge.json").exists());
    assert_eq!(scene.chains().files.len(), 1);
}

#[tokio::test]
async fn a_merge_that_does_not_fit_is_refused() {
    let scene = Scene::new(96 * MIB).await;
    scene.create("a", 64 * MIB).await;
    scene.write("a", 0, pattern(1, 4096)).await;
    scene.snapshot("a", "s").await;
    scene.write("a", MIB, pattern(2, 32 * MIB as usize)).await;
    scene.delete("s").await;
    let free = scene.pool.usage().await.expect("usage").free.bytes();
    let filler = scene.root.join("../filler");
    std::fs::write(&filler, vec![1; (free - 20 * MIB) as usize]).expect("write");
    let before = scene.read("a").await;
    let refused = scene.pool.collect_garbage().await;
    assert_error(refused, ErrorKind::NoSpace, "wanted");
    assert_eq!(scene.chains().depth("a"), 2, "as it was");
    assert!(scene.read("a").await == before);
    std::fs::remove_file(&filler).expect("remove");
    assert_eq!(scene.collect().await, 1);
    assert!(scene.read("a").await == before);
}

#[tokio::test]
async fn a_volume_goes_on_in_another_file_only_if_all_know() {
    let scene = Scene::new(128 * MIB).await;
    scene.create("a", MIB).await;
    scene.write("a", 0, pattern(1, MIB as usize)).await;
    let other = open(&scene.root).await;
    let (a, s) = (n("a"), n("s"));
    let snapshot = || scene.pool.snapshot_volume(&a, &s, Default::default());
    for chain in [false, true] {
        for options in [OpenOptions::read_only(), OpenOptions::read_write()] {
            let there = other.open_volume(&a, options).await.expect("open");
            assert_error(snapshot().await, ErrorKind::Busy, "used_by");
            assert!(scene.pool.find_volume(&s).await.expect("look").is_none());
            if options.access == Access::ReadWrite {
                there.write_at(0, pattern(7, 512)).await.expect("write");
                there.flush().await.expect("it goes on");
                there.write_at(0, pattern(1, 512)).await.expect("write");
                there.flush().await.expect("it goes on");
            } else {
                let found = there.read_at(0, MIB as usize).await.expect("read");
                assert!(found == pattern(1, MIB as usize));
            }
            drop(there);
        }
        let attached = scene.attach("a").await;
        assert_eq!(
            matches!(attached.target, AttachTarget::Qcow2 { .. }),
            chain,
            "{attached:?}"
        );
        assert_error(snapshot().await, ErrorKind::Busy, "host-1");
        scene.detach("a").await;
        if !chain {
            scene.snapshot("a", "first").await;
        }
    }
    // Also where those who read a chain here keep writers out already.
    let here = scene.pool.open_volume(&a, OpenOptions::read_only()).await;
    let here = here.expect("open");
    let there = other.open_volume(&a, OpenOptions::read_only()).await;
    let there = there.expect("open");
    assert_error(snapshot().await, ErrorKind::Busy, "used_by");
    for reader in [here, there] {
        let found = reader.read_at(0, MIB as usize).await.expect("read");
        assert!(found == pattern(1, MIB as usize));
    }
    // Readers and the writer of one pool object all go on.
    let reader = scene.pool.open_volume(&a, OpenOptions::read_only()).await;
    let reader = reader.expect("open");
    let writer = scene.device("a").await;
    snapshot().await.expect("snapshot");
    writer.write_at(0, pattern(9, 4096)).await.expect("write");
    let found = reader.read_at(0, 4096).await.expect("read");
    assert!(
        found == pattern(9, 4096),
        "a reader here sees what is written"
    );
    assert!(scene.read("s").await == pattern(1, MIB as usize));
    // Others neither read nor write meanwhile.
    for options in [OpenOptions::read_only(), OpenOptions::read_write()] {
        let refused = other.open_volume(&a, options).await;
        assert_error(refused.map(|_| ()), ErrorKind::Busy, "used_by");
    }
    drop(writer);
    let there = other.open_volume(&a, OpenOptions::read_only()).await;
    let found = there.expect("open").read_at(0, 4096).await.expect("read");
    assert!(
        found == pattern(9, 4096),
        "what was written is there without a flush"
    );
    // One writer, unless the volume has a file of its own.
    let shared = OpenOptions {
        sharing: Sharing::Shared,
        ..OpenOptions::read_write()
    };
    drop(reader);
    let refused = scene.pool.open_volume(&a, shared).await;
    assert_error(refused.map(|_| ()), ErrorKind::Unsupported, "flatten");
    let flat = scene.pool.flatten_volume(&a, Default::default()).await;
    flat.expect("flatten");
    let first = scene.pool.open_volume(&a, shared).await.expect("shared");
    let second = scene.pool.open_volume(&a, shared).await.expect("shared");
    drop((first, second));
}

#[tokio::test]
async fn qemu_uses_an_attached_chain() {
    let scene = Scene::new(128 * MIB).await;
    scene.create("a", 4 * MIB).await;
    scene.write("a", 0, pattern(1, 2 * MIB as usize)).await;
    scene.snapshot("a", "s").await;
    let before = scene.read("s").await;
    let grown = ResizeOptions::grow(ByteSize::new(6 * MIB));
    scene
        .pool
        .resize_volume(&n("a"), grown)
        .await
        .expect("grow");
    let AttachTarget::Qcow2 { path } = scene.attach("a").await.target else {
        panic!("a chain is attached as an image");
    };
    let path = path.to_str().expect("UTF-8");
    let io = |commands: &[&str]| {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "qcow2"]);
        for line in commands {
            command.args(["-c", line]);
        }
        let output = command.arg(path).output().expect("qemu-io");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && !told.contains("failed"),
            "{told}"
        );
        told
    };
    io(&[
        "write -P 0x5a 100k 300k",
        "discard 1M 256k",
        "write -z 2M 64k",
        "flush",
    ]);
    assert!(io(&["length"]).contains("6 MiB"));
    scene.detach("a").await;
    let mut data = before.to_vec();
    data.resize(6 << 20, 0);
    data[100 << 10..400 << 10].fill(0x5a);
    data[1 << 20..(1 << 20) + (256 << 10)].fill(0);
    assert!(scene.read("a").await == data, "as QEMU left it");
    assert!(scene.read("s").await == before);
    // QEMU's way of writing headers is let in, and goes on to be.
    scene.write("a", 5 * MIB, pattern(2, 4096)).await;
    scene.snapshot("a", "t").await;
    scene.delete("s").await;
    scene.collect().await;
    data[5 << 20..(5 << 20) + 4096].copy_from_slice(&pattern(2, 4096));
    assert!(scene.read("t").await == data);
    scene.chains();
}

#[tokio::test]
async fn a_larger_past_does_not_come_back() {
    let scene = Scene::new(128 * MIB).await;
    let size = 3 * MIB + 5 * 512;
    scene.create("a", size).await;
    scene.write("a", 0, pattern(1, size as usize)).await;
    scene.snapshot("a", "s").await;
    scene.write("a", MIB, pattern(2, 2 * MIB as usize)).await;
    let resize = async |size: u64| {
        let options = ResizeOptions {
            size: ByteSize::new(size),
            allow_shrink: true,
        };
        let resized = scene.pool.resize_volume(&n("a"), options).await;
        resized.expect("resize");
    };
    let mut data = scene.read("a").await.to_vec();
    for size in [
        MIB + 512,
        4 * MIB,
        700 * KIB + 512,
        800 * KIB,
        5 * MIB,
        512,
        3 * MIB,
    ] {
        resize(size).await;
        data.resize(size as usize, 0);
        assert!(scene.read("a").await == data, "{size}");
        let at = size - 512;
        scene.write("a", at, pattern(size, 512)).await;
        data[at as usize..].copy_from_slice(&pattern(size, 512));
        assert!(scene.read("a").await == data, "{size}, written");
    }
    scene.delete("s").await;
    scene.collect().await;
    assert!(scene.read("a").await == data, "merged");
    resize(6 * MIB).await;
    data.resize(6 << 20, 0);
    assert!(scene.read("a").await == data, "merged and grown");
    scene.chains();
}

#[tokio::test]
async fn damage_is_told_and_nothing_is_opened() {
    let scene = Scene::new(128 * MIB).await;
    for name in ["a", "b"] {
        scene.create(name, MIB).await;
        scene.write(name, 0, pattern(1, MIB as usize)).await;
        scene.snapshot(name, &format!("{name}-s")).await;
    }
    let top = scene.top("a");
    let good = std::fs::read(&top).expect("read");
    let at = |offset: usize| u64::from_be_bytes(good[offset..offset + 8].try_into().expect("8"));
    let name_at = at(8) as usize;
    let changes: [(&str, usize, &[u8]); 7] = [
        ("no qcow2 image", 0, b"NONE"),
        ("no data file of this pool", name_at, b"/etc/passwd"),
        ("outside", 79, &[4]),
        ("encrypted", 35, &[1]),
        ("corrupt", 79, &[2]),
        ("L1 table", 36, &[0xff; 4]),
        ("reference counts", 48, &[0xff; 8]),
    ];
    for (says, offset, bytes) in changes {
        let mut bad = good.clone();
        bad[offset..offset + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&top, &bad).expect("write");
        assert_damaged(&scene, says).await;
        std::fs::write(&top, &good).expect("write");
    }
    // The file below is gone; or leads in a circle.
    let below = scene.top("a-s");
    let aside = scene.root.join("aside");
    std::fs::rename(&below, &aside).expect("rename");
    assert_damaged(&scene, "missing").await;
    std::fs::rename(&aside, &below).expect("rename");
    scene.snapshot("a", "t").await;
    let (upper, lower) = (scene.top("a"), scene.top("t"));
    let mut circle = std::fs::read(&lower).expect("read");
    let own = lower
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name");
    let name_at = u64::from_be_bytes(circle[8..16].try_into().expect("8")) as usize;
    circle[name_at..name_at + own.len()].copy_from_slice(own.as_bytes());
    circle[16..20].copy_from_slice(&(own.len() as u32).to_be_bytes());
    circle[120..125].copy_from_slice(b"qcow2");
    circle[119] = 5;
    let whole = std::fs::read(&lower).expect("read");
    std::fs::write(&lower, &circle).expect("write");
    let refused = scene
        .pool
        .open_volume(&n("a"), OpenOptions::read_only())
        .await;
    assert_error(refused.map(|_| ()), ErrorKind::Corrupt, "circle");
    std::fs::write(&lower, &whole).expect("write");
    assert!(upper.exists());
    assert!(
        scene.read("a").await == pattern(1, MIB as usize),
        "all is well again"
    );
    scene.collect().await;
    scene.chains();
}

/// Volume `a` can't be used, for what `says`; `b` can; an audit tells, and nothing is changed.
async fn assert_damaged(scene: &Scene, says: &str) {
    let listing = || {
        let chains = std::fs::read_dir(scene.root.join("data")).expect("list");
        chains.count()
    };
    let before = listing();
    for options in [OpenOptions::read_only(), OpenOptions::read_write()] {
        let refused = scene.pool.open_volume(&n("a"), options).await;
        assert_error(refused.map(|_| ()), ErrorKind::Corrupt, says);
    }
    let (a, x) = (n("a"), n("x"));
    let refused = scene.pool.snapshot_volume(&a, &x, Default::default());
    assert_error(refused.await, ErrorKind::Corrupt, says);
    let refused = scene.pool.clone_volume(&a, &x, Default::default());
    assert_error(refused.await, ErrorKind::Corrupt, says);
    let refused = scene.pool.copy_volume(&a, &x, Default::default());
    assert_error(refused.await, ErrorKind::Corrupt, says);
    let refused = scene.pool.flatten_volume(&a, Default::default());
    assert_error(refused.await, ErrorKind::Corrupt, says);
    let refused = scene.pool.collect_garbage().await;
    assert_error(refused, ErrorKind::Corrupt, "a");
    let report = scene.pool.audit(AuditOptions { repair: true }).await;
    let report = report.expect("audit");
    let damaged = |f: &&volmux::Finding| f.kind == FindingKind::Damaged;
    let damaged: Vec<_> = report.findings.iter().filter(damaged).collect();
    assert!(!damaged.is_empty(), "{says}: {report:?}");
    assert!(
        damaged.iter().any(|f| f.detail.contains(says)),
        "{says}: {damaged:?}"
    );
    assert_eq!(listing(), before, "{says}: nothing is made or removed");
    assert!(scene.read("b").await == pattern(1, MIB as usize), "{says}");
}
