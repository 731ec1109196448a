//! Who may use what at the same time.

use std::process::Command;
use std::time::Duration;

use volmux::{
    Access, AttachTarget, ByteSize, ErrorKind, OpenOptions, PoolExt, ResizeOptions, Sharing,
};
use volmux_conformance::pattern;

use crate::scene::{MIB, Scene, assert_error, n, open};

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
async fn a_flatten_loses_nothing_of_what_another_writes() {
    const WRITES: u64 = 12;
    let scene = Scene::new(256 * MIB).await;
    scene.create("a", 8 * MIB).await;
    scene.write("a", 0, pattern(1, 8 * MIB as usize)).await;
    let mut data = scene.read("a").await.to_vec();
    let other = open(&scene.root).await;
    let (a, mut flattened, mut written) = (n("a"), 0, 0);
    for round in 0..30 {
        scene.snapshot("a", "s").await;
        let flatten = scene.pool.flatten_volume(&a, Default::default());
        let writes = async {
            for i in 0..WRITES {
                let (at, piece) = ((round * WRITES + i) * 4096, pattern(round + i, 4096));
                let device = other.open_volume(&a, OpenOptions::read_write()).await;
                match device {
                    Ok(device) => {
                        device.write_at(at, piece.clone()).await.expect("write");
                        device.flush().await.expect("flush");
                        data[at as usize..][..4096].copy_from_slice(&piece);
                        written += 1;
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}"),
                }
                tokio::time::sleep(Duration::from_millis(round % 5)).await;
            }
        };
        match tokio::join!(flatten, writes).0 {
            Ok(_) => flattened += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}"),
        }
        assert!(scene.read("a").await == data, "round {round}");
        scene.delete("s").await;
        scene.collect().await;
    }
    assert!(flattened > 0 && written > 0, "{flattened} {written}");
    assert!(scene.read("a").await == data);
    scene.chains();
}
