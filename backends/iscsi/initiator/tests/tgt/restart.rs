//! The target dies, again and again, while it is written to.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use volmux_iscsi_initiator::{Error, ErrorKind, Replay, Session};

use crate::random::{Random, pool};
use crate::{MIB, eventually, scsi, within};
use volmux_iscsi_server::Setup;

const BLOCK: u32 = 512;
/// What is written is followed in units of this size.
const UNIT: usize = 4096;
const WRITERS: usize = 16;
/// Units that each writer has for itself.
const UNITS: usize = 1024;
/// Units written at once, at most.
const AT_ONCE: u64 = 256;
const TIMES: usize = 5;
const DEADLINE: Duration = Duration::from_secs(10);
/// What a machine with much else to do may add to a deadline.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, PartialEq)]
enum Content {
    Zeros,
    /// Those bytes of the pool.
    Written(usize),
    /// The target did not say whether it wrote.
    Unknown,
}

struct Writer {
    session: Arc<Session>,
    pool: Bytes,
    replay: Replay,
    number: usize,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

/// What a writer knows in the end.
struct Written {
    contents: Vec<Content>,
    errors: Vec<Error>,
}

impl Writer {
    async fn run(self) -> Written {
        let mut random = Random::new(self.number as u64);
        let mut contents = vec![Content::Zeros; UNITS];
        let mut errors = Vec::new();
        let mut nexus = 0;
        for round in 1_u64.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let count = random.length(AT_ONCE) as usize;
            let first = random.below((UNITS - count + 1) as u64) as usize;
            let from = random.below((self.pool.len() - count * UNIT) as u64) as usize;
            let flush = round % 16 == 0;
            let mut command = if flush {
                scsi::synchronize_cache()
            } else {
                let data = self.pool.slice(from..from + count * UNIT);
                let at = (self.number * UNITS + first) * UNIT;
                scsi::write(at as u64 / u64::from(BLOCK), data, BLOCK)
            };
            command.replay = self.replay;
            let start = Instant::now();
            let answer = self.session.execute(1, command).await;
            let took = start.elapsed();
            assert!(took < DEADLINE + PATIENCE, "{took:?}: {answer:?}");
            let done = match answer {
                Ok(reply) => {
                    assert!(reply.nexus >= nexus, "from {nexus} to {}", reply.nexus);
                    nexus = reply.nexus;
                    // A repeated command may be told of the new session, though it was done in
                    // the old one.
                    assert!(
                        reply.status == scsi::GOOD || scsi::is_unit_attention(&reply),
                        "{reply:?}"
                    );
                    reply.status == scsi::GOOD
                }
                Err(error) => {
                    errors.push(error);
                    false
                }
            };
            if done {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            if !flush {
                for (number, content) in contents[first..first + count].iter_mut().enumerate() {
                    *content = match done {
                        true => Content::Written(from + number * UNIT),
                        false => Content::Unknown,
                    };
                }
            }
        }
        Written { contents, errors }
    }
}

/// Kills the target again and again under writers, and compares its file with what it said it had
/// written. Returns all errors.
async fn storm(replay: Replay) -> Vec<Error> {
    let size = (WRITERS * UNITS * UNIT) as u64;
    let mut server = Setup::disk(size, BLOCK).start();
    let mut options = server.options(1);
    options.command_timeout = DEADLINE;
    let session = Arc::new(scsi::login(options).await);
    let pool = pool(4, 4 * MIB as usize);
    let acknowledged = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let writer = Writer {
                session: session.clone(),
                pool: pool.clone(),
                replay,
                number,
                acknowledged: acknowledged.clone(),
                stop: stop.clone(),
            };
            tokio::spawn(writer.run())
        })
        .collect();
    let goes_on = || {
        let before = acknowledged.load(Ordering::Relaxed);
        let now = acknowledged.clone();
        move || now.load(Ordering::Relaxed) > before + 100
    };
    eventually("writes are acknowledged", goes_on()).await;
    for _ in 0..TIMES {
        let before = session.nexus();
        server.kill();
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.start();
        eventually("writes are acknowledged", goes_on()).await;
        assert!(session.nexus() > before, "still {before}");
    }
    stop.store(true, Ordering::Relaxed);
    let mut contents = Vec::new();
    let mut errors = Vec::new();
    for writer in writers {
        let written = writer.await.expect("a writer");
        contents.extend(written.contents);
        errors.extend(written.errors);
    }
    // Killed, so that nothing can come later; what it wrote is in the page cache.
    server.kill();
    let stored = fs::read(server.file(1, 1)).expect("the file");
    let mut known = 0;
    for (number, (unit, content)) in stored.chunks_exact(UNIT).zip(contents).enumerate() {
        let right = match content {
            Content::Zeros => unit.iter().all(|byte| *byte == 0),
            Content::Written(from) => unit == &pool[from..from + UNIT],
            Content::Unknown => continue,
        };
        assert!(right, "unit {number} was acknowledged, and differs");
        known += 1;
    }
    assert!(known > WRITERS * UNITS / 2, "only {known} units are known");
    errors
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_stored() {
    for error in within(storm(Replay::Always)).await {
        let kind = error.kind();
        assert!(
            matches!(kind, ErrorKind::Lost | ErrorKind::TimedOut),
            "{error}"
        );
        assert_eq!(error.lun(), Some(1), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_repeated_is_not() {
    let errors = within(storm(Replay::Unsent)).await;
    let lost = |error: &Error| error.kind() == ErrorKind::Lost;
    assert!(errors.iter().any(lost), "nothing was under way: {errors:?}");
    for error in errors {
        match error.kind() {
            ErrorKind::Lost => assert!(error.sent(), "{error}"),
            ErrorKind::TimedOut => {}
            _ => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_target_commands_end_in_time() {
    let mut server = Setup::disk(MIB, BLOCK).start();
    within(async {
        let mut options = server.options(1);
        options.command_timeout = Duration::from_secs(2);
        let session = scsi::login(options).await;
        server.kill();
        for _ in 0..2 {
            let start = Instant::now();
            let mut command = scsi::test_unit_ready();
            command.replay = Replay::Always;
            let error = session.execute(1, command).await.expect_err("no target");
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::Lost | ErrorKind::TimedOut),
                "{error}"
            );
            assert!(
                start.elapsed() < Duration::from_secs(15),
                "{:?}",
                start.elapsed()
            );
        }
        server.start();
        // The pause between attempts may have grown.
        let mut command = scsi::test_unit_ready();
        command.timeout = Some(Duration::from_secs(20));
        scsi::execute(&session, 1, command).await;
        scsi::settle(&session, 1).await;
        assert_eq!(session.nexus(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_hangs_is_not_waited_for() {
    let server = Setup::disk(MIB, BLOCK).start();
    within(async {
        let mut options = server.options(1);
        options.keep_alive = Duration::from_millis(500);
        options.login_timeout = Duration::from_secs(2);
        options.command_timeout = Duration::from_secs(2);
        let session = scsi::login(options).await;
        let command = scsi::write(0, vec![7; 4096].into(), BLOCK);
        scsi::good(&session, 1, command).await;
        server.freeze();
        for _ in 0..3 {
            let start = Instant::now();
            let mut command = scsi::read(0, 8, BLOCK);
            command.replay = Replay::Always;
            let answer = session.execute(1, command).await;
            let error = answer.expect_err("it hangs");
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            assert!(
                start.elapsed() < Duration::from_secs(15),
                "{:?}",
                start.elapsed()
            );
        }
        server.go_on();
        let mut command = scsi::test_unit_ready();
        command.timeout = Some(Duration::from_secs(20));
        command.replay = Replay::Always;
        scsi::execute(&session, 1, command).await;
        scsi::settle(&session, 1).await;
        assert!(session.nexus() > 1, "the connection was not given up");
        let data = scsi::good(&session, 1, scsi::read(0, 8, BLOCK)).await;
        assert_eq!(data, [7; 4096][..]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_late_does_no_harm() {
    let server = Setup::disk(8 * MIB, BLOCK).start();
    within(async {
        let mut options = server.options(1);
        // It is the command that is given up, not the connection.
        options.keep_alive = Duration::from_secs(30);
        let session = Arc::new(scsi::login(options).await);
        for _ in 0..5 {
            server.freeze();
            let megabyte = Bytes::from(vec![1; MIB as usize]);
            let commands = [
                scsi::test_unit_ready(),
                scsi::read(0, 2048, BLOCK),
                scsi::write(0, megabyte.clone(), BLOCK),
                scsi::write(2048, megabyte.slice(..512), BLOCK),
            ];
            let late: Vec<_> = commands
                .into_iter()
                .map(|mut command| {
                    command.timeout = Some(Duration::from_millis(300));
                    let session = session.clone();
                    tokio::spawn(async move { session.execute(1, command).await })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(500)).await;
            // Only now does it learn that it is to stop.
            server.go_on();
            for command in late {
                let error = command.await.expect("no panic").expect_err("it hangs");
                let kind = error.kind();
                let late = matches!(kind, ErrorKind::Lost | ErrorKind::TimedOut);
                assert!(late && error.sent(), "{error}");
            }
            // tgtd says that it has no such task, and asks for its data then: that may cost the
            // connection, but not what others do.
            for _ in 0..5 {
                let command = scsi::write(4096, megabyte.clone(), BLOCK);
                scsi::stubborn(&session, 1, command).await;
                let data = scsi::stubborn(&session, 1, scsi::read(4096, 2048, BLOCK)).await;
                assert!(data == megabyte, "it differs");
            }
        }
    })
    .await;
}
