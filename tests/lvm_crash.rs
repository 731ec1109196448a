//! Processes that work on LVM pools are killed again and again. Each time the pool must hold exactly
//! what the process was told is done, and be cleared of leftovers by an audit. In the lab.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use volmux::lvm::{LvmConfig, LvmPool};
use volmux::{AuditOptions, ByteSize, CreateOptions, OpenOptions, Pool, PoolExt};
use volmux_conformance::crash::Images;
use volmux_conformance::killed::{self, Expected, Worker};
use volmux_conformance::lvm::{ScratchGroup, lvm};
use volmux_conformance::{checked_name, on, pattern, read_all};

const MIB: u64 = 1 << 20;

#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn a_thin_pool_survives_every_kill() {
    let group = ScratchGroup::with_pool(64 * MIB, 4 * MIB);
    kill_again_and_again(&group, &thin(&group), 50);
}

#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn a_group_survives_every_kill() {
    let group = ScratchGroup::new(64 * MIB);
    kill_again_and_again(&group, &format!("lvm://{}", group.name()), 20);
}

fn thin(group: &ScratchGroup) -> String {
    format!("lvm://{}/pool", group.name())
}

fn start(pool: &str, seed: u64, prefix: &str) -> Worker {
    let program = Path::new(env!("CARGO_BIN_EXE_crash-worker"));
    Worker::start(program, pool, seed, prefix)
}

async fn open(pool: &str) -> Arc<dyn Pool> {
    let config = LvmConfig::from_url(&pool.parse().expect("a URL"));
    let pool = LvmPool::open(config.expect("a configuration")).await;
    pool.expect("the pool opens after a kill")
}

fn kill_again_and_again(group: &ScratchGroup, pool: &str, kills: u64) {
    let mut images = Images::default();
    let (mut in_flight, begun) = (0, Instant::now());
    for seed in 0..kills {
        let worker = start(pool, seed, "v");
        std::thread::sleep(Duration::from_millis(seed * 7919 % 1500));
        let log = worker.kill();
        wait_for_orphans(group.name());
        let expected = Expected::new(&images, &log);
        in_flight += u64::from(expected.op.is_some());
        images = on(async {
            let pool = open(pool).await;
            killed::check(pool.as_ref(), &expected, |_| ()).await
        });
        remove_foreign(group.name());
    }
    let took = begun.elapsed().as_secs();
    println!("{kills} kills in {took} s, {in_flight} of them within an operation");
    // A kill between operations proves little: most must have hit one.
    assert!(
        in_flight > kills / 2,
        "only {in_flight} kills hit an operation"
    );
}

/// Waits for lvm2's commands on the group whose caller was killed to end: they go on.
fn wait_for_orphans(group: &str) {
    let begun = Instant::now();
    while is_left_to_init(group) {
        assert!(begun.elapsed().as_secs() < 120, "a command hangs");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_left_to_init(group: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("/proc");
    processes.flatten().any(|process| {
        let read = |file| std::fs::read(process.path().join(file)).unwrap_or_default();
        let (words, stat) = (read("cmdline"), read("stat"));
        let words = String::from_utf8_lossy(&words);
        let stat = String::from_utf8_lossy(&stat);
        // After the name in parentheses: the state, and the parent.
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split(' ').nth(2));
        words.starts_with("/usr/sbin/lvm") && words.contains(group) && parent == Some("1")
    })
}

/// Removes what was placed for an adoption that did not happen.
fn remove_foreign(group: &str) {
    let named = "lv_name=~^foreign-";
    let listed = ["lvs", "--noheadings", "-o", "lv_name", "-S", named, group];
    for name in lvm(&listed).split_whitespace() {
        lvm(&["lvremove", "-y", &format!("{group}/{name}")]);
    }
}

/// Two work on one pool, each on volumes of its own. One of them is killed, again and again, and
/// started anew, while the other one goes on.
#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn two_processes_work_on_one_pool_and_are_killed() {
    const KILLS: u64 = 16;
    let group = ScratchGroup::with_pool(64 * MIB, 4 * MIB);
    let pool = thin(&group);
    let prefixes = ["a", "b"];
    let mut images = [Images::default(), Images::default()];
    let mut workers = prefixes.map(|prefix| Some(start(&pool, 1000, prefix)));
    for kill in 0..=KILLS {
        std::thread::sleep(Duration::from_millis(500 + kill * 7919 % 1500));
        let which = (kill % 2) as usize;
        let worker = workers[which].take().expect("it runs");
        let expected = Expected::new(&images[which], &worker.kill());
        wait_for_orphans(group.name());
        images[which] = on(async {
            let pool = open(&pool).await;
            let found = Images::starting_with(pool.as_ref(), prefixes[which]).await;
            expected.assert_holds(&found);
            found
        });
        workers[which] = Some(start(&pool, 2000 + kill, prefixes[which]));
    }
    for which in 0..2 {
        let worker = workers[which].take().expect("it runs");
        let expected = Expected::new(&images[which], &worker.kill());
        wait_for_orphans(group.name());
        let found = on(async {
            let pool = open(&pool).await;
            Images::starting_with(pool.as_ref(), prefixes[which]).await
        });
        expected.assert_holds(&found);
    }
    on(async {
        let pool = open(&pool).await;
        for repair in [true, false] {
            let report = pool.audit(AuditOptions { repair }).await;
            let report = report.expect("an audit");
            assert!(report.is_clean(), "{report:?}");
        }
    });
}

/// How far a command came that made a snapshot.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// lvm2 had written down what it was about to do.
    Written,
    /// The kernel had also made the thin device, but not counted the transaction.
    Made,
}

/// Puts the group into the state that a command leaves which is cut short while it makes the
/// snapshot `s`: as it was before, with the snapshot in lvm2's metadata.
fn cut_short(group: &str, cut: Cut) {
    let target = format!("{}-pool-tpool", group);
    let message = |text: &str| {
        let words = ["message", &target, "0", text];
        let done = std::process::Command::new("/usr/sbin/dmsetup")
            .args(words)
            .status();
        assert!(done.expect("dmsetup").success(), "{text}");
    };
    let field = |of: &str, field| {
        let printed = lvm(&["lvs", "--noheadings", "-o", field, &format!("{group}/{of}")]);
        printed.trim().parse::<u64>().expect("a number")
    };
    lvm(&["lvchange", "-ay", &format!("{group}/pool")]);
    let (now, id) = (field("pool", "transaction_id"), field("s", "thin_id"));
    lvm(&["lvchange", "-ay", "-K", &format!("{group}/s")]);
    lvm(&["lvchange", "-an", &format!("{group}/s")]);
    if matches!(cut, Cut::Written) {
        message(&format!("delete {id}"));
    }
    message(&format!("set_transaction_id {now} {}", now - 1));
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("a path of ASCII");
    lvm(&["vgcfgbackup", "-f", path, group]);
    let text = std::fs::read_to_string(path).expect("the group's metadata");
    let counted = format!("transaction_id = {now}\n");
    let queued = format!("{counted}message1 {{\ncreate = \"s\"\n}}\n");
    assert!(text.contains(&counted), "{text}");
    std::fs::write(path, text.replacen(&counted, &queued, 1)).expect("a file");
    lvm(&["vgcfgrestore", "--force", "-y", "-f", path, group]);
}

#[test]
#[ignore = "needs device-mapper: tests/lab/run"]
fn what_lvm2_left_undone_is_made_up_for() {
    for (cut, first) in [
        (Cut::Written, "read"),
        (Cut::Written, "create"),
        (Cut::Made, "read"),
        (Cut::Made, "create"),
        (Cut::Made, "audit"),
    ] {
        let group = ScratchGroup::with_pool(64 * MIB, 4 * MIB);
        let data = pattern(7, MIB as usize);
        let (a, s, new) = (checked_name("a"), checked_name("s"), checked_name("new"));
        on(async {
            let pool = open(&thin(&group)).await;
            let options = CreateOptions::thin(ByteSize::new(MIB));
            pool.create_volume(&a, options).await.expect("create");
            let device = pool.open_volume(&a, OpenOptions::read_write()).await;
            let device = device.expect("open");
            device.write_at(0, data.clone()).await.expect("write");
            device.flush().await.expect("flush");
            drop(device);
            let made = pool.snapshot_volume(&a, &s, Default::default()).await;
            made.expect("snapshot");
        });
        cut_short(group.name(), cut);
        on(async {
            let pool = open(&thin(&group)).await;
            let options = CreateOptions::thin(ByteSize::new(MIB));
            match first {
                "read" => assert!(read_all(pool.as_ref(), &s).await == data, "{cut:?}"),
                "create" => drop(pool.create_volume(&new, options).await.expect("create")),
                _ => {}
            }
            for repair in [true, false] {
                let report = pool.audit(AuditOptions { repair }).await.expect("audit");
                assert!(report.is_clean(), "{cut:?} {first}: {report:?}");
            }
            for name in [&a, &s] {
                assert!(
                    read_all(pool.as_ref(), name).await == data,
                    "{cut:?} {first}"
                );
            }
            pool.create_volume(&new, options).await.expect("create");
            pool.delete_volume(&s).await.expect("delete");
            assert_eq!(pool.volumes().await.expect("list").len(), 2);
        });
    }
}
