//! Many reads and writes at a time, and every byte compared.

use std::fs;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use volmux_iscsi::transport::{Connector, ScsiTransport};
use volmux_iscsi_client_rs::ClientRs;
use volmux_iscsi_initiator::Digest;

use crate::random::{Random, pool};
use crate::scsi;
use crate::server::{Server, Setup};
use crate::{MIB, connectors, within};

const SIZE: u64 = 96 * MIB;
const LONGEST: u64 = 2 * MIB;
const DEPTH: usize = 16;

/// What the disk has to hold, and who is at it.
struct Model {
    bytes: Vec<u8>,
    busy: Vec<Range<u64>>,
    random: Random,
    /// So many reads and writes are still to be done.
    left: usize,
}

struct Work {
    range: Range<u64>,
    /// Otherwise it is read.
    write: Option<Bytes>,
}

impl Model {
    /// What to do next, at a range where nothing else goes on.
    fn next(&mut self, block: u32, pool: &Bytes) -> Option<Work> {
        self.left = self.left.checked_sub(1)?;
        let block = u64::from(block);
        let range = loop {
            let length = self.random.length(LONGEST / block);
            let first = self.random.below(SIZE / block - length + 1);
            let range = first * block..(first + length) * block;
            let meets = |busy: &Range<u64>| busy.start < range.end && range.start < busy.end;
            if !self.busy.iter().any(meets) {
                break range;
            }
        };
        let length = range.end - range.start;
        self.busy.push(range.clone());
        let write = (self.random.below(2) == 0).then(|| {
            let from = self.random.below(pool.len() as u64 - length) as usize;
            pool.slice(from..from + length as usize)
        });
        Some(Work { range, write })
    }

    fn done(&mut self, work: &Work, read: &Bytes) {
        let Range { start, end } = work.range;
        let bytes = &mut self.bytes[start as usize..end as usize];
        match &work.write {
            Some(written) => bytes.copy_from_slice(written),
            None => assert!(read == bytes, "{:?} differs", work.range),
        }
        self.busy.retain(|busy| *busy != work.range);
    }
}

async fn mix(
    connector: &dyn Connector,
    server: &Server,
    digest: Digest,
    block: u32,
    operations: usize,
) {
    let mut options = server.options(1);
    options.header_digest = digest;
    options.data_digest = digest;
    let session = scsi::login(connector, options).await;
    assert_eq!(scsi::capacity(&*session).await, (SIZE, block));
    let model = Arc::new(Mutex::new(Model {
        bytes: vec![0; SIZE as usize],
        busy: Vec::new(),
        random: Random::new(u64::from(block)),
        left: operations,
    }));
    let pool = pool(2, (2 * LONGEST) as usize);
    let workers: Vec<_> = (0..DEPTH)
        .map(|_| tokio::spawn(work(session.clone(), model.clone(), pool.clone(), block)))
        .collect();
    for worker in workers {
        worker.await.expect("a worker");
    }
    let flushed = scsi::execute(&*session, 1, scsi::synchronize_cache()).await;
    assert_eq!((flushed.status, flushed.nexus), (scsi::GOOD, 1));
    session.logout().await.expect("logout");
    let stored = fs::read(server.file(1, 1)).expect("the file");
    let right = stored == model.lock().expect("lock").bytes;
    assert!(right, "the file differs");
}

async fn work(session: Arc<dyn ScsiTransport>, model: Arc<Mutex<Model>>, pool: Bytes, block: u32) {
    loop {
        let next = model.lock().expect("lock").next(block, &pool);
        let Some(work) = next else { return };
        let lba = work.range.start / u64::from(block);
        let command = match &work.write {
            Some(data) => scsi::write(lba, data.clone(), block),
            None => {
                let blocks = (work.range.end - work.range.start) / u64::from(block);
                scsi::read(lba, blocks as u32, block)
            }
        };
        let data = scsi::good(&*session, 1, command).await;
        model.lock().expect("lock").done(&work, &data);
    }
}

fn setup(digest: bool, block: u32) -> Setup {
    let value = if digest { "CRC32C" } else { "None" };
    Setup::disk(SIZE, block)
        .parameter("HeaderDigest", value)
        .parameter("DataDigest", value)
}

/// With both transports, one after the other.
async fn both(digest: Digest, block: u32) {
    for connector in connectors() {
        let server = setup(digest == Digest::Required, block).start();
        within(mix(&*connector, &server, digest, block, 600)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_512() {
    both(Digest::Off, 512).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_4096() {
    both(Digest::Off, 4096).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_512_with_digests() {
    both(Digest::Required, 512).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_4096_with_digests() {
    both(Digest::Required, 4096).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_bursts() {
    // Bursts and the first burst do not end where segments do.
    for immediate in ["Yes", "No"] {
        let setup = setup(false, 512)
            .parameter("InitialR2T", "No")
            .parameter("ImmediateData", immediate)
            .parameter("FirstBurstLength", "70000")
            .parameter("MaxBurstLength", "150000");
        let server = setup.start();
        within(mix(&ClientRs, &server, Digest::Off, 512, 300)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "20,000 operations, some minutes: cargo test -p volmux-iscsi-client-rs -- --ignored"]
async fn soak() {
    for (digest, block) in [(Digest::Off, 512), (Digest::Required, 4096)] {
        let server = setup(digest == Digest::Required, block).start();
        mix(&ClientRs, &server, digest, block, 10_000).await;
    }
}
