//! Somebody who writes, and whether anything is written.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;
use volmux_iscsi_initiator::Session;

use crate::scsi;

const DEPTH: u64 = 16;
pub const SIZE: u64 = 16 << 20;

/// Writes at depth 16 without an end, each time something else, until the session is at its end.
pub struct Writers {
    tasks: Vec<JoinHandle<()>>,
    written: Arc<AtomicU64>,
}

impl Writers {
    /// They write already.
    pub async fn start(session: &Arc<Session>) -> Writers {
        let written = Arc::new(AtomicU64::new(0));
        let tasks =
            (0..DEPTH).map(|number| tokio::spawn(write(session.clone(), number, written.clone())));
        let writers = Writers {
            tasks: tasks.collect(),
            written,
        };
        while writers.written.load(Ordering::Relaxed) < 2 * DEPTH {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        writers
    }

    /// They have learnt that they are shut out.
    pub async fn end(self) {
        for task in self.tasks {
            task.await.expect("no panic");
        }
    }
}

async fn write(session: Arc<Session>, number: u64, written: Arc<AtomicU64>) {
    for round in 0_u64.. {
        let length = if round.is_multiple_of(2) {
            4096
        } else {
            256 << 10
        };
        let data = [number, round].map(u64::to_le_bytes).concat();
        let data = Bytes::from(data.repeat(length / 16));
        let lba = (number * SIZE / DEPTH + round % 4 * (256 << 10)) / 512;
        match session.execute(1, scsi::write(lba, data)).await {
            Ok(reply) if reply.status == scsi::GOOD => {}
            // LIO takes the logical unit away before it ends the session.
            Ok(reply) => {
                assert_eq!(scsi::key(&reply), 5, "{reply:?}");
                return;
            }
            Err(_) => return,
        }
        written.fetch_add(1, Ordering::Relaxed);
    }
}

pub fn hash(path: &Path) -> [u8; 32] {
    Sha256::digest(std::fs::read(path).expect("the file")).into()
}

/// The file does not change any more.
pub async fn still(path: &Path, what: &str) {
    let before = hash(path);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(before == hash(path), "written after {what}");
}
