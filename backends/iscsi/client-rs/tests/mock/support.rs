//! The initiator's side.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use volmux_iscsi::transport::{Connector, ScsiTransport};
use volmux_iscsi_client_rs::ClientRs;
use volmux_iscsi_initiator::{Command, Data, Error, ErrorKind, Options, Reply};

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
    options.login_timeout = Duration::from_secs(15);
    options.command_timeout = Duration::from_secs(15);
    options
}

pub async fn login(target: &Target) -> Arc<dyn ScsiTransport> {
    ClientRs.login(options(target)).await.expect("a login")
}

/// Nothing may hang.
pub async fn limited<F: Future>(future: F) -> F::Output {
    let limit = Duration::from_secs(60);
    let done = tokio::time::timeout(limit, future).await;
    done.expect("it ends within a minute")
}

/// The first command of the first session meets `act`, and the others are served.
pub fn first<A>(act: A) -> Target
where
    A: Fn(&mut Connection, &Pdu) -> io::Result<()> + Send + Sync + 'static,
{
    Target::start(move |connection| {
        connection.login()?;
        // Each login is rehearsed on a connection before it.
        if connection.number == 2 {
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

/// A read of `blocks` blocks that gave what is on the disk.
#[track_caller]
pub fn is_good(reply: &Reply, block: usize, blocks: usize) {
    assert_eq!(reply.status, 0, "{reply:?}");
    let right = reply.data == pattern(block * BLOCK, blocks * BLOCK);
    assert!(right, "the data of block {block} is wrong");
}

/// Writes and reads; far from the blocks that the tests use.
pub async fn works(session: &dyn ScsiTransport) {
    let data = pattern(77, 40 * BLOCK);
    let reply = session.execute(LUN, write(2000, data.clone())).await;
    assert_eq!(reply.expect("a write works").status, 0);
    let reply = session.execute(LUN, read(2000, 40)).await;
    assert!(
        reply.expect("a read works").data == data,
        "what was written is read"
    );
}

/// A command that was sent fails with this kind, and the session goes on.
pub async fn fails(what: &str, act: Act, command: Command, kind: ErrorKind) -> Error {
    println!("{what}");
    let target = first(act);
    let session = login(&target).await;
    let error = session.execute(LUN, command).await.expect_err(what);
    assert_eq!(error.kind(), kind, "{what}: {error}");
    assert!(error.sent(), "{what}: the target has seen it: {error}");
    let place = (error.portal(), error.target(), error.lun());
    assert_eq!(place, (&*target.portal(), Some(TARGET), Some(LUN)));
    works(&*session).await;
    error
}
