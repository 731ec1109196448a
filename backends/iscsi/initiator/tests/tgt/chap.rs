//! Who proves what to whom. tgtd knows MD5, and takes the number of SHA-256 to mean SHA-1.

use volmux_iscsi_initiator::{Credentials, ErrorKind, Options, Session};

use crate::{MIB, scsi, within};
use volmux_iscsi_server::Setup;

fn own() -> Credentials {
    Credentials::new("initiator", "initiator-secret")
}

fn theirs() -> Credentials {
    Credentials::new("target", "secret-of-target")
}

fn wrong(credentials: &Credentials) -> Credentials {
    Credentials::new(&credentials.name, "guessed-secret")
}

async fn works(options: Options) {
    let session = scsi::login(options).await;
    scsi::good(&session, 1, scsi::read(0, 1, 512)).await;
    session.logout().await.expect("logout");
}

async fn unauthenticated(options: Options, why: &str) {
    let error = Session::login(options).await.expect_err(why);
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{why}: {error}");
    for secret in [own(), theirs(), wrong(&own())].map(|credentials| credentials.secret) {
        let secret = String::from_utf8(secret.to_vec()).expect("text");
        assert!(
            !format!("{error} {error:?}").contains(&secret),
            "a secret is shown: {error}"
        );
    }
}

#[tokio::test]
async fn a_target_may_want_to_know_who_logs_in() {
    let server = Setup::disk(MIB, 512).incoming(&own()).start();
    within(async {
        let mut options = server.options(1);
        unauthenticated(options.clone(), "without CHAP").await;
        options.chap = Some(wrong(&own()));
        unauthenticated(options.clone(), "wrong secret").await;
        options.chap = Some(Credentials::new("nobody", own().secret.to_vec()));
        unauthenticated(options.clone(), "unknown name").await;
        options.chap = Some(own());
        works(options).await;
    })
    .await;
}

#[tokio::test]
async fn secrets_may_have_any_usual_length() {
    for length in [1, 12, 16, 32, 100] {
        let account = Credentials::new("a", "s".repeat(length));
        let server = Setup::disk(MIB, 512).incoming(&account).start();
        let mut options = server.options(1);
        options.chap = Some(account);
        within(works(options)).await;
    }
}

#[tokio::test]
async fn a_target_that_does_not_ask_is_not_the_one_that_was_meant() {
    let server = Setup::disk(MIB, 512).start();
    let mut options = server.options(1);
    options.chap = Some(own());
    within(unauthenticated(options.clone(), "CHAP unwanted")).await;
    options.mutual_chap = Some(theirs());
    within(unauthenticated(options, "mutual CHAP unwanted")).await;
}

#[tokio::test]
async fn a_target_proves_who_it_is() {
    let setup = Setup::disk(MIB, 512).incoming(&own()).outgoing(&theirs());
    let server = setup.start();
    within(async {
        let mut options = server.options(1);
        options.chap = Some(own());
        works(options.clone()).await;
        options.mutual_chap = Some(theirs());
        works(options.clone()).await;
        options.mutual_chap = Some(wrong(&theirs()));
        unauthenticated(options.clone(), "the target has another secret").await;
        options.mutual_chap = Some(Credentials::new("other", theirs().secret.to_vec()));
        unauthenticated(options.clone(), "the target has another name").await;
        options.chap = Some(wrong(&own()));
        options.mutual_chap = Some(theirs());
        unauthenticated(options, "wrong own secret").await;
    })
    .await;
}

#[tokio::test]
async fn a_target_that_can_not_prove_who_it_is_is_refused() {
    let server = Setup::disk(MIB, 512).incoming(&own()).start();
    let mut options = server.options(1);
    options.chap = Some(own());
    options.mutual_chap = Some(theirs());
    within(unauthenticated(options, "the target has no secret")).await;
}

#[tokio::test]
async fn what_tgtd_does_not_know_is_refused() {
    use volmux_iscsi_initiator::ChapAlgorithm::{Md5, Sha1, Sha256};
    let setup = Setup::disk(MIB, 512).incoming(&own()).outgoing(&theirs());
    let server = setup.start();
    within(async {
        let mut options = server.options(1);
        options.chap = Some(own());
        options.mutual_chap = Some(theirs());
        for (algorithms, known) in [
            (vec![Md5, Sha1, Sha256], true),
            (vec![Sha1, Md5], true),
            (vec![Sha1], false),
            (vec![Sha256], false),
        ] {
            options.chap_algorithms = algorithms;
            if known {
                works(options.clone()).await;
            } else {
                let error = Session::login(options.clone()).await;
                let error = error.expect_err("not known");
                assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
            }
        }
    })
    .await;
}
