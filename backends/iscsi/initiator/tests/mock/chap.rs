//! CHAP: a target that does not prove who it is, or does not ask who we are.

use std::io;

use md5::{Digest, Md5};
use volmux_iscsi_initiator::{Credentials, ErrorKind, Options, Session};

use crate::connection::Connection;
use crate::negotiation::{Terms, value};
use crate::support::*;
use crate::target::Target;
use crate::wire::*;

const OWN: (&str, &str) = ("initiator", "the secret of one");
const OTHER: (&str, &str) = ("the target", "the secret of two");
const CHALLENGE: [u8; 16] = *b"sixteen byte lot";
const ID: u8 = 201;

fn with_chap(target: &Target, mutual: bool) -> Options {
    let mut options = options(target);
    options.chap = Some(Credentials::new(OWN.0, OWN.1));
    options.mutual_chap = mutual.then(|| Credentials::new(OTHER.0, OTHER.1));
    options
}

fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{digits}")
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text
        .strip_prefix("0x")
        .or(text.strip_prefix("0X"))
        .expect("hexadecimal");
    assert_eq!(digits.len() % 2, 0);
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn response(id: u8, secret: &str, challenge: &[u8]) -> Vec<u8> {
    let mut md5 = Md5::new();
    md5.update([id]);
    md5.update(secret);
    md5.update(challenge);
    md5.finalize().to_vec()
}

/// What the initiator asked, and what it answered.
struct Asked {
    id: u8,
    challenge: Vec<u8>,
    answer: Vec<u8>,
}

type Proof = fn(&Asked) -> Vec<(&'static str, String)>;

/// A right answer of the target.
fn proof(asked: &Asked) -> Vec<(&'static str, String)> {
    let answer = response(asked.id, OTHER.1, &asked.challenge);
    vec![("CHAP_N", OTHER.0.into()), ("CHAP_R", hex(&answer))]
}

/// The first two rounds: up to the challenge.
fn challenge(connection: &mut Connection) -> io::Result<()> {
    let (request, keys) = connection.login_request()?;
    assert_eq!(
        value(&keys, "AuthMethod"),
        Some("CHAP"),
        "nothing else will do"
    );
    let chosen = [("AuthMethod", "CHAP"), ("TargetPortalGroupTag", "1")];
    connection.login_response(&request, 0, &text(&chosen))?;
    let (request, keys) = connection.login_request()?;
    let offered = value(&keys, "CHAP_A").expect("algorithms");
    assert!(
        offered.split(',').any(|algorithm| algorithm == "5"),
        "{offered}"
    );
    let (id, challenge) = (ID.to_string(), hex(&CHALLENGE));
    let keys = [("CHAP_A", "5"), ("CHAP_I", &id), ("CHAP_C", &challenge)];
    connection.login_response(&request, 0, &text(&keys))
}

/// All of CHAP; for mutual CHAP with this proof.
fn authenticate(connection: &mut Connection, proof: Proof) -> io::Result<()> {
    challenge(connection)?;
    let (request, keys) = connection.login_request()?;
    assert_eq!(value(&keys, "CHAP_N"), Some(OWN.0));
    let answer = unhex(value(&keys, "CHAP_R").expect("an answer"));
    assert_eq!(answer, response(ID, OWN.1, &CHALLENGE));
    let mut answers = Vec::new();
    if let Some(challenge) = value(&keys, "CHAP_C") {
        let challenge = unhex(challenge);
        assert!(challenge.len() >= 16, "a challenge that can't be guessed");
        assert_ne!(challenge, CHALLENGE);
        let id = value(&keys, "CHAP_I")
            .expect("an identifier")
            .parse()
            .expect("a byte");
        answers = proof(&Asked {
            id,
            challenge,
            answer,
        });
    }
    connection.login_answer(&request, &text(&answers))?;
    Ok(())
}

fn proving(proof: Proof) -> Target {
    Target::start(move |connection| {
        authenticate(connection, proof)?;
        connection.login()?;
        connection.serve()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn both_prove_themselves() {
    limited(async {
        for mutual in [false, true] {
            let target = proving(proof);
            let session = Session::login(with_chap(&target, mutual))
                .await
                .expect("a login");
            works(&session).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_proves_nothing() {
    let cases: [(&str, Proof); 11] = [
        ("another secret", |asked| {
            let answer = response(asked.id, "the secret of three", &asked.challenge);
            vec![("CHAP_N", OTHER.0.into()), ("CHAP_R", hex(&answer))]
        }),
        ("our secret", |asked| {
            let answer = response(asked.id, OWN.1, &asked.challenge);
            vec![("CHAP_N", OTHER.0.into()), ("CHAP_R", hex(&answer))]
        }),
        ("another name", |asked| {
            vec![("CHAP_N", "the targe".into()), proof(asked).remove(1)]
        }),
        ("our name", |asked| {
            vec![("CHAP_N", OWN.0.into()), proof(asked).remove(1)]
        }),
        ("no name", |asked| vec![proof(asked).remove(1)]),
        ("no answer", |asked| vec![proof(asked).remove(0)]),
        ("nothing", |_| Vec::new()),
        ("our answer", |asked| {
            vec![("CHAP_N", OTHER.0.into()), ("CHAP_R", hex(&asked.answer))]
        }),
        ("our challenge", |asked| {
            let (id, challenge) = (asked.id.to_string(), hex(&asked.challenge));
            vec![
                ("CHAP_A", "5".into()),
                ("CHAP_I", id),
                ("CHAP_C", challenge),
            ]
        }),
        ("the start of an answer", |asked| {
            let answer = response(asked.id, OTHER.1, &asked.challenge);
            vec![("CHAP_N", OTHER.0.into()), ("CHAP_R", hex(&answer[..4]))]
        }),
        ("an empty answer", |_| {
            vec![("CHAP_N", OTHER.0.into()), ("CHAP_R", "0x".into())]
        }),
    ];
    limited(async {
        each(cases, |(what, proof)| async move {
            let target = proving(proof);
            let options = with_chap(&target, true);
            fails_to_login(what, &target, options, &[ErrorKind::Unauthenticated]).await;
            let stages: Vec<u8> = target
                .seen(LOGIN)
                .iter()
                .map(|seen| seen.pdu.head[1] >> 2 & 3)
                .collect();
            assert!(
                stages.iter().all(|stage| *stage == 0),
                "{what}: it goes on: {stages:?}"
            );
        })
        .await;
    })
    .await;
}

type Skip = fn(&mut Connection) -> io::Result<()>;

/// Logs in without asking for the secret.
#[tokio::test(flavor = "multi_thread")]
async fn the_target_does_not_ask() {
    const LOOSE: &[ErrorKind] = &[ErrorKind::Unauthenticated, ErrorKind::Protocol];
    const STRICT: &[ErrorKind] = &[ErrorKind::Unauthenticated];
    let cases: [(&str, Skip, &'static [ErrorKind]); 6] = [
        (
            "it wants none",
            |connection| {
                let (request, _) = connection.login_request()?;
                let keys = text(&[("AuthMethod", "None"), ("TargetPortalGroupTag", "1")]);
                connection.login_answer(&request, &keys).map(drop)
            },
            STRICT,
        ),
        (
            "it wants none, and goes on",
            |connection| {
                let (request, _) = connection.login_request()?;
                connection.login_response(&request, FINAL | 1, &text(&[("AuthMethod", "None")]))
            },
            LOOSE,
        ),
        (
            "it goes on",
            |connection| {
                let (request, _) = connection.login_request()?;
                connection.login_response(&request, FINAL | 1, &[])
            },
            LOOSE,
        ),
        (
            "it is done",
            |connection| {
                let (request, _) = connection.login_request()?;
                connection.login_response(&request, FINAL | 3, &[])
            },
            LOOSE,
        ),
        (
            "it goes on instead of the challenge",
            |connection| {
                let (request, _) = connection.login_request()?;
                connection.login_response(&request, 0, &text(&[("AuthMethod", "CHAP")]))?;
                let (request, _) = connection.login_request()?;
                connection.login_response(&request, FINAL | 1, &[])
            },
            LOOSE,
        ),
        (
            "it rejects",
            |connection| {
                let (request, _) = connection.login_request()?;
                connection
                    .login_answer(&request, &text(&[("AuthMethod", "Reject")]))
                    .map(drop)
            },
            &[ErrorKind::Unauthenticated, ErrorKind::Refused],
        ),
    ];
    limited(async {
        each(cases, |(what, skip, kinds)| async move {
            let target = Target::start(move |connection| {
                skip(connection)?;
                connection.login_on(&Terms::default())?;
                connection.serve()
            });
            fails_to_login(what, &target, with_chap(&target, false), kinds).await;
        })
        .await;
    })
    .await;
}

/// Challenges that make no sense: too long, empty, or with our own algorithm left out.
#[tokio::test(flavor = "multi_thread")]
async fn challenges_that_are_none() {
    let long = hex(&[7; 1025]);
    let good = hex(&CHALLENGE);
    let cases: [&[(&str, &str)]; 8] = [
        &[("CHAP_A", "99"), ("CHAP_I", "1"), ("CHAP_C", &good)],
        &[("CHAP_A", "5"), ("CHAP_I", "256"), ("CHAP_C", &good)],
        &[("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", &long)],
        &[("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0x")],
        &[("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0xzz")],
        &[("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "plain")],
        &[("CHAP_A", "5"), ("CHAP_I", "1")],
        &[("CHAP_A", "5"), ("CHAP_C", &good)],
    ];
    limited(async {
        for keys in cases {
            let challenge = text(keys);
            let target = Target::start(move |connection| {
                let (request, _) = connection.login_request()?;
                connection.login_response(&request, 0, &text(&[("AuthMethod", "CHAP")]))?;
                let (request, _) = connection.login_request()?;
                connection.login_response(&request, 0, &challenge)?;
                connection.drain()
            });
            let kinds = [
                ErrorKind::Protocol,
                ErrorKind::Unauthenticated,
                ErrorKind::Refused,
            ];
            let options = with_chap(&target, false);
            fails_to_login(&format!("{keys:?}"), &target, options, &kinds).await;
        }
    })
    .await;
}

/// The target asks for what we do not have.
#[tokio::test(flavor = "multi_thread")]
async fn the_target_insists() {
    limited(async {
        let target = Target::start(|connection| {
            let (request, _) = connection.login_request()?;
            connection.login_response(&request, 0, &text(&[("AuthMethod", "CHAP")]))?;
            connection.drain()
        });
        let kinds = [ErrorKind::Unauthenticated, ErrorKind::Protocol];
        fails_to_login("without a secret", &target, options(&target), &kinds).await;
    })
    .await;
}

/// A target that proved itself at first has to do so on each connection.
#[tokio::test(flavor = "multi_thread")]
async fn an_impostor_later() {
    limited(async {
        let target = Target::start(|connection| {
            if connection.number == 1 {
                authenticate(connection, proof)?;
                connection.login()?;
                return connection.command().map(drop);
            }
            authenticate(connection, |asked| {
                let answer = response(asked.id, "the secret of three", &asked.challenge);
                vec![("CHAP_N", OTHER.0.into()), ("CHAP_R", hex(&answer))]
            })?;
            connection.login()?;
            connection.serve()
        });
        let session = Session::login(with_chap(&target, true))
            .await
            .expect("a login");
        let error = session
            .execute(LUN, replayed(read(1, 8)))
            .await
            .expect_err("an impostor");
        check(&error, &[ErrorKind::Unauthenticated], &target, Some(LUN));
        assert_eq!(target.seen(COMMAND).len(), 1, "it gets no commands");
    })
    .await;
}
