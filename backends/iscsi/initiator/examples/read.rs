//! Reads from a logical unit and tells how fast: `read PORTAL TARGET [LUN [DEPTH [BYTES [SECONDS]]]]`.
//! It writes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use volmux_iscsi_initiator::{Command, Data, Options, Replay, Reply, Session, discover};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [portal, rest @ ..] = &args[..] else {
        return Err("usage: read PORTAL [TARGET [LUN [DEPTH [BYTES [SECONDS]]]]]".into());
    };
    let mut options = Options::new(portal, "iqn.2026-11.org.volmux:example");
    let Some(target) = rest.first() else {
        for target in discover(&options).await? {
            println!("{}\t{}", target.name, target.portals.join(" "));
        }
        return Ok(());
    };
    options.target = Some(target.clone());
    let number = |at: usize, default: u64| rest.get(at).map_or(Ok(default), |text| text.parse());
    let (lun, depth) = (number(1, 0)?, number(2, 32)?);
    let (bytes, seconds) = (number(3, 4096)?, number(4, 5)?);

    let session = Arc::new(Session::login(options).await?);
    let mut capacity = vec![0x9e, 0x10];
    capacity.extend([0; 8]);
    capacity.extend(32_u32.to_be_bytes());
    capacity.extend([0; 2]);
    let found = good(&session, lun, capacity, 32).await?;
    let field = |at: usize| found.data[at..at + 4].try_into().map(u32::from_be_bytes);
    let (last, block) = (
        u64::from(field(0)?) << 32 | u64::from(field(4)?),
        u64::from(field(8)?),
    );
    println!("{} bytes in blocks of {block}", (last + 1) * block);

    let count = (bytes / block).max(1);
    let (done, begun) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let readers = (0..depth).map(|reader| {
        let (session, done) = (session.clone(), done.clone());
        tokio::spawn(async move {
            let mut random = reader * 0x9e37_79b9_7f4a_7c15 + 1;
            while begun.elapsed() < Duration::from_secs(seconds) {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let at = (random >> 16) % ((last + 1) / count) * count;
                let mut read = vec![0x88, 0];
                read.extend(at.to_be_bytes());
                read.extend((count as u32).to_be_bytes());
                read.extend([0; 2]);
                good(&session, lun, read, (count * block) as u32).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), Failure>(())
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await??;
    }
    let (done, time) = (done.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
    println!(
        "{done} reads of {} bytes, {:.0} a second",
        count * block,
        done as f64 / time
    );
    if let Some(session) = Arc::into_inner(session) {
        session.logout().await?;
    }
    Ok(())
}

/// Again after a unit attention, which tells of something that happened before.
async fn good(session: &Session, lun: u64, cdb: Vec<u8>, bytes: u32) -> Result<Reply, Failure> {
    let command = Command {
        cdb,
        data: Data::Read(bytes),
        replay: Replay::Always,
        ..Command::default()
    };
    for _ in 0..3 {
        let reply = session.execute(lun, command.clone()).await?;
        match (reply.status, reply.sense.get(2).map(|key| key & 0x0f)) {
            (0, _) => return Ok(reply),
            (2, Some(6)) => {}
            (status, _) => {
                return Err(format!("status {status:#04x}, sense {:x?}", reply.sense).into());
            }
        }
    }
    Err("one unit attention after the other".into())
}
