//! The initiator's side of the tests.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;
use volmux_iscsi_initiator::{Command, Data, Error, ErrorKind, Options, Replay, Reply, Session};

use crate::connection::Connection;
use crate::disk::{READ_10, WRITE_10};
use crate::target::{BLOCK, Target, pattern};
use crate::wire::Pdu;

pub const INITIATOR: &str = "iqn.2026-11.test.volmux:initiator";
pub const TARGET: &str = "iqn.2026-11.test.volmux:target";
pub const LUN: u64 = 3;

/// What a script does with a command.
pub type Act = fn(&mut Connection, &Pdu) -> io::Result<()>;

pub fn options(target: &Target) -> Options {
    let mut options = Options::new(target.portal(), INITIATOR);
    options.target = Some(TARGET.into());
    // Who waits for nothing is not in a hurry: the machine may have other work.
    options.login_timeout = Duration::from_secs(15);
    options.command_timeout = Duration::from_secs(15);
    options.keep_alive = Duration::from_secs(5);
    options
}

pub async fn login(target: &Target) -> Session {
    Session::login(options(target)).await.expect("a login")
}

/// Nothing may hang.
pub async fn limited<F: Future>(future: F) -> F::Output {
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, future)
        .await
        .expect("it ends within a minute")
}

/// A target that behaves.
pub fn good() -> Target {
    Target::start(|connection| {
        connection.login()?;
        connection.serve()
    })
}

/// The first command meets `act`. The connection then stays until the initiator closes it, and the
/// connections after it behave.
pub fn once<A>(act: A) -> Target
where
    A: Fn(&mut Connection, &Pdu) -> io::Result<()> + Send + Sync + 'static,
{
    Target::start(move |connection| {
        connection.login()?;
        if connection.number > 1 {
            return connection.serve();
        }
        let command = connection.command()?;
        act(connection, &command)?;
        connection.drain()
    })
}

/// The first command meets `act`, and the others are served.
pub fn first<A>(act: A) -> Target
where
    A: Fn(&mut Connection, &Pdu) -> io::Result<()> + Send + Sync + 'static,
{
    Target::start(move |connection| {
        connection.login()?;
        if connection.number == 1 {
            let command = connection.command()?;
            act(connection, &command)?;
        }
        connection.serve()
    })
}

fn transfer(code: u8, block: usize, blocks: usize, data: Data) -> Command {
    let block = u32::try_from(block).expect("a small disk").to_be_bytes();
    let blocks = u16::try_from(blocks).expect("few blocks").to_be_bytes();
    let mut cdb = vec![code, 0];
    cdb.extend_from_slice(&block);
    cdb.extend_from_slice(&[0, blocks[0], blocks[1], 0]);
    Command {
        cdb,
        data,
        ..Command::default()
    }
}

pub fn read(block: usize, blocks: usize) -> Command {
    let length = u32::try_from(blocks * BLOCK).expect("few blocks");
    transfer(READ_10, block, blocks, Data::Read(length))
}

pub fn write(block: usize, data: impl Into<Bytes>) -> Command {
    let data = data.into();
    transfer(WRITE_10, block, data.len() / BLOCK, Data::Write(data))
}

pub fn replayed(command: Command) -> Command {
    Command {
        replay: Replay::Always,
        ..command
    }
}

/// With so little time that a test can wait for its end.
pub fn hasty(command: Command) -> Command {
    let timeout = Some(Duration::from_secs(1));
    Command { timeout, ..command }
}

/// Nothing ends early, and for the rest there is some slack.
#[track_caller]
pub fn took(start: Instant, seconds: f32) {
    let taken = start.elapsed().as_secs_f32();
    assert!(
        taken > seconds - 0.05 && taken < seconds + 15.0,
        "{taken} s, not {seconds} s"
    );
}

/// What a disk that nobody wrote to has there.
pub fn original(block: usize, blocks: usize) -> Vec<u8> {
    pattern(block * BLOCK, blocks * BLOCK)
}

/// A read of `blocks` blocks that gave what is on the disk.
#[track_caller]
pub fn is_good(reply: &Reply, block: usize, blocks: usize) {
    assert_eq!(reply.status, 0, "{reply:?}");
    assert!(
        reply.data == original(block, blocks),
        "the data of block {block} is wrong"
    );
}

/// Writes and reads; far from the blocks that the tests use.
pub async fn works(session: &Session) {
    let data: Vec<u8> = pattern(77, 40 * BLOCK);
    let reply = session
        .execute(LUN, write(2000, data.clone()))
        .await
        .expect("a write works");
    assert_eq!(reply.status, 0);
    let reply = session
        .execute(LUN, read(2000, 40))
        .await
        .expect("a read works");
    assert_eq!((reply.status, reply.nexus), (0, session.nexus()));
    assert!(reply.data == data, "what was written is read");
}

/// The kind, and that the error says where it happened.
#[track_caller]
pub fn check(error: &Error, kinds: &[ErrorKind], target: &Target, lun: Option<u64>) {
    assert!(
        kinds.contains(&error.kind()),
        "not one of {kinds:?}: {error}"
    );
    assert_eq!(error.portal(), target.portal(), "{error}");
    assert_eq!(error.target(), Some(TARGET), "{error}");
    assert_eq!(error.lun(), lun, "{error}");
    let shown = error.to_string();
    let names_all = shown.contains(&target.portal()) && shown.contains(TARGET);
    assert!(names_all && shown.contains(error.reason()), "{shown}");
}

/// A command that was sent fails with one of these kinds, and the session goes on.
pub async fn fails(what: &str, target: &Target, command: Command, kinds: &[ErrorKind]) {
    println!("{what}");
    let session = login(target).await;
    let error = session.execute(LUN, command).await.expect_err(what);
    check(&error, kinds, target, Some(LUN));
    assert!(error.sent(), "{what}: the target has seen it: {error}");
    works(&session).await;
}

/// A login fails with one of these kinds.
pub async fn fails_to_login(what: &str, target: &Target, options: Options, kinds: &[ErrorKind]) {
    println!("{what}");
    let error = Session::login(options).await.expect_err(what);
    check(&error, kinds, target, None);
    assert!(!error.sent(), "{what}: no command was sent: {error}");
}

/// Runs all cases, also those after one that fails.
pub async fn each<T, F, R>(cases: impl IntoIterator<Item = T>, run: F)
where
    F: Fn(T) -> R,
    R: Future<Output = ()> + Send + 'static,
{
    let mut failed = 0;
    for case in cases {
        failed += usize::from(tokio::spawn(run(case)).await.is_err());
    }
    assert_eq!(failed, 0, "cases failed: see above");
}

/// Waits until it is so.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// All at a time, and all right.
pub async fn fifty_reads(session: &Arc<Session>) {
    let mut running = JoinSet::new();
    for block in 0..50 {
        let session = Arc::clone(session);
        running.spawn(async move {
            let reply = session.execute(LUN, read(block, 3)).await.expect("a read");
            is_good(&reply, block, 3);
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("it is right");
    }
}
