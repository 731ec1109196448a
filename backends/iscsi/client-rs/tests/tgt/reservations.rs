//! Persistent reservations: who else may write.

use crate::server::{STRANGER, Setup};
use crate::{MIB, connectors, scsi, within};

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const WRITE_EXCLUSIVE: u8 = 1;
const KEY: u64 = 0x0123_4567_89ab_cdef;

#[tokio::test]
async fn a_reservation_keeps_others_from_writing() {
    for connector in connectors() {
        let server = Setup::disk(MIB, 512).start();
        within(async {
            let holder = scsi::login(&*connector, server.options(1)).await;
            let mut options = server.options(1);
            options.initiator = STRANGER.into();
            let other = scsi::login(&*connector, options).await;
            let one = || scsi::write(0, vec![1; 512].into(), 512);

            scsi::good(&*holder, 1, scsi::reserve_out(REGISTER, 0, 0, KEY)).await;
            let keys = scsi::good(&*holder, 1, scsi::read_keys()).await;
            assert_eq!((scsi::be32(&keys, 4), scsi::be64(&keys, 8)), (8, KEY));
            let reserve = scsi::reserve_out(RESERVE, WRITE_EXCLUSIVE, KEY, 0);
            scsi::good(&*holder, 1, reserve).await;
            let held = scsi::good(&*other, 1, scsi::read_reservation()).await;
            assert_eq!((scsi::be64(&held, 8), held[21]), (KEY, WRITE_EXCLUSIVE));

            scsi::good(&*holder, 1, one()).await;
            // The second is more than goes with the command at once.
            for length in [512, MIB as usize] {
                let command = scsi::write(0, vec![2; length].into(), 512);
                let reply = scsi::execute(&*other, 1, command).await;
                assert_eq!(reply.status, scsi::RESERVATION_CONFLICT, "{reply:?}");
            }
            let data = scsi::good(&*other, 1, scsi::read(0, 1, 512)).await;
            assert_eq!(data, [1; 512][..]);

            let release = scsi::reserve_out(RELEASE, WRITE_EXCLUSIVE, KEY, 0);
            scsi::good(&*holder, 1, release).await;
            scsi::settle(&*other, 1).await;
            scsi::good(&*other, 1, one()).await;
        })
        .await;
    }
}
