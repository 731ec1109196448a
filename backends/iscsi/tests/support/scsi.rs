//! SCSI commands (SPC-4, SBC-3), and what tgtd answers to them.

use bytes::Bytes;
use volmux_iscsi_initiator::{Command, Data, Options, Replay, Reply, Session};

pub const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
const BLOCK: u32 = 512;

fn command(cdb: &[u8], data: Data) -> Command {
    Command {
        cdb: cdb.to_vec(),
        data,
        ..Command::default()
    }
}

/// A command of 16 bytes with an address of 8 bytes and a length of 4.
fn long(code: u8, flags: u8, lba: u64, length: u32, data: Data) -> Command {
    let mut cdb = vec![code, flags];
    cdb.extend(lba.to_be_bytes());
    cdb.extend(length.to_be_bytes());
    cdb.extend([0, 0]);
    command(&cdb, data)
}

pub fn read(lba: u64, blocks: u32) -> Command {
    long(0x88, 0, lba, blocks, Data::Read(blocks * BLOCK))
}

pub fn write(lba: u64, data: Bytes) -> Command {
    let blocks = data.len() as u32 / BLOCK;
    long(0x8a, 0, lba, blocks, Data::Write(data))
}

pub fn synchronize_cache() -> Command {
    long(0x91, 0, 0, 0, Data::None)
}

/// INQUIRY: standard data, or a page of vital product data.
pub fn inquiry(page: Option<u8>) -> Command {
    let (vital, page) = page.map_or((0, 0), |page| (1, page));
    command(&[0x12, vital, page, 1, 0, 0], Data::Read(256))
}

pub fn report_luns() -> Command {
    let mut cdb = [0; 12];
    (cdb[0], cdb[8]) = (0xa0, 1);
    command(&cdb, Data::Read(256))
}

/// MODE SENSE of the caching page.
pub fn caching() -> Command {
    command(&[0x1a, 0, 8, 0, 192, 0], Data::Read(192))
}

/// A session whose LUN 1 has told all that it wanted to.
pub async fn login(options: Options) -> Session {
    let session = Session::login(options).await.expect("login");
    settle(&session).await;
    session
}

/// Waits until LUN 1 has told all that it wanted to, over new connections too.
pub async fn settle(session: &Session) {
    let mut command = command(&[0; 6], Data::None);
    command.replay = Replay::Always;
    for _ in 0..5 {
        let reply = execute(session, command.clone()).await;
        if reply.status == GOOD {
            return;
        }
        assert_eq!(
            (reply.status, key(&reply)),
            (CHECK_CONDITION, 6),
            "{reply:?}"
        );
    }
    panic!("unit attention without an end");
}

/// Whatever is answered.
pub async fn execute(session: &Session, command: Command) -> Reply {
    let cdb = command.cdb.clone();
    let reply = session.execute(1, command).await;
    reply.unwrap_or_else(|error| panic!("{cdb:02x?}: {error}"))
}

/// What comes with GOOD.
pub async fn good(session: &Session, command: Command) -> Bytes {
    let cdb = command.cdb.clone();
    let reply = execute(session, command).await;
    assert_eq!(reply.status, GOOD, "{cdb:02x?}: {reply:?}");
    reply.data
}

/// The sense key of a reply, in fixed format.
pub fn key(reply: &Reply) -> u8 {
    reply.sense.get(2).map_or(0, |byte| byte & 0x0f)
}

/// Bytes of LUN 1.
pub async fn capacity(session: &Session) -> u64 {
    let data = good(session, long(0x9e, 0x10, 0, 32, Data::Read(32))).await;
    let last = u64::from_be_bytes(data[..8].try_into().expect("eight bytes"));
    let block = u32::from_be_bytes(data[8..12].try_into().expect("four bytes"));
    (last + 1) * u64::from(block)
}

/// The serial number of LUN 1, as page 80h has it: tgt puts spaces before it, LIO a NUL behind.
pub async fn serial(session: &Session) -> String {
    let data = good(session, inquiry(Some(0x80))).await;
    String::from_utf8_lossy(&data[4..4 + usize::from(data[3])])
        .trim_matches([' ', '\0'])
        .to_owned()
}
