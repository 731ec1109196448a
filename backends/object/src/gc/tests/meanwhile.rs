//! Who looks at a volume while what it held is replaced and collected.

use futures::StreamExt;
use volmux_core::{AuditOptions, ExtentQuery};

use super::rewriting::{collect_all, pool_snapshot, sparsen};
use super::*;

/// Places that are mapped, each in a page of its own, and extents in all of them.
const FAR: u64 = 60;
const EXTENTS: u64 = 5 * FAR;
const APART: u64 = 1 << 30;

fn at(extent: u64) -> u64 {
    extent / 5 * APART + extent % 5 * 2 * BLOCK
}

/// A volume with a large map. Of what was written first, one block in five is needed.
async fn wide(pool: &ObjectPool) {
    let options = CreateOptions::thin(ByteSize::new(FAR * APART));
    let created = pool.create_volume(&name("a"), options).await;
    created.expect("create");
    let device = writer(pool, "a").await;
    for tag in 1..5 {
        for extent in (0..EXTENTS).filter(|extent| tag == 1 || extent % 5 != 0) {
            let content = Bytes::from(vec![tag; BLOCK as usize]);
            device.write_at(at(extent), content).await.expect("write");
        }
        device.flush().await.expect("flush");
    }
    drop(device);
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn extents_are_told_to_their_end_wherever_the_map_lies_by_then() {
    let store = Rough::new(1);
    let ours = pool(&store).await;
    wide(&ours).await;
    let snapshot = pool_snapshot(&ours, "a", "s").await;
    ours.delete_volume(&name("a")).await.expect("delete");
    // It remembers next to nothing.
    let theirs = pool_with(&store, ByteSize::kib(1)).await;
    let extents = theirs.extents(&snapshot, ExtentQuery::allocated()).await;
    let mut extents = extents.expect("extents");
    let mut found = 0;
    while let Some(extent) = extents.next().await {
        let extent = extent.expect("it is there");
        assert_eq!((extent.offset, extent.length), (at(found), BLOCK));
        if found == 3 {
            let entry = ready(&ours).await.entry(OP, &snapshot);
            let map = entry.expect("it is there").base.root.page;
            collect_all(&ours).await;
            let pages = map.expect("it has a map").object;
            assert!(!objects(&store).await.contains(&pages), "it is elsewhere");
        }
        found += 1;
    }
    assert_eq!(found, EXTENTS);
}

#[tokio::test(start_paused = true)]
async fn a_writer_tells_its_extents_while_it_makes_checkpoints() {
    let store = Rough::new(1);
    let pool = pool_with(&store, ByteSize::kib(1)).await;
    wide(&pool).await;
    let device = writer(&pool, "a").await;
    let whole = ByteRange::new(0, FAR * APART);
    let mut extents = device.extents(whole).await.expect("extents");
    let mut found = 0;
    while let Some(extent) = extents.next().await {
        let extent = extent.expect("it is there");
        assert_eq!(extent.offset, at(found));
        if found == 3 {
            for extent in 0..EXTENTS {
                let content = Bytes::from(vec![99; BLOCK as usize]);
                device.write_at(at(extent), content).await.expect("write");
            }
            collect_all(&pool).await;
        }
        found += 1;
    }
    assert_eq!(found, EXTENTS);
}

#[tokio::test(start_paused = true)]
async fn what_is_replaced_meanwhile_is_not_damaged() {
    for delay in (0..400).step_by(4) {
        let store = Rough::new(delay);
        let (ours, theirs) = (
            pool(&store).await,
            pool_with(&store, ByteSize::kib(1)).await,
        );
        create(&ours, "a").await;
        let device = writer(&ours, "a").await;
        fill(&*device, 0..BLOCKS, 1).await;
        sparsen(&*device).await;
        store.slow.store(true, Relaxed);
        let going_on = async {
            for _ in 0..delay {
                tokio::task::yield_now().await;
            }
            collect_all(&ours).await;
        };
        let looking = async {
            let audit = theirs.audit(AuditOptions { repair: false }).await;
            let scrub = theirs.scrub(Default::default()).await;
            [audit, scrub]
        };
        let (reports, ()) = futures::join!(looking, going_on);
        for report in reports {
            let report = report.expect("a report");
            assert!(report.findings.is_empty(), "{delay}: {report:?}");
        }
    }
}
