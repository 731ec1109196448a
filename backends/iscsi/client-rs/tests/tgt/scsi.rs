//! SCSI commands (SPC-4, SBC-3), and what tgtd answers to them.

use std::sync::Arc;

use bytes::Bytes;
use volmux_iscsi::transport::{Connector, ScsiTransport};
use volmux_iscsi_initiator::{Command, Data, Options, Replay, Reply};

pub const GOOD: u8 = 0x00;
pub const CHECK_CONDITION: u8 = 0x02;
pub const RESERVATION_CONFLICT: u8 = 0x18;

/// Sense key, additional sense code, its qualifier.
pub type Sense = (u8, u8, u8);
pub const UNIT_ATTENTION: u8 = 6;

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

pub fn test_unit_ready() -> Command {
    command(&[0; 6], Data::None)
}

pub fn inquiry(length: u16) -> Command {
    let [high, low] = length.to_be_bytes();
    command(&[0x12, 0, 0, high, low, 0], Data::Read(length.into()))
}

/// INQUIRY of a page of vital product data.
pub fn vital(page: u8) -> Command {
    command(&[0x12, 1, page, 1, 0, 0], Data::Read(256))
}

pub fn read_capacity() -> Command {
    long(0x9e, 0x10, 0, 32, Data::Read(32))
}

pub fn report_luns() -> Command {
    let mut cdb = [0; 12];
    (cdb[0], cdb[8]) = (0xa0, 1);
    command(&cdb, Data::Read(256))
}

pub fn read(lba: u64, blocks: u32, block: u32) -> Command {
    long(0x88, 0, lba, blocks, Data::Read(blocks * block))
}

pub fn write(lba: u64, data: Bytes, block: u32) -> Command {
    let blocks = data.len() as u32 / block;
    long(0x8a, 0, lba, blocks, Data::Write(data))
}

pub fn synchronize_cache() -> Command {
    long(0x91, 0, 0, 0, Data::None)
}

pub fn read_keys() -> Command {
    command(&[0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0], Data::Read(256))
}

pub fn read_reservation() -> Command {
    command(&[0x5e, 1, 0, 0, 0, 0, 0, 1, 0, 0], Data::Read(256))
}

/// PERSISTENT RESERVE OUT.
pub fn reserve_out(action: u8, kind: u8, key: u64, new_key: u64) -> Command {
    let mut list = Vec::new();
    list.extend(key.to_be_bytes());
    list.extend(new_key.to_be_bytes());
    list.extend([0; 8]);
    let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    command(&cdb, Data::Write(list.into()))
}

/// What the sense data of a reply say; `None` if there are none.
pub fn sense(reply: &Reply) -> Option<Sense> {
    let sense = &reply.sense;
    match sense.first()? & 0x7f {
        0x70 | 0x71 => Some((*sense.get(2)? & 0x0f, *sense.get(12)?, *sense.get(13)?)),
        0x72 | 0x73 => Some((*sense.get(1)? & 0x0f, *sense.get(2)?, *sense.get(3)?)),
        _ => None,
    }
}

/// Whether the target only wanted to tell something; the command was not done.
pub fn is_unit_attention(reply: &Reply) -> bool {
    let key = sense(reply).map(|(key, ..)| key);
    reply.status == CHECK_CONDITION && key == Some(UNIT_ATTENTION)
}

/// A session whose LUN 1 has told all that it wanted to.
pub async fn login(connector: &dyn Connector, options: Options) -> Arc<dyn ScsiTransport> {
    let session = connector.login(options).await;
    let session = session.unwrap_or_else(|error| panic!("{}: {error}", connector.name()));
    settle(&*session, 1).await;
    session
}

/// Waits until the LUN has told all that it wanted to.
pub async fn settle(session: &dyn ScsiTransport, lun: u64) {
    stubborn(session, lun, test_unit_ready()).await;
}

/// Whatever is answered.
pub async fn execute(session: &dyn ScsiTransport, lun: u64, command: Command) -> Reply {
    let cdb = command.cdb.clone();
    let reply = session.execute(lun, command).await;
    reply.unwrap_or_else(|error| panic!("{cdb:02x?}: {error}"))
}

/// What comes with GOOD.
pub async fn good(session: &dyn ScsiTransport, lun: u64, command: Command) -> Bytes {
    let cdb = command.cdb.clone();
    let reply = execute(session, lun, command).await;
    assert_eq!(reply.status, GOOD, "{cdb:02x?}: {:02x?}", sense(&reply));
    reply.data
}

/// What comes with GOOD in the end, over new connections too.
pub async fn stubborn(session: &dyn ScsiTransport, lun: u64, mut command: Command) -> Bytes {
    command.replay = Replay::Always;
    for _ in 0..5 {
        let reply = execute(session, lun, command.clone()).await;
        if reply.status == GOOD {
            return reply.data;
        }
        assert!(is_unit_attention(&reply), "{reply:?}");
    }
    panic!("unit attention without an end");
}

pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Bytes and bytes a block of LUN 1.
pub async fn capacity(session: &dyn ScsiTransport) -> (u64, u32) {
    let data = good(session, 1, read_capacity()).await;
    let (last, block) = (be64(&data, 0), be32(&data, 8));
    ((last + 1) * u64::from(block), block)
}
