//! CRC32C digests, which tgtd has to be told to take part in.

use volmux_iscsi::transport::ScsiTransport;
use volmux_iscsi_initiator::{Digest, ErrorKind};

use crate::server::Setup;
use crate::{MIB, connectors, random, scsi, within};

const BLOCK: u32 = 512;

fn setup(header: bool, data: bool) -> Setup {
    let value = |on: bool| if on { "CRC32C" } else { "None" };
    Setup::disk(8 * MIB, BLOCK)
        .parameter("HeaderDigest", value(header))
        .parameter("DataDigest", value(data))
}

fn wanted(on: bool) -> Digest {
    if on { Digest::Required } else { Digest::Off }
}

async fn io_of_many_sizes(session: &dyn ScsiTransport) {
    let pool = random::pool(1, 4 * MIB as usize);
    let sizes = [
        1, 2, 15, 16, 17, 127, 128, 129, 511, 512, 513, 1024, 2048, 4095,
    ];
    for (number, blocks) in sizes.into_iter().enumerate() {
        let length = (blocks * BLOCK) as usize;
        let written = pool.slice(number..number + length);
        let lba = number as u64 * 37;
        scsi::good(session, 1, scsi::write(lba, written.clone(), BLOCK)).await;
        let data = scsi::good(session, 1, scsi::read(lba, blocks, BLOCK)).await;
        assert!(data == written, "{blocks} blocks differ");
    }
    // Lengths that are padded.
    let whole = scsi::good(session, 1, scsi::inquiry(64)).await;
    for length in [5, 6, 7, 36, 37, 61] {
        let data = scsi::good(session, 1, scsi::inquiry(length)).await;
        assert_eq!(data, whole[..usize::from(length)]);
    }
    // Sense data come as data too.
    let reply = scsi::execute(session, 1, scsi::read(8 * MIB / 512, 1, BLOCK)).await;
    assert_eq!(scsi::sense(&reply), Some((5, 0x21, 0)));
    assert_eq!(reply.nexus, 1);
}

#[tokio::test]
async fn all_combinations_work() {
    for (header, data) in [(false, true), (true, false), (true, true)] {
        for connector in connectors() {
            let server = setup(header, data).start();
            within(async {
                let mut options = server.options(1);
                options.header_digest = wanted(header);
                options.data_digest = wanted(data);
                let session = scsi::login(&*connector, options).await;
                io_of_many_sizes(&*session).await;
                session.logout().await.expect("logout");
            })
            .await;
        }
    }
}

#[tokio::test]
async fn what_is_preferred_is_not_insisted_on() {
    for (header, data) in [(false, false), (true, false), (false, true), (true, true)] {
        for connector in connectors() {
            let server = setup(header, data).start();
            within(async {
                let mut options = server.options(1);
                options.header_digest = Digest::Preferred;
                options.data_digest = Digest::Preferred;
                io_of_many_sizes(&*scsi::login(&*connector, options).await).await;
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_target_without_what_is_required_is_refused() {
    for (header, data) in [(true, false), (false, true)] {
        for connector in connectors() {
            let server = setup(!header, !data).start();
            let mut options = server.options(1);
            options.header_digest = wanted(header);
            options.data_digest = wanted(data);
            let error = within(connector.login(options))
                .await
                .expect_err("no such digest");
            assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        }
    }
}
