//! Snapshots of two disks of one guest, whose file systems are frozen for as long as that takes.

use std::sync::Mutex;

use async_trait::async_trait;
use volmux::group::{Freezer, GroupOptions, Member, snapshot_group};
use volmux::{ErrorKind, PoolExt, Result, Volume};

use super::*;

/// Freezes the file systems of a guest by its console.
struct Console {
    guest: Arc<Mutex<Guest>>,
    /// How long it dawdles once they are frozen.
    dawdles: Duration,
}

impl Console {
    async fn order(&self, order: &'static str, answer: &'static str) {
        let guest = Arc::clone(&self.guest);
        let told = tokio::task::spawn_blocking(move || {
            let mut guest = guest.lock().expect("no panic");
            guest.order(order);
            guest.wait_for(answer);
        });
        told.await.expect("the guest does it");
    }
}

#[async_trait]
impl Freezer for Console {
    async fn freeze(&self) -> Result<()> {
        self.order("freeze", "frozen").await;
        tokio::time::sleep(self.dawdles).await;
        Ok(())
    }

    async fn thaw(&self) -> Result<()> {
        self.order("thaw", "thawed").await;
        Ok(())
    }
}

/// Takes both snapshots, with the guest frozen for `deadline` at most.
fn take(
    store: &Store,
    guest: &Arc<Mutex<Guest>>,
    dawdles: Duration,
    deadline: Duration,
) -> Result<Vec<Volume>> {
    let member = |volume: &str| Member {
        pool: Arc::clone(&store.pool),
        volume: name(volume),
        snapshot: name(&format!("{volume}-frozen")),
    };
    let freezer = Console {
        guest: Arc::clone(guest),
        dawdles,
    };
    let members = vec![member("guest"), member("data")];
    let options = GroupOptions::within(deadline);
    store.on(snapshot_group(members, Arc::new(freezer), options))
}

fn goes_on(guest: &Mutex<Guest>) -> u64 {
    let mut guest = guest.lock().expect("no panic");
    let next = guest.last_record() + 10;
    guest.wait_for(&format!("record {next}"));
    guest.last_record()
}

#[test]
fn snapshots_of_two_disks_of_a_frozen_guest_are_of_one_moment() {
    let scene = Scene::on_xfs();
    let store = &scene.store;
    store.import(&scene.image, "data");
    let [root, data] = ["guest", "data"].map(|volume| scene.reach(volume));
    let disks = disk(&root).and(disk(&data).arguments);
    let guest = Guest::boot(&scene.image, &disks, &["pair", &data.serial()]);
    let guest = Arc::new(Mutex::new(guest));
    goes_on(&guest);

    let late = take(store, &guest, STOP, Duration::from_secs(5));
    assert_eq!(late.expect_err("too late").kind(), ErrorKind::TimedOut);
    let told = goes_on(&guest);
    let names = store.on(store.pool.volumes()).expect("volumes");
    assert_eq!(names.len(), 2, "no snapshot is left: {names:?}");

    let taken = take(store, &guest, Duration::ZERO, 2 * STOP);
    assert_eq!(taken.expect("in time").len(), 2);
    let after = guest.lock().expect("no panic").last_record();
    goes_on(&guest);
    let guest = Arc::into_inner(guest).expect("nobody else has it");
    let last = guest.into_inner().expect("no panic").end();
    let last = last.number("record");
    for reached in [root, data] {
        scene.store.leave(reached);
    }

    for volume in ["guest", "data"] {
        store.clone_volume(&format!("{volume}-frozen"), &format!("{volume}-clone"));
    }
    let (first, second) = pairs(&scene, "guest-clone", "data-clone");
    // One more may have been durable before the guest could tell.
    assert!(
        (told..=after + 1).contains(&first),
        "{told} {first} {after}"
    );
    assert!(
        (first - 1..=first).contains(&second),
        "{second}, and {first}"
    );
    assert_eq!(pairs(&scene, "guest", "data"), (last, last));
    for volume in ["guest-frozen", "data-frozen", "guest", "data"] {
        store.assert_in_order(volume);
    }
}

/// The records that a guest finds on its two disks.
fn pairs(scene: &Scene, root: &str, data: &str) -> (u64, u64) {
    let [root, data] = [root, data].map(|volume| scene.reach(volume));
    let disks = disk(&root).and(disk(&data).arguments);
    let guest = Guest::boot(&scene.image, &disks, &["pairs", &data.serial()]);
    let said = guest.finish();
    for reached in [root, data] {
        scene.store.leave(reached);
    }
    (said.number("records"), said.number("second"))
}
