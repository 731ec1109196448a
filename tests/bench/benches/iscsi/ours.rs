//! Our client: this program, started again with other arguments.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use volmux_bench::Result;
use volmux_iscsi_initiator::{Command as Scsi, Data, Options, Reply, Session};

use crate::rivals::finish;
use crate::target::{BLOCK, FOR_CLIENTS, LUN, Target, on};
use crate::{Job, Outcome, SIZE};

const ONE_THREAD: &str = "client";
const THREADS: &str = "client-threads";

/// Does a job on a runtime of one thread.
pub fn run(job: &Job, target: &Target) -> Result<Outcome> {
    start(ONE_THREAD, job, target)
}

/// Does it on a runtime as most programs have one.
pub fn run_on_threads(job: &Job, target: &Target) -> Result<Outcome> {
    start(THREADS, job, target)
}

fn start(how: &str, job: &Job, target: &Target) -> Result<Outcome> {
    let mut command = on(FOR_CLIENTS, std::env::current_exe()?);
    command.args([how, target.portal(), target.name()]);
    let numbers = [u64::from(job.write), job.block, job.depth, job.requests];
    command.args(numbers.map(|number| number.to_string()));
    let (said, cpu) = finish(&mut command)?;
    let seconds = said.trim().parse();
    Ok(Outcome {
        requests: job.requests as f64,
        seconds: seconds.map_err(|_| format!("{command:?} printed {said}"))?,
        cpu,
    })
}

/// Does a job, if `arguments` ask for that, and prints how many seconds it took.
pub fn if_asked(arguments: &[String]) -> Option<Result<()>> {
    let [how, portal, name, write, block, depth, requests] = arguments else {
        return None;
    };
    let mut runtime = match how.as_str() {
        ONE_THREAD => Builder::new_current_thread(),
        THREADS => Builder::new_multi_thread(),
        _ => return None,
    };
    let mut work = || {
        let job = Job {
            name: "client",
            write: write == "1",
            block: block.parse()?,
            depth: depth.parse()?,
            requests: requests.parse()?,
        };
        let runtime = runtime.enable_all().build()?;
        let seconds = runtime.block_on(client(job, portal, name))?;
        println!("{seconds}");
        Ok(())
    };
    Some(work())
}

/// So many tasks, each of which has one request in flight. Takes so many seconds.
async fn client(job: Job, portal: &str, name: &str) -> Result<f64> {
    let disk = Arc::new(Disk::open(portal, name).await?);
    let next = Arc::new(AtomicU64::new(0));
    let data = Bytes::from(vec![0x5a; job.block as usize]);
    let start = Instant::now();
    let mut tasks: JoinSet<Result<(), String>> = JoinSet::new();
    for _ in 0..job.depth {
        let (disk, next, data) = (disk.clone(), next.clone(), data.clone());
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= job.requests {
                    return Ok(());
                }
                let offset = number * job.stride() % SIZE;
                match job.write {
                    true => disk.write_at(offset, data.clone()).await?,
                    false => drop(disk.read_at(offset, job.block as usize).await?),
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let seconds = start.elapsed().as_secs_f64();
    disk.session.logout().await?;
    Ok(seconds)
}

/// The disk, by READ(16) and WRITE(16) (SBC-3 sections 5.11 and 5.34).
struct Disk {
    session: Session,
}

impl Disk {
    async fn open(portal: &str, name: &str) -> Result<Disk> {
        let mut options = Options::new(portal, "iqn.2026-11.org.example:bench");
        options.target = Some(name.to_owned());
        let session = Session::login(options).await?;
        // TEST UNIT READY: what comes first tells of the login (a unit attention).
        let command = Scsi {
            cdb: vec![0; 6],
            ..Scsi::default()
        };
        session.execute(LUN, command).await?;
        Ok(Disk { session })
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, String> {
        let reply = self
            .transfer(0x88, offset, length, Data::Read(length as u32))
            .await?;
        match reply.data.len() == length {
            true => Ok(reply.data),
            false => Err(format!(
                "a read of {} bytes, not {length}",
                reply.data.len()
            )),
        }
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> Result<(), String> {
        self.transfer(0x8a, offset, data.len(), Data::Write(data))
            .await
            .map(drop)
    }

    async fn transfer(
        &self,
        code: u8,
        offset: u64,
        length: usize,
        data: Data,
    ) -> Result<Reply, String> {
        let mut cdb = vec![0; 16];
        cdb[0] = code;
        cdb[2..10].copy_from_slice(&(offset / BLOCK).to_be_bytes());
        cdb[10..14].copy_from_slice(&(length as u32 / BLOCK as u32).to_be_bytes());
        let command = Scsi {
            cdb,
            data,
            ..Scsi::default()
        };
        let reply = self.session.execute(LUN, command).await;
        match reply.map_err(|error| error.to_string())? {
            reply if reply.status == 0 => Ok(reply),
            reply => Err(format!("command {code:#04x} at {offset}: {reply:?}")),
        }
    }
}
