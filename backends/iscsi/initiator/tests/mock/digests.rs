//! Digests: where they are wrong, nothing that came by the connection can be trusted.

use volmux_iscsi_initiator::{Digest, ErrorKind, Options, Session};

use crate::disk::data_in;
use crate::negotiation::Terms;
use crate::support::*;
use crate::target::Target;
use crate::wire::*;

const ALL: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

fn with_digests(target: &Target, digest: Digest) -> Options {
    let mut options = options(target);
    options.header_digest = digest;
    options.data_digest = digest;
    options
}

fn target_with(digests: (bool, bool)) -> Target {
    let terms = Terms {
        digests,
        ..Terms::default()
    };
    Target::start(move |connection| {
        connection.login_on(&terms)?;
        connection.serve()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn are_as_the_target_wants() {
    limited(async {
        for digests in ALL {
            for digest in [Digest::Off, Digest::Preferred] {
                let target = target_with(digests);
                let options = with_digests(&target, digest);
                let session = Session::login(options).await.expect("a login");
                works(&session).await;
                // Lengths that need padding.
                let reply = session.execute(LUN, read(1, 33)).await.expect("a read");
                is_good(&reply, 1, 33);
                assert_eq!(target.connections(), 1);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn may_be_required() {
    limited(async {
        for digests in ALL {
            let target = target_with(digests);
            let options = with_digests(&target, Digest::Required);
            if digests == (true, true) {
                works(&Session::login(options).await.expect("a login")).await;
            } else {
                fails_to_login("without", &target, options, &[ErrorKind::Refused]).await;
            }
        }
    })
    .await;
}

/// One bit differs: in the header, its digest, the data, or its digest.
#[tokio::test(flavor = "multi_thread")]
async fn show_what_was_changed() {
    limited(async {
        let places = [16, 44, 48, 51, 52, 300, 52 + 4096, 52 + 4096 + 3];
        each(places, |at| async move {
            let start = || {
                let terms = Terms {
                    digests: (true, true),
                    ..Terms::default()
                };
                Target::start(move |connection| {
                    connection.login_on(&terms)?;
                    if connection.number > 1 {
                        return connection.serve();
                    }
                    let command = connection.command()?;
                    let data = connection.on_disk(&command);
                    let pdu = data_in(&command, FINAL | STATUS, 0, 0, &data);
                    let mut bytes = connection.encode(pdu);
                    bytes[at] ^= 0x10;
                    connection.write(&bytes)?;
                    connection.drain()
                })
            };
            println!("byte {at}");
            let target = start();
            let options = with_digests(&target, Digest::Required);
            let session = Session::login(options).await.expect("a login");
            let error = session
                .execute(LUN, read(1, 8))
                .await
                .expect_err("a wrong digest");
            check(&error, &[ErrorKind::Lost], &target, Some(LUN));
            assert!(error.sent() && error.reason().contains("digest"), "{error}");
            works(&session).await;

            let target = start();
            let options = with_digests(&target, Digest::Required);
            let session = Session::login(options).await.expect("a login");
            let command = replayed(read(1, 8));
            let reply = session.execute(LUN, command).await.expect("it is repeated");
            is_good(&reply, 1, 8);
            assert_eq!(reply.nexus, 2);
        })
        .await;
    })
    .await;
}
