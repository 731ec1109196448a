//! Targets that are elsewhere (RFC 7143 section 11.13.5, status class 1).

use std::sync::{Arc, Mutex};

use volmux_iscsi_initiator::{ErrorKind, Session};

use crate::negotiation::Terms;
use crate::support::*;
use crate::target::Target;
use crate::wire::*;

const TEMPORARY: u16 = 0x0101;
const PERMANENT: u16 = 0x0102;

/// Every connection is sent there.
fn elsewhere(status: u16, address: String) -> Target {
    Target::start(move |connection| {
        connection.refuse(status, &text(&[("TargetAddress", &address)]))?;
        connection.drain()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn is_followed() {
    limited(async {
        for status in [TEMPORARY, PERMANENT] {
            for group in ["", ",1"] {
                let target = good();
                let before = elsewhere(status, target.portal() + group);
                let session = Session::login(options(&before)).await.expect("a login");
                let reply = session.execute(LUN, read(1, 8)).await.expect("a read");
                is_good(&reply, 1, 8);
                works(&session).await;
                assert_eq!((before.connections(), target.connections()), (1, 1));
            }
        }
    })
    .await;
}

/// The connection breaks where it was sent to.
#[tokio::test(flavor = "multi_thread")]
async fn is_followed_again() {
    limited(async {
        let target = Target::start(|connection| {
            connection.login()?;
            if connection.number == 1 {
                return connection.command().map(drop);
            }
            connection.serve()
        });
        let before = elsewhere(TEMPORARY, target.portal());
        let session = Session::login(options(&before)).await.expect("a login");
        let reply = session
            .execute(LUN, replayed(read(1, 8)))
            .await
            .expect("a read");
        is_good(&reply, 1, 8);
        assert_eq!((before.connections(), target.connections()), (2, 2));
    })
    .await;
}

/// Where another portal group answers, the old session is not ended by the new one: what was sent may
/// be done there yet, and later than what is sent now.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_repeated_in_another_group() {
    limited(async {
        for (group, repeated) in [("1", true), ("2", false)] {
            let target = Target::start(move |connection| {
                if connection.number == 1 {
                    connection.login()?;
                    return connection.command().map(drop);
                }
                connection.login_on(&Terms {
                    forced: vec![("TargetPortalGroupTag", group)],
                    ..Terms::default()
                })?;
                connection.serve()
            });
            let session = login(&target).await;
            match session.execute(LUN, replayed(read(1, 8))).await {
                Ok(reply) => assert!(repeated, "{reply:?}"),
                Err(error) => {
                    assert!(!repeated && error.sent(), "{error}");
                    check(&error, &[ErrorKind::Lost], &target, Some(LUN));
                }
            }
            works(&session).await;
            assert_eq!((target.connections(), session.nexus()), (2, 2));
        }
    })
    .await;
}

const KINDS: [ErrorKind; 4] = [
    ErrorKind::Protocol,
    ErrorKind::Refused,
    ErrorKind::Lost,
    ErrorKind::NotFound,
];

#[tokio::test(flavor = "multi_thread")]
async fn does_not_go_in_circles() {
    limited(async {
        let address = Arc::new(Mutex::new(String::new()));
        let own = Arc::clone(&address);
        let target = Target::start(move |connection| {
            let address = own.lock().expect("nobody panics with it").clone();
            connection.refuse(TEMPORARY, &text(&[("TargetAddress", &address)]))?;
            connection.drain()
        });
        *address.lock().expect("nobody panics with it") = target.portal();
        fails_to_login("to itself", &target, options(&target), &KINDS).await;
        assert!(
            target.connections() <= 20,
            "{} connections",
            target.connections()
        );

        let back = elsewhere(TEMPORARY, target.portal());
        *address.lock().expect("nobody panics with it") = back.portal();
        fails_to_login("to and fro", &target, options(&target), &KINDS).await;
        assert!(
            target.connections() <= 40,
            "{} connections",
            target.connections()
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_nowhere() {
    limited(async {
        for address in ["", "nonsense:port:here", "127.0.0.1:0", "[::1", "a b:1"] {
            let target = elsewhere(TEMPORARY, address.into());
            let kinds = [ErrorKind::Protocol, ErrorKind::Refused];
            fails_to_login(address, &target, options(&target), &kinds).await;
        }
        let target = Target::start(|connection| {
            connection.refuse(TEMPORARY, &[])?;
            connection.drain()
        });
        fails_to_login(
            "no address",
            &target,
            options(&target),
            &[ErrorKind::Protocol],
        )
        .await;

        let gone = good().portal();
        let target = elsewhere(TEMPORARY, gone);
        fails_to_login(
            "a closed port",
            &target,
            options(&target),
            &[ErrorKind::Lost],
        )
        .await;
    })
    .await;
}

/// A target could have the initiator try addresses for ever: the time for a login covers them all.
#[tokio::test(flavor = "multi_thread")]
async fn ends_in_time() {
    limited(async {
        let target = Target::start(|connection| connection.ignore());
        let before = elsewhere(TEMPORARY, target.portal());
        let start = std::time::Instant::now();
        let kinds = [ErrorKind::TimedOut, ErrorKind::Lost];
        let mut options = options(&before);
        options.login_timeout = std::time::Duration::from_secs(2);
        fails_to_login("to silence", &before, options, &kinds).await;
        took(start, 2.0);
    })
    .await;
}
