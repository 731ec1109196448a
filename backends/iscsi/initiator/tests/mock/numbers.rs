//! StatSN: a gap means that an answer is missing.

use volmux_iscsi_initiator::ErrorKind;

use crate::support::*;
use crate::target::Target;
use crate::wire::*;

#[tokio::test(flavor = "multi_thread")]
async fn stat_sn_is_watched() {
    let acts: [(&str, Act); 5] = [
        ("one is left out", |connection, command| {
            connection.stat_sn = connection.stat_sn.wrapping_add(1);
            connection.execute(command)
        }),
        ("a thousand are", |connection, command| {
            connection.stat_sn = connection.stat_sn.wrapping_add(1000);
            connection.execute(command)
        }),
        ("one comes again", |connection, command| {
            connection.stat_sn = connection.stat_sn.wrapping_sub(1);
            connection.execute(command)
        }),
        ("far behind", |connection, command| {
            let right = connection.stat_sn;
            connection.stat_sn = right.wrapping_sub(0x4000_0000);
            connection.execute(command)?;
            connection.stat_sn = right;
            Ok(())
        }),
        ("one is left out in a response", |connection, command| {
            connection.stat_sn = connection.stat_sn.wrapping_add(1);
            connection.status(command, 8, &[])
        }),
    ];
    limited(async {
        each(acts, |(what, act)| async move {
            let kinds = [ErrorKind::Protocol, ErrorKind::Lost];
            fails(what, &once(act), read(1, 8), &kinds).await;
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_come_once() {
    limited(async {
        let target = once(|connection, command| {
            connection.execute(command)?;
            connection.execute(command)
        });
        let session = login(&target).await;
        // Whether the second answer comes before or after the first one is taken is by chance.
        let reply = session
            .execute(LUN, read(1, 8))
            .await
            .expect("the first answer is good");
        is_good(&reply, 1, 8);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        works(&session).await;
        assert_eq!(target.connections(), 2);
    })
    .await;
}

/// Serial numbers wrap around, those of the target within the first commands of every test.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_wrap_around() {
    limited(async {
        let target = Target::start(|connection| {
            connection.stat_sn = 0xffff_fff0;
            connection.login()?;
            connection.serve()
        });
        let session = login(&target).await;
        for _ in 0..20 {
            works(&session).await;
        }
        assert_eq!(target.connections(), 1);
        let answered = target
            .seen(COMMAND)
            .last()
            .expect("commands")
            .pdu
            .get(EXPECTED);
        assert!(answered < 0x100, "{answered:#x}");
    })
    .await;
}
