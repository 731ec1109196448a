use volmux_core::{ErrorKind, ZeroOptions};

use super::*;

const FAST: ZeroOptions = ZeroOptions {
    may_discard: true,
    fast_only: true,
};

async fn expect(disk: &Disk, offset: u64, expected: &[u8]) {
    let found = disk.read_at(offset, expected.len()).await.expect("read");
    let differ = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differ, None, "after {offset}");
}

#[tokio::test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn discards_give_back_whole_chunks_and_allocate_none() {
    let lab = Lab::new("discards", 64 * KIB, "");
    lab.thin("a", "16M");
    let disk = lab.open("a");
    assert_eq!(disk.device_size().expect("size"), 16 * MIB);
    let data = pattern(1, MIB);
    disk.write_at(0, data.clone()).await.expect("write");
    assert_eq!(lab.used(), 16);
    lab.snapshot("a", "s");
    let edges = range(100 * KIB + 7, 900 * KIB + 3);
    disk.discard(edges).await.expect("discard");
    // As soon as it is done.
    let mut expected = data.to_vec();
    expected[edges.offset as usize..edges.end() as usize].fill(0);
    expect(&disk, 0, &expected).await;
    // Only the two at the edges are copied; the snapshot keeps its own.
    assert_eq!(lab.used(), 16 + 2);
    run(&format!("lvchange -ay -K {}/s", lab.group));
    expect(&lab.open("s"), 0, &data).await;

    // Nothing is mapped there, and stays so.
    let unmapped = range(2 * MIB + 1, 9 * MIB - 1);
    disk.discard(unmapped).await.expect("discard");
    disk.write_zeroes(unmapped, FAST).await.expect("zeros");
    disk.write_zeroes(range(15 * MIB + 5, 16 * MIB), FAST)
        .await
        .expect("zeros");
    assert_eq!(lab.used(), 18);
    disk.write_zeroes(range(0, MIB), FAST).await.expect("zeros");
    expect(&disk, 0, &vec![0; MIB as usize]).await;
    disk.flush().await.expect("flush");
    assert_eq!(lab.used(), 16, "what the snapshot has");
}

#[tokio::test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn a_tebibyte_is_zeroed_at_once() {
    let lab = Lab::new("tebibyte", 64 * KIB, "");
    lab.thin("a", "1T");
    let disk = lab.open("a");
    for at in [0, 511 << 30, (1 << 40) - MIB] {
        disk.write_at(at + 13, pattern(1, 128 * KIB))
            .await
            .expect("write");
    }
    let begun = std::time::Instant::now();
    disk.write_zeroes(range(0, 1 << 40), FAST)
        .await
        .expect("zeros");
    println!("1 TiB zeroed in {:?}", begun.elapsed());
    let begun = std::time::Instant::now();
    disk.discard(range(5, (1 << 40) - 5))
        .await
        .expect("discard");
    println!("1 TiB discarded in {:?}", begun.elapsed());
    assert_eq!(lab.used(), 0);
    expect(&disk, 511 << 30, &vec![0; 256 << 10]).await;
}

#[tokio::test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn chunks_of_no_power_of_two_are_zeroed_too() {
    const CHUNK: u64 = 192 * KIB;
    let lab = Lab::new("odd", CHUNK, "");
    lab.thin("a", "16M");
    let disk = lab.open("a");
    for (from, to) in [(0, 5), (1, 2), (3, 20), (7, 31)] {
        disk.write_at(0, pattern(1, 40 * CHUNK))
            .await
            .expect("write");
        let full = lab.used();
        disk.discard(range(from * CHUNK, to * CHUNK))
            .await
            .expect("discard");
        println!(
            "of {} chunks discarded, {} came back",
            to - from,
            full - lab.used()
        );
        let mut expected = pattern(1, 40 * CHUNK).to_vec();
        expected[(from * CHUNK) as usize..(to * CHUNK) as usize].fill(0);
        expect(&disk, 0, &expected).await;
    }
}

#[tokio::test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn a_pool_that_ignores_discards_gets_zeros() {
    let lab = Lab::new("ignore", 64 * KIB, "--discards ignore");
    lab.thin("a", "8M");
    let disk = lab.open("a");
    disk.write_at(0, pattern(1, MIB)).await.expect("write");
    let error = disk
        .write_zeroes(range(0, MIB), FAST)
        .await
        .expect_err("not fast");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    disk.discard(range(9, 4 * MIB)).await.expect("discard");
    let mut expected = vec![0; MIB as usize];
    expected[..9].copy_from_slice(&pattern(1, 9));
    expect(&disk, 0, &expected).await;
    assert_eq!(lab.used(), 16, "none more");
}

#[tokio::test]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn a_thick_volume_is_zeroed() {
    let lab = Lab::group("thick");
    run(&format!(
        "lvcreate -q -q -y -Wn -Zn -L 8M -n a {}",
        lab.group
    ));
    let disk = Disk::open(&lab.path("a"), true, Kind::Thick).expect("open");
    let data = pattern(5, 8 * MIB);
    disk.write_at(0, data.clone()).await.expect("write");
    let zeros = range(1000, 5 * MIB + 77);
    disk.write_zeroes(zeros, ZeroOptions::default())
        .await
        .expect("zeros");
    let mut expected = data.to_vec();
    expected[1000..5 * MIB as usize + 77].fill(0);
    expect(&disk, 0, &expected).await;
    disk.write_at(3, pattern(9, 700)).await.expect("write");
    expected[3..703].copy_from_slice(&pattern(9, 700));
    disk.discard(range(4096, 8192)).await.expect("as zeros");
    expect(&disk, 0, &expected).await;
    disk.flush().await.expect("flush");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs device-mapper: run in tests/lab/run"]
async fn dropped_requests_are_not_overtaken_on_a_thin_volume() {
    let ring = crate::ring::Engine::of_process();
    assert!(
        matches!(ring, crate::ring::Engine::Ring(_)),
        "the lab's kernel has io_uring"
    );
    let lab = Lab::new("dropped", 64 * KIB, "");
    lab.thin("a", "8M");
    for round in 0..12u8 {
        let disk = lab.open("a");
        let start = |future: std::pin::Pin<Box<dyn Future<Output = ()> + '_>>| {
            let mut future = future;
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let _dropped = future.as_mut().poll(&mut context);
        };
        start(Box::pin(async {
            let _dropped = disk.write_at(0, pattern(1, MIB)).await;
        }));
        start(Box::pin(async {
            let _dropped = disk.discard(range(0, 4 * MIB)).await;
        }));
        let data = pattern(100 + round, 512 * KIB);
        disk.write_at(4096, data.clone()).await.expect("write");
        expect(&disk, 4096, &data).await;
        let released = std::sync::Arc::new(());
        disk.hold(released.clone());
        start(Box::pin(async {
            let _dropped = disk.write_at(0, pattern(2, MIB)).await;
        }));
        drop(disk);
        while std::sync::Arc::strong_count(&released) > 1 {
            tokio::task::yield_now().await;
        }
        let next = lab.open("a");
        next.write_at(0, data.clone()).await.expect("write");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        expect(&next, 0, &data).await;
    }
}
