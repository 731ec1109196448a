//! Which targets there are.

use volmux_iscsi_initiator::{Credentials, ErrorKind, Options, discover};

use crate::within;
use volmux_iscsi_server::{INITIATOR, STRANGER, Server, Setup};

fn options(server: &Server) -> Options {
    Options::new(server.portal(), INITIATOR)
}

fn name(server: &Server, target: usize) -> String {
    server.options(target).target.expect("a name")
}

#[tokio::test]
async fn a_portal_tells_its_targets() {
    let server = Setup::new().target(None).target(None).start();
    within(async {
        let mut found = discover(&options(&server)).await.expect("targets");
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<_> = found.iter().map(|target| target.name.clone()).collect();
        assert_eq!(names, [name(&server, 1), name(&server, 2)]);
        for target in found {
            assert_eq!(target.portals, [format!("{},1", server.portal())]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_portal_may_have_no_target_for_this_initiator() {
    // One without any at all ends every connection at once.
    let server = Setup::new().target(Some(STRANGER)).start();
    let found = within(discover(&options(&server)))
        .await
        .expect("no targets");
    assert!(found.is_empty(), "{found:?}");
}

#[tokio::test]
async fn only_targets_for_this_initiator_are_told() {
    let setup = Setup::new().target(Some(STRANGER)).target(Some(INITIATOR));
    let server = setup.start();
    let found = within(discover(&options(&server))).await.expect("targets");
    let names: Vec<_> = found.into_iter().map(|target| target.name).collect();
    assert_eq!(names, [name(&server, 2)]);
}

#[tokio::test]
async fn a_list_may_be_longer_than_one_answer() {
    const TARGETS: usize = 200;
    let setup = (0..TARGETS).fold(Setup::new(), |setup, _| setup.target(None));
    let server = setup.start();
    let found = within(discover(&options(&server))).await.expect("targets");
    let mut names: Vec<_> = found.into_iter().map(|target| target.name).collect();
    let mut expected: Vec<_> = (1..=TARGETS).map(|target| name(&server, target)).collect();
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
}

#[tokio::test]
async fn a_portal_may_want_to_know_who_asks() {
    let account = Credentials::new("seeker", "seeker-secret");
    let other = Credentials::new("portal", "portal-secret");
    let server = Setup::new().target(None).for_discovery(&account).start();
    within(async {
        let mut options = options(&server);
        let error = discover(&options).await.expect_err("without CHAP");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
        options.chap = Some(Credentials::new("seeker", "wrong-secret"));
        let error = discover(&options).await.expect_err("wrong secret");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
        options.chap = Some(account);
        let found = discover(&options).await.expect("targets");
        assert_eq!(found.len(), 1, "{found:?}");
        options.mutual_chap = Some(other);
        let error = discover(&options)
            .await
            .expect_err("the portal has no secret");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    })
    .await;
}
