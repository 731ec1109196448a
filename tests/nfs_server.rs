//! NFS servers that stop, start, and are silent; two hosts on one volume; processes that are killed.
//! In the lab, one after the other: the server is everybody's.

use std::fs;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinHandle;
use volmux::nfs::NfsConfig;
use volmux::{
    AuditOptions, BlockDevice, ByteSize, CreateOptions, ErrorKind, Finding, FindingKind,
    OpenOptions, Pool, PoolExt, SnapshotOptions,
};
use volmux_conformance::chains::Chains;
use volmux_conformance::nfs::{Export, ROUNDS, Server, run};
use volmux_conformance::{checked_name as n, on, pattern};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

fn export(kind: &str) -> (Export, NfsConfig) {
    let export = Export::new(kind, 400 * MIB);
    fs::create_dir(export.path().join("pool")).expect("a directory on the server");
    let config = export.config("pool", "4.2");
    (export, config)
}

async fn opened(config: &NfsConfig) -> Arc<dyn Pool> {
    volmux::nfs::open(config.clone())
        .await
        .expect("open the pool")
}

/// The server does not answer as long as this is there. A test that fails meanwhile must not wait for
/// ever for what it has begun.
struct Silence;

impl Silence {
    fn new() -> Silence {
        Server::running().stop();
        Silence
    }

    /// For a while, in which this is done.
    async fn during(what: impl FnOnce() + Send + 'static) {
        let silent = tokio::task::spawn_blocking(|| {
            let _silence = Silence::new();
            what();
            std::thread::sleep(Duration::from_secs(2));
        });
        silent.await.expect("no panic");
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        Server::running().start();
    }
}

/// Writes to scattered blocks of a volume and flushes, again and again.
struct Writer {
    done: Arc<AtomicBool>,
    /// The number that was last written to each block.
    written: JoinHandle<Vec<u64>>,
}

impl Writer {
    const BLOCKS: usize = 1024;

    fn start(device: Arc<dyn BlockDevice>) -> Writer {
        let done = Arc::new(AtomicBool::new(false));
        let stop = done.clone();
        let written = tokio::spawn(async move {
            let mut written = vec![0; Writer::BLOCKS];
            for number in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // Each is a request of its own, and only the flush makes them durable.
                for i in 0..32 {
                    let block = (number as usize * 37 + i * 29) % Writer::BLOCKS;
                    let data = pattern(number, BLOCK);
                    let done = device.write_at((block * BLOCK) as u64, data).await;
                    done.expect("write");
                    written[block] = number;
                }
                device.flush().await.expect("flush");
            }
            written
        });
        Writer { done, written }
    }

    /// Stops it, and checks that all it wrote is in the volume.
    async fn check(self, pool: &dyn Pool, name: &str) {
        self.done.store(true, Ordering::Relaxed);
        let written = self.written.await.expect("no write failed");
        let device = pool.open_volume(&n(name), OpenOptions::read_only()).await;
        let device = device.expect("open");
        assert!(written.iter().any(|number| *number > 5), "it wrote");
        for (block, number) in written.into_iter().enumerate() {
            let found = device.read_at((block * BLOCK) as u64, BLOCK).await;
            let due = match number {
                0 => Bytes::from(vec![0; BLOCK]),
                number => pattern(number, BLOCK),
            };
            assert_eq!(found.expect("read"), due, "block {block}: {number}");
        }
    }
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn a_server_that_is_started_again_has_lost_nothing() {
    let (_export, config) = export("xfs");
    on(async {
        let pool = opened(&config).await;
        let options = CreateOptions::thin(ByteSize::new(4 * MIB));
        pool.create_volume(&n("a"), options).await.expect("create");
        let device = pool.open_volume(&n("a"), OpenOptions::read_write()).await;
        let writer = Writer::start(device.expect("open"));
        for round in 0..2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Silence::during(|| {}).await;
            let name = n(&format!("snapshot-{round}"));
            let made = pool
                .snapshot_volume(&n("a"), &name, SnapshotOptions::default())
                .await;
            made.expect("the server answers again");
            // The locks are those of before.
            let other = opened(&config).await;
            let second = other.open_volume(&n("a"), OpenOptions::read_write()).await;
            let error = second.map(drop).expect_err("it is open");
            assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
        }
        writer.check(&*pool, "a").await;
    });
}

/// Only the server: its clients go on, and have to send again what it had not made durable.
#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn a_server_that_loses_its_power_keeps_what_was_flushed() {
    // One file that is cloned, and a chain.
    for kind in ["xfs", "ext4"] {
        let (export, config) = export(kind);
        let export = Arc::new(export);
        on(async {
            let pool = opened(&config).await;
            let options = CreateOptions::thin(ByteSize::new(4 * MIB));
            pool.create_volume(&n("a"), options).await.expect("create");
            let device = pool.open_volume(&n("a"), OpenOptions::read_write()).await;
            let writer = Writer::start(device.expect("open"));
            for round in 0..2u64 {
                tokio::time::sleep(Duration::from_millis(700 + 130 * round)).await;
                let (a, name) = (n("a"), n(&format!("s-{round}")));
                let made = pool.snapshot_volume(&a, &name, Default::default());
                made.await.expect("snapshot");
                tokio::time::sleep(Duration::from_millis(170 * round)).await;
                let server = export.clone();
                Silence::during(move || server.lose_power()).await;
            }
            writer.check(&*pool, "a").await;
            let repair = AuditOptions { repair: true };
            let report = pool.audit(repair).await.expect("audit");
            assert!(report.is_clean(), "{report:?}");
            assert_eq!(pool.volumes().await.expect("list").len(), 3);
        });
        Chains::closed(&export.path().join("pool")).check();
    }
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn a_silent_server_is_told_in_time() {
    let (_export, mut config) = export("ext4");
    on(async {
        // Until the server, which may have been started just now, lets clients open files.
        let pool = opened(&config).await;
        let options = CreateOptions::thin(ByteSize::new(4 * MIB));
        pool.create_volume(&n("a"), options).await.expect("create");
    });
    config.timeout = Some(3);
    on(async {
        let pool = opened(&config).await;
        let device = pool.open_volume(&n("a"), OpenOptions::read_write()).await;
        let device = device.expect("open");
        device.write_at(0, pattern(1, BLOCK)).await.expect("write");
        device.flush().await.expect("flush");
        let silence = Silence::new();
        let begun = Instant::now();
        let looked = pool.volume(&n("a")).await.map(drop);
        let flush = async {
            device.write_at(0, pattern(2, BLOCK)).await?;
            device.flush().await
        };
        let opening = volmux::nfs::open(config.clone());
        let listed = pool.volumes();
        let (flushed, opening, listed) = tokio::join!(flush, opening, listed);
        for (what, result) in [
            ("look", looked),
            ("flush", flushed),
            ("open", opening.map(drop)),
            ("list", listed.map(drop)),
        ] {
            let error = result.expect_err(what);
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{what}: {error:?}");
            assert!(
                error.to_string().contains("has not answered for 3 s"),
                "{error}"
            );
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{:?}",
            begun.elapsed()
        );
        drop(silence);
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            match pool.volume(&n("a")).await {
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < end => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        // What was begun has ended meanwhile, in its order.
        while let Err(error) = device.write_at(0, pattern(3, BLOCK)).await {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        }
        let found = device.read_at(0, BLOCK).await.expect("read");
        assert_eq!(found, pattern(3, BLOCK));
    });
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn versions_that_the_server_does_not_have_are_unsupported() {
    let (_export, config) = export("ext4");
    Server::running().stop();
    Server::running().start_without("4.2");
    let refused = on(async { volmux::nfs::open(config.clone()).await });
    let mut any = config.clone();
    any.vers = None;
    let taken = on(async { volmux::nfs::open(any).await.map(|pool| pool.capabilities()) });
    Server::running().stop();
    Server::running().start();
    let error = refused.map(drop).expect_err("the server has no 4.2");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    let capabilities = taken.expect("the client takes what there is");
    assert_eq!(capabilities.thick, volmux::Support::None);
}

/// Another host: a network of its own, with a cable to this one, and another name. It ends with this.
struct Host {
    number: u8,
}

impl Host {
    fn new(number: u8) -> Host {
        let (space, here, there) = (
            format!("host{number}"),
            format!("to{number}"),
            format!("from{number}"),
        );
        run("modprobe", &["veth"]);
        run("ip", &["netns", "add", &space]);
        run(
            "ip",
            &[
                "link", "add", &here, "type", "veth", "peer", "name", &there, "netns", &space,
            ],
        );
        run(
            "ip",
            &["addr", "add", &format!("10.99.{number}.1/24"), "dev", &here],
        );
        run("ip", &["link", "set", &here, "up"]);
        let host = Host { number };
        host.run(&["ip", "link", "set", "lo", "up"]);
        host.run(&[
            "ip",
            "addr",
            "add",
            &format!("10.99.{number}.2/24"),
            "dev",
            &there,
        ]);
        host.run(&["ip", "link", "set", &there, "up"]);
        host
    }

    /// How the server is called from there.
    fn server(&self) -> String {
        format!("10.99.{}.1", self.number)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        let name = format!(
            "echo host{} >/proc/sys/kernel/hostname; exec \"$@\"",
            self.number
        );
        command.args(["netns", "exec", &format!("host{}", self.number)]);
        command
            .args(["unshare", "--uts", "sh", "-c", &name, "sh"])
            .args(args);
        command
    }

    fn run(&self, args: &[&str]) {
        let status = self.command(args).status().expect("it starts");
        assert!(status.success(), "{args:?}");
    }

    /// Has `nfs-host` do this there.
    fn start(&self, what: &str, export: &str) -> Child {
        let program = env!("CARGO_BIN_EXE_nfs-host");
        let mut command = self.command(&[program, what, &self.server(), export]);
        command.spawn().expect("it starts")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The lab forgets it anyway.
        let _ = Command::new("ip")
            .args(["netns", "delete", &format!("host{}", self.number)])
            .status();
    }
}

/// A pool that this host and another one have.
struct Scene {
    config: NfsConfig,
    host: Host,
    pool: Arc<dyn Pool>,
    export: Export,
}

impl Scene {
    async fn new(number: u8) -> Scene {
        Scene::on(number, "xfs").await
    }

    async fn on(number: u8, kind: &str) -> Scene {
        let (export, config) = export(kind);
        let host = Host::new(number);
        export.also_to(&format!("10.99.{number}.0/24"));
        Scene {
            pool: opened(&config).await,
            config,
            host,
            export,
        }
    }

    async fn create(&self, name: &str) {
        let options = CreateOptions::thin(ByteSize::new(MIB));
        let made = self.pool.create_volume(&n(name), options).await;
        made.expect("create");
    }

    async fn open(&self, name: &str, options: OpenOptions) -> Arc<dyn BlockDevice> {
        let opened = self.pool.open_volume(&n(name), options).await;
        opened.expect("open")
    }

    /// Has the other host do this.
    fn start(&self, what: &str) -> Child {
        self.host.start(what, &self.config.export)
    }
}

/// Waits for what must succeed.
async fn ended(mut child: Child) {
    let status = tokio::task::spawn_blocking(move || child.wait()).await;
    let status = status.expect("no panic").expect("it ends");
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn two_hosts_never_write_one_volume_at_once() {
    on(async {
        let scene = Scene::new(1).await;
        scene.create("a").await;
        let other = scene.start("count");
        let here = Command::new(env!("CARGO_BIN_EXE_nfs-host"))
            .args(["count", &scene.config.host, &scene.config.export])
            .spawn();
        ended(here.expect("it starts")).await;
        ended(other).await;
        let device = scene.open("a", OpenOptions::read_only()).await;
        let found = device.read_at(0, 8).await.expect("read");
        assert_eq!(found[..], (2 * ROUNDS).to_le_bytes());
    });
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn a_resize_by_another_host_is_seen_by_who_has_the_volume_open() {
    on(async {
        let scene = Scene::new(4).await;
        scene.create("a").await;
        let device = scene.open("a", OpenOptions::read_write()).await;
        device.write_at(0, pattern(1, BLOCK)).await.expect("write");
        assert_eq!(device.refresh().await.expect("refresh"), MIB);
        ended(scene.start("grow")).await;
        assert_eq!(device.refresh().await.expect("refresh"), 2 * MIB);
        let end = 2 * MIB - BLOCK as u64;
        device
            .write_at(end, pattern(2, BLOCK))
            .await
            .expect("write");
        device.flush().await.expect("flush");
        for (at, seed) in [(0, 1), (end, 2)] {
            let found = device.read_at(at, BLOCK).await.expect("read");
            assert_eq!(found, pattern(seed, BLOCK));
        }
    });
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn a_volume_is_taken_from_another_host() {
    on(async {
        // Where files share blocks, and where a snapshot has made the volume a chain.
        for (number, kind) in [(5, "xfs"), (6, "ext4")] {
            let scene = Scene::on(number, kind).await;
            scene.create("a").await;
            scene.create("told").await;
            if kind == "ext4" {
                let (a, s) = (n("a"), n("s"));
                let made = scene.pool.snapshot_volume(&a, &s, Default::default());
                made.await.expect("snapshot");
            }
            let other = scene.start("hold");
            let number_in = async |name: &str| {
                let reader = scene.open(name, OpenOptions::read_only()).await;
                let found = reader.read_at(0, 8).await.expect("read");
                u64::from_le_bytes(found[..].try_into().expect("eight bytes"))
            };
            while number_in("told").await < 5 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let a = n("a");
            let refused = scene.pool.open_volume(&a, OpenOptions::read_write());
            let refused = refused.await.map(drop).expect_err("the other host has it");
            assert_eq!(refused.kind(), ErrorKind::Busy, "{refused:?}");
            let options = OpenOptions {
                take_over: true,
                ..OpenOptions::read_write()
            };
            let device = scene.open("a", options).await;
            let found = device.read_at(0, 8).await.expect("read");
            let there = u64::from_le_bytes(found[..].try_into().expect("eight bytes"));
            device
                .write_at(BLOCK as u64, pattern(1, BLOCK))
                .await
                .expect("write");
            device.flush().await.expect("flush");
            // It ends well only if it was told that it is fenced.
            ended(other).await;
            let told = number_in("told").await;
            assert!(
                there == told || there == told + 1,
                "{there}, and told {told}"
            );
            let found = device.read_at(0, 8).await.expect("read");
            assert_eq!(found[..], there.to_le_bytes(), "nothing comes afterwards");
            let found = device.read_at(BLOCK as u64, BLOCK).await.expect("read");
            assert_eq!(found, pattern(1, BLOCK));
        }
    });
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn what_another_host_does_is_seen_at_once() {
    on(async {
        let scene = Scene::new(2).await;
        scene.create("mine").await;
        let pool = &scene.pool;
        let other = scene.start("change");
        let mut seen = [false; 2];
        let end = Instant::now() + Duration::from_secs(300);
        // At least so often, and until it is certain that both are at it.
        for round in 0.. {
            if round >= 40 && (seen == [true; 2] || Instant::now() > end) {
                break;
            }
            // What they make may look like a leftover for a moment; they then make it again.
            let repair = AuditOptions { repair: true };
            let report = pool.audit(repair).await.expect("audit");
            let leftover = |finding: &Finding| finding.kind == FindingKind::Leftover;
            let fine = report.findings.iter().all(leftover);
            assert!(fine, "round {round}: {report:?}");
            seen[0] |= pool.volume(&n("there")).await.is_ok();
            seen[1] |= pool.volume(&n("renamed")).await.is_ok();
            let all = pool.volumes().await.expect("list");
            assert!(all.iter().any(|volume| volume.name == n("mine")));
        }
        assert_eq!(seen, [true; 2], "what the other host made was seen");
        scene.create("stop").await;
        ended(other).await;
        let left = pool.volumes().await.expect("list");
        assert_eq!(left.len(), 2, "{left:?}");
    });
}

#[test]
#[ignore = "needs the kernel's NFS server: tests/lab/run"]
fn whoever_is_killed_leaves_a_pool_that_audits_clean() {
    on(async {
        let scene = Scene::new(3).await;
        scene.create("mine").await;
        let device = scene.open("mine", OpenOptions::read_write()).await;
        device.write_at(0, pattern(7, BLOCK)).await.expect("write");
        device.flush().await.expect("flush");
        drop(device);
        let pool = &scene.pool;
        for kill in 0..10u64 {
            let mut other = scene.start("change");
            tokio::time::sleep(Duration::from_millis(2500 + kill * 37)).await;
            // `ip` and `sh` have become the program.
            other.kill().expect("kill");
            other.wait().expect("it is dead");
            let repair = AuditOptions { repair: true };
            pool.audit(repair).await.expect("audit");
            for name in ["there", "renamed", "taken"] {
                pool.delete_volume(&n(name)).await.expect("delete");
            }
            let report = pool.audit(AuditOptions::default()).await.expect("audit");
            assert!(report.findings.is_empty(), "kill {kill}: {report:?}");
            let left = pool.volumes().await.expect("list");
            assert_eq!(left.len(), 1, "{left:?}");
        }
        let device = scene.open("mine", OpenOptions::read_only()).await;
        let found = device.read_at(0, BLOCK).await.expect("read");
        assert_eq!(found, pattern(7, BLOCK));
        drop(device);
        let data = scene.export.path().join("pool/data");
        let files = fs::read_dir(&data).expect("list").count();
        assert_eq!(files, 1, "nothing is left on the server");
    });
}
