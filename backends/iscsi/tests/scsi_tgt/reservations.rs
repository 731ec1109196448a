//! Who may write.

use volmux_iscsi::scsi::{
    Illegal, LogicalUnit, Reservation, ReservationKind, ScsiError, ScsiErrorKind,
};
use volmux_iscsi_server::{STRANGER, Server, Setup};

use crate::{MIB, content, open, open_as, within};

const KIND: ReservationKind = ReservationKind::WriteExclusiveRegistrants;

async fn two(server: &Server) -> [LogicalUnit; 2] {
    let mut options = server.options(1);
    options.initiator = STRANGER.into();
    [open(server).await, open_as(options).await]
}

fn assert_conflict<T>(done: Result<T, ScsiError>) {
    match done {
        Ok(_) => panic!("it is reserved"),
        Err(error) => assert!(
            matches!(error.kind(), ScsiErrorKind::ReservationConflict),
            "{error}"
        ),
    }
}

fn assert_refused<T>(done: Result<T, ScsiError>) {
    let error = done.err().expect("tgt does not have that");
    let kind = ScsiErrorKind::IllegalRequest(Illegal::InvalidField);
    assert_eq!(
        format!("{:?}", error.kind()),
        format!("{kind:?}"),
        "{error}"
    );
}

#[tokio::test]
async fn who_is_preempted_writes_no_more() {
    let server = Setup::disk(4 * MIB, 512).start();
    within(async {
        let [one, two] = two(&server).await;
        let data = content(1, 512);
        let (keys, _) = one.registered_keys(None).await.expect("keys");
        assert!(keys.keys.is_empty() && !keys.incomplete);
        assert_eq!(one.reservation(None).await.expect("none").0, None);

        one.register(None, 0, 11, false).await.expect("registered");
        one.reserve(None, 11, KIND).await.expect("reserved");
        one.reserve(None, 11, KIND).await.expect("it is its own");
        one.write(None, 0, data.clone())
            .await
            .expect("the holder writes");
        assert_conflict(two.write(None, 0, content(2, 512)).await);
        assert_conflict(two.write(None, 0, content(2, 2 * MIB)).await);
        assert_conflict(two.reserve(None, 22, KIND).await);
        assert!(two.read(None, 0, 1).await.expect("read").0 == data);
        // It can be looked at while others have it.
        let mut options = server.options(1);
        options.initiator = "iqn.2026-01.org.example:third".into();
        open_as(options).await;

        two.register(None, 0, 22, false).await.expect("registered");
        let (keys, _) = two.registered_keys(None).await.expect("keys");
        let mut found = keys.keys.clone();
        found.sort_unstable();
        assert_eq!(found, [11, 22]);
        let held = Reservation {
            key: 11,
            kind: KIND,
        };
        assert_eq!(two.reservation(None).await.expect("held").0, Some(held));
        assert_refused(two.preempt(None, 22, 11, KIND, true).await);
        let preempted = two.preempt(None, 22, 11, KIND, false).await;
        preempted.expect("preempted");
        let held = Reservation {
            key: 22,
            kind: KIND,
        };
        assert_eq!(two.reservation(None).await.expect("held").0, Some(held));
        // It is told, and then refused.
        let told = one
            .write(None, 0, content(3, 512))
            .await
            .expect_err("preempted");
        assert!(
            matches!(
                told.kind(),
                ScsiErrorKind::Attention {
                    asc: 0x2a,
                    ascq: 3..=5
                }
            ),
            "{told}"
        );
        assert_conflict(one.write(None, 0, content(3, 512)).await);
        assert!(two.read(None, 0, 1).await.expect("read").0 == data);
        two.write(None, 0, content(4, 512))
            .await
            .expect("the holder writes");
        assert_conflict(one.register(None, 11, 12, false).await);

        two.release(None, 22, KIND).await.expect("released");
        one.write(None, 0, content(5, 512))
            .await
            .expect("nobody holds it");
    })
    .await;
}

#[tokio::test]
async fn registrations_end_and_are_cleared() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let [one, two] = two(&server).await;
        one.register(None, 0, 1, false).await.expect("registered");
        assert_conflict(one.register(None, 0, 2, false).await);
        one.register_ignoring(None, 2, false)
            .await
            .expect("registered");
        one.register(None, 2, 3, false).await.expect("changed");
        assert_eq!(one.registered_keys(None).await.expect("keys").0.keys, [3]);
        one.register(None, 3, 0, false).await.expect("ended");
        assert!(
            one.registered_keys(None)
                .await
                .expect("keys")
                .0
                .keys
                .is_empty()
        );

        one.register(None, 0, 1, false).await.expect("registered");
        two.register(None, 0, 2, false).await.expect("registered");
        one.reserve(None, 1, ReservationKind::ExclusiveAccess)
            .await
            .expect("reserved");
        assert_conflict(two.read(None, 0, 1).await);
        let mut options = server.options(1);
        options.initiator = "iqn.2026-01.org.example:third".into();
        let third = open_as(options).await;
        assert_eq!(third.capacity().bytes(), MIB);
        assert_conflict(third.write(None, 0, content(1, 512)).await);
        two.clear_reservations(None, 2).await.expect("cleared");
        assert!(
            two.registered_keys(None)
                .await
                .expect("keys")
                .0
                .keys
                .is_empty()
        );
        assert_eq!(two.reservation(None).await.expect("none").0, None);
        let told = one
            .write(None, 0, content(1, 512))
            .await
            .expect_err("cleared");
        assert!(
            matches!(told.kind(), ScsiErrorKind::Attention { .. }),
            "{told}"
        );
        one.write(None, 0, content(1, 512))
            .await
            .expect("nobody holds it");
    })
    .await;
}

/// What tgt 1.0.85 lacks. Whoever relies on reservations with it has to do without.
#[tokio::test]
async fn a_reservation_of_tgt_does_not_keep_others_from_zeroing() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let [one, two] = two(&server).await;
        let (can, _) = one
            .reservation_capabilities(None)
            .await
            .expect("capabilities");
        assert!(can.kinds.contains(&KIND) && !can.persist, "{can:?}");
        assert_refused(one.register(None, 0, 1, true).await);
        one.register(None, 0, 1, false).await.expect("registered");
        one.reserve(None, 1, KIND).await.expect("reserved");
        assert_refused(one.full_reservation_status(None).await);
        let data = content(1, 4 * 4096);
        one.write(None, 0, data.clone()).await.expect("written");
        assert_conflict(two.write(None, 0, data.clone()).await);
        two.unmap(None, &[(0, 8)]).await.expect("not kept from it");
        two.zero(None, 8, 8, true).await.expect("not kept from it");
        two.zero(None, 16, 8, false)
            .await
            .expect("not kept from it");
        let (read, _) = one.read(None, 0, 32).await.expect("read");
        assert!(read[..3 * 4096].iter().all(|byte| *byte == 0));
        assert!(read[3 * 4096..] == data[3 * 4096..]);
    })
    .await;
}

/// The standard binds it to the initiator and its port, which are the same.
#[tokio::test]
async fn with_tgt_a_registration_does_not_outlive_its_session() {
    let server = Setup::disk(MIB, 512).start();
    within(async {
        let mut options = server.options(1);
        options.isid_qualifier = Some(7);
        let before = open_as(options.clone()).await;
        before
            .register(None, 0, 1, false)
            .await
            .expect("registered");
        before.reserve(None, 1, KIND).await.expect("reserved");
        let after = open_as(options).await;
        let (keys, _) = after.registered_keys(None).await.expect("keys");
        assert_eq!(keys.keys, [1], "it is still listed");
        let held = Reservation { key: 1, kind: KIND };
        assert_eq!(after.reservation(None).await.expect("held").0, Some(held));
        assert_conflict(after.write(None, 0, content(1, 512)).await);
        after.register(None, 0, 2, false).await.expect("registered");
        after
            .write(None, 0, content(1, 512))
            .await
            .expect("registered, so it may");
        after
            .preempt(None, 2, 1, KIND, false)
            .await
            .expect("preempted");
        let (keys, _) = after.registered_keys(None).await.expect("keys");
        assert_eq!(keys.keys, [2]);
    })
    .await;
}
