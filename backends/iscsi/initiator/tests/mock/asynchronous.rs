//! Asynchronous messages (RFC 7143 section 11.9).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::connection::Connection;
use crate::support::*;
use crate::target::Target;
use crate::wire::*;

const LOGOUT_WANTED: u8 = 1;
const CONNECTION_ENDS: u8 = 2;
const ALL_END: u8 = 3;

fn message(event: u8, seconds: u8) -> Pdu {
    let pdu = Pdu::new(ASYNC, FINAL).word(TAG, NONE).byte(36, event);
    // The third parameter of a wish for a logout is how long the target waits for it.
    pdu.byte(43, seconds)
}

fn see_it_off(connection: &mut Connection) -> io::Result<()> {
    let logout = connection.take(|pdu| pdu.opcode() == LOGOUT)?;
    assert!(
        logout.head[1] & 0x7f <= 1,
        "it closes the session or the connection"
    );
    connection.manage(logout)
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_out_when_asked() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login()?;
            if connection.number > 1 {
                return connection.serve();
            }
            let command = connection.command()?;
            connection.execute(&command)?;
            connection.send(message(LOGOUT_WANTED, 3))?;
            see_it_off(connection)
        });
        let session = login(&target).await;
        let reply = session.execute(LUN, read(1, 8)).await.expect("a read");
        is_good(&reply, 1, 8);
        until("it logs out", || target.seen(LOGOUT).len() == 1).await;
        works(&session).await;
        assert_eq!((target.connections(), session.nexus()), (2, 2));
    })
    .await;
}

/// It asks for a logout before it does the first command.
fn wants_a_logout_meanwhile(connection: &mut Connection) -> io::Result<()> {
    connection.login()?;
    if connection.number > 1 {
        return connection.serve();
    }
    let command = connection.command()?;
    connection.send(message(LOGOUT_WANTED, 3))?;
    connection.execute(&command)?;
    see_it_off(connection)
}

/// The answer is on its way already.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_finished_before() {
    limited(async {
        let target = Target::start(wants_a_logout_meanwhile);
        let session = login(&target).await;
        let reply = session.execute(LUN, read(1, 8)).await.expect("a read");
        is_good(&reply, 1, 8);
        until("it logs out", || target.seen(LOGOUT).len() == 1).await;
        works(&session).await;
        assert_eq!(target.connections(), 2);
    })
    .await;
}

/// A write that has still to be asked for its data.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_finished_before() {
    limited(async {
        let target = Target::start(wants_a_logout_meanwhile);
        let session = login(&target).await;
        let data = original(7, 100);
        let reply = session
            .execute(LUN, write(300, data.clone()))
            .await
            .expect("a write");
        assert_eq!((reply.status, reply.nexus), (0, 1));
        assert!(target.disk(300, 100) == data);
        works(&session).await;
    })
    .await;
}

/// A second session of the same name takes the place of the first (RFC 7143 section 6.3.5): whoever
/// connects anew while commands are with the target has them dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_connection_waits_for_the_old_one() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login()?;
            if connection.number > 1 {
                return connection.serve();
            }
            let command = connection.command()?;
            connection.send(message(LOGOUT_WANTED, 9))?;
            for _ in 0..100 {
                if connection.shared.record().connections > 1 {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            connection.execute(&command)?;
            see_it_off(connection)
        });
        let session = Arc::new(login(&target).await);
        let before = Arc::clone(&session);
        let before = tokio::spawn(async move { before.execute(LUN, read(1, 8)).await });
        until("a command", || target.seen(COMMAND).len() == 1).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let reply = session
            .execute(LUN, read(2, 8))
            .await
            .expect("the second read");
        is_good(&reply, 2, 8);
        let reply = before.await.expect("no panic").expect("the first read");
        is_good(&reply, 1, 8);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_leaves() {
    limited(async {
        for event in [CONNECTION_ENDS, ALL_END] {
            let target = Target::start(move |connection| {
                connection.login()?;
                if connection.number > 1 {
                    return connection.serve();
                }
                let command = connection.command()?;
                connection.execute(&command)?;
                connection.send(message(event, 0))
            });
            let session = login(&target).await;
            let reply = session.execute(LUN, read(1, 8)).await.expect("a read");
            is_good(&reply, 1, 8);
            until("it ends", || target.running() == 0).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            works(&session).await;
            assert_eq!((target.connections(), session.nexus()), (2, 2));
        }
    })
    .await;
}

/// News of a logical unit, and the vendor's own.
#[tokio::test(flavor = "multi_thread")]
async fn others_change_nothing() {
    limited(async {
        let target = first(|connection, command| {
            connection.send(message(0, 0).with(vec![0, 3, 0x70, 0, 6]))?;
            connection.send(message(0, 0))?;
            connection.send(message(255, 9).with(vec![0; 100]))?;
            connection.execute(command)
        });
        let session = login(&target).await;
        let reply = session.execute(LUN, read(1, 8)).await.expect("a read");
        is_good(&reply, 1, 8);
        works(&session).await;
        assert_eq!(target.connections(), 1);
    })
    .await;
}
