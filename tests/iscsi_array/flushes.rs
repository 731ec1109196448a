//! A target that can't make durable what it has confirmed, and says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use volmux::iscsi::IscsiBackend;
use volmux::iscsi::transport::{Abilities, Connector, Native, ScsiTransport};
use volmux::{ErrorKind, Registry};
use volmux_conformance::pattern;
use volmux_iscsi_initiator::{Command, DiscoveredTarget, Options, Reply, Result};

use super::*;

/// SYNCHRONIZE CACHE(10) and (16) (SBC-3 sections 5.29 and 5.30).
const FLUSHES: [u8; 2] = [0x35, 0x91];

/// What happens to the next flush.
#[derive(Debug, Default)]
struct Next {
    fails: AtomicBool,
    /// It is under way.
    begun: Notify,
    /// It may end.
    goes_on: Notify,
}

impl Next {
    /// The next one fails, once `goes_on`.
    fn fails(&self) {
        self.fails.store(true, Ordering::SeqCst);
    }
}

/// Sessions in which a flush may fail.
#[derive(Debug)]
struct Failing(Arc<Next>);

#[derive(Debug)]
struct Session {
    target: Arc<dyn ScsiTransport>,
    next: Arc<Next>,
}

#[async_trait]
impl Connector for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn abilities(&self) -> Abilities {
        Native.abilities()
    }

    async fn login(&self, options: Options) -> Result<Arc<dyn ScsiTransport>> {
        Ok(Arc::new(Session {
            target: Native.login(options).await?,
            next: self.0.clone(),
        }))
    }

    async fn discover(&self, options: &Options) -> Result<Vec<DiscoveredTarget>> {
        Native.discover(options).await
    }
}

#[async_trait]
impl ScsiTransport for Session {
    async fn execute(&self, lun: u64, command: Command) -> Result<Reply> {
        let flushes = FLUSHES.contains(&command.cdb[0]);
        if !flushes || !self.next.fails.swap(false, Ordering::SeqCst) {
            return self.target.execute(lun, command).await;
        }
        self.next.begun.notify_one();
        self.next.goes_on.notified().await;
        // Fixed format, MEDIUM ERROR, WRITE ERROR (SPC-4 section 4.5.3).
        let mut sense = [0; 18];
        (sense[0], sense[2], sense[7], sense[12]) = (0x70, 0x03, 10, 0x0c);
        Ok(Reply {
            status: 0x02,
            sense: Bytes::copy_from_slice(&sense),
            nexus: command.nexus.unwrap_or_default(),
            ..Reply::default()
        })
    }

    async fn reset_lun(&self, lun: u64) -> Result<()> {
        self.target.reset_lun(lun).await
    }

    async fn logout(&self) -> Result<()> {
        self.target.logout().await
    }
}

/// A volume of 1 MiB, with data at its beginning, in sessions in which flushes fail as `next` says.
async fn opened(scene: &Scene, next: &Arc<Next>, sharing: Sharing) -> Arc<dyn BlockDevice> {
    let backend = IscsiBackend::new(volmux::stores()).with_transport(Failing(next.clone()));
    let registry = Registry::new().with(backend);
    let pool = registry.open(&scene.url()).await.expect("the array opens");
    create(pool.as_ref(), "a", MIB).await;
    let options = OpenOptions {
        access: Access::ReadWrite,
        sharing,
        take_over: false,
    };
    let device = pool.open_volume(&n("a"), options).await.expect("open");
    device.write_at(0, pattern(1, 8192)).await.expect("write");
    device.flush().await.expect("flush");
    device
}

fn failing() -> Scene {
    let mut scene = Scene::new();
    scene.options = "&transport=failing".into();
    scene
}

/// What is in the store.
fn stored(scene: &Scene) -> Vec<u8> {
    std::fs::read(scene.data()).expect("the store's file")
}

/// A cache drops what it can't write, as that of Linux does.
fn drop_to(scene: &Scene, before: &[u8]) {
    std::fs::write(scene.data(), before).expect("the file as it was");
}

/// A write that the next flush will not make durable; what the store holds before.
async fn about_to_fail(scene: &Scene, next: &Next, device: &Arc<dyn BlockDevice>) -> Vec<u8> {
    let before = stored(scene);
    let written = device.write_at(4096, pattern(2, 8192)).await;
    written.expect("write");
    next.fails();
    before
}

/// While `first` waits for a flush that fails, and by which the target drops what it had, `second` is
/// begun, and succeeds.
async fn beside_one_that_fails(
    scene: &Scene,
    next: &Next,
    before: &[u8],
    first: JoinHandle<volmux::Result<()>>,
    second: impl FnOnce() -> JoinHandle<volmux::Result<()>>,
) {
    next.begun.notified().await;
    let second = second();
    // Long enough for it to end, if it does not wait.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    drop_to(scene, before);
    next.goes_on.notify_one();
    first.await.expect("no panic").expect_err("it was to fail");
    second.await.expect("no panic").expect("the other one");
}

#[test]
fn after_a_flush_that_failed_the_next_one_has_all_of_it_written_again() {
    let scene = failing();
    on(async {
        let next = Arc::new(Next::default());
        let device = opened(&scene, &next, Sharing::Exclusive).await;
        let before = about_to_fail(&scene, &next, &device).await;
        next.goes_on.notify_one();
        let error = device.flush().await.expect_err("it was to fail");
        assert_ne!(error.kind(), ErrorKind::Fenced, "{}", told(&error));
        assert_eq!(error.get("volume"), Some("a"), "{}", told(&error));
        drop_to(&scene, &before);
        device.flush().await.expect("flush");
        let stored = stored(&scene);
        assert_eq!(stored[..4096], pattern(1, 8192)[..4096]);
        assert!(stored[4096..12288] == pattern(2, 8192)[..], "written again");
    });
}

#[test]
fn a_flush_beside_one_that_fails_holds_what_it_was_asked_for() {
    let scene = failing();
    on(async {
        let next = Arc::new(Next::default());
        let device = opened(&scene, &next, Sharing::Exclusive).await;
        let before = about_to_fail(&scene, &next, &device).await;
        let flush = || {
            let device = device.clone();
            tokio::spawn(async move { device.flush().await })
        };
        beside_one_that_fails(&scene, &next, &before, flush(), flush).await;
        assert!(
            stored(&scene)[4096..12288] == pattern(2, 8192)[..],
            "it is durable"
        );
    });
}

#[test]
fn a_shared_write_beside_one_that_fails_is_durable_when_it_is_confirmed() {
    let scene = failing();
    on(async {
        let next = Arc::new(Next::default());
        let device = opened(&scene, &next, Sharing::Shared).await;
        let before = stored(&scene);
        next.fails();
        let write = |offset, seed| {
            let device = device.clone();
            tokio::spawn(async move { device.write_at(offset, pattern(seed, 4096)).await })
        };
        let second = || write(32768, 3);
        beside_one_that_fails(&scene, &next, &before, write(16384, 2), second).await;
        assert!(
            stored(&scene)[32768..36864] == pattern(3, 4096)[..],
            "it is durable"
        );
    });
}
