use proptest::prelude::*;

use super::*;

const KINDS: [ReservationKind; 6] = [
    ReservationKind::WriteExclusive,
    ReservationKind::ExclusiveAccess,
    ReservationKind::WriteExclusiveRegistrants,
    ReservationKind::ExclusiveAccessRegistrants,
    ReservationKind::WriteExclusiveAll,
    ReservationKind::ExclusiveAccessAll,
];

fn header(generation: u32, length: usize) -> Vec<u8> {
    [generation.to_be_bytes(), (length as u32).to_be_bytes()].concat()
}

fn keys(generation: u32, keys: &[u64]) -> Vec<u8> {
    let mut bytes = header(generation, 8 * keys.len());
    bytes.extend(keys.iter().flat_map(|key| key.to_be_bytes()));
    bytes
}

fn reservation(key: u64, code: u8) -> Vec<u8> {
    let mut bytes = header(3, 16);
    bytes.extend(key.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 0, code, 0, 0]);
    bytes
}

fn registrant(key: u64, flags: u8, code: u8, port: u16, transport_id: &[u8]) -> Vec<u8> {
    let mut bytes = key.to_be_bytes().to_vec();
    bytes.extend([0, 0, 0, 0, flags, code, 0, 0, 0, 0]);
    bytes.extend(port.to_be_bytes());
    bytes.extend((transport_id.len() as u32).to_be_bytes());
    bytes.extend(transport_id);
    bytes
}

fn transport_id(format: u8, name: &[u8]) -> Vec<u8> {
    let mut bytes = vec![format << 6 | 5, 0, 0, name.len() as u8];
    bytes.extend(name);
    bytes
}

#[test]
fn keys_are_read_as_far_as_they_came() {
    let bytes = keys(7, &[1, u64::MAX]);
    let read = RegisteredKeys::parse(&bytes).expect("keys");
    assert_eq!(
        (read.generation, read.keys.as_slice()),
        (7, &[1, u64::MAX][..])
    );
    assert!(!read.incomplete);
    let cut = RegisteredKeys::parse(&bytes[..20]).expect("keys");
    assert_eq!((cut.keys.as_slice(), cut.incomplete), (&[1][..], true));
    assert!(RegisteredKeys::parse(&bytes[..7]).is_err());
}

#[test]
fn reservations_are_read() {
    for kind in KINDS {
        let read = parse_reservation(&reservation(9, kind.code()));
        assert_eq!(read, Ok((3, Some(Reservation { key: 9, kind }))));
    }
    assert_eq!(parse_reservation(&header(4, 0)), Ok((4, None)));
    // Neither may be taken for "nobody holds it".
    assert!(parse_reservation(&reservation(9, 2)).is_err());
    assert!(parse_reservation(&reservation(9, 1)[..21]).is_err());
}

#[test]
fn capabilities_are_read() {
    let told = ReservationCapabilities::parse(&[0, 8, 0x0d, 0x81, 0xea, 1, 0, 0]);
    let told = told.expect("capabilities");
    assert!(told.persist && told.persistent && told.all_ports && told.others);
    assert_eq!(told.kinds, KINDS);
    let silent = ReservationCapabilities::parse(&[0, 8, 0, 0, 0xea, 1, 0, 0]);
    assert_eq!(silent, Ok(ReservationCapabilities::default()));
    assert!(ReservationCapabilities::parse(&[0, 8, 0, 0]).is_err());
}

#[test]
fn registrants_are_read() {
    let first = transport_id(1, b"iqn.2026-01.org.example:me,i,0x400001370000\0\0");
    let second = transport_id(0, b"iqn.2026-01.org.example:other\0\0\0");
    let mut list = registrant(1, 1, 5, 1, &first);
    list.extend(registrant(2, 2, 0, 9, &second));
    list.extend(registrant(3, 0, 0, 1, &[0x06, 0, 0, 0]));
    let mut bytes = header(5, list.len());
    bytes.extend(&list);
    let status = FullStatus::parse(&bytes).expect("registrations");
    assert_eq!((status.generation, status.registrants.len()), (5, 3));
    let [one, two, three] = &status.registrants[..] else {
        panic!("three");
    };
    assert_eq!(one.initiator.as_deref(), Some("iqn.2026-01.org.example:me"));
    assert_eq!(one.holds, Some(ReservationKind::WriteExclusiveRegistrants));
    assert_eq!(
        two.initiator.as_deref(),
        Some("iqn.2026-01.org.example:other")
    );
    assert_eq!((two.holds, two.all_ports, two.port), (None, true, 9));
    assert_eq!((three.initiator.as_deref(), three.key), (None, 3));
    let cut = FullStatus::parse(&bytes[..bytes.len() - 1]).expect("registrations");
    assert!(cut.incomplete && cut.registrants[..] == status.registrants[..2]);
    let mut lying = bytes.clone();
    lying[8 + 20..8 + 24].copy_from_slice(&u32::MAX.to_be_bytes());
    let lying = FullStatus::parse(&lying).expect("registrations");
    assert!(lying.incomplete && lying.registrants.is_empty());
}

#[test]
fn parameter_lists_have_24_bytes() {
    let list = parameter_list(0x0102_0304_0506_0708, 9, true);
    assert_eq!(list[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(list[8..], [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(parameter_list(0, 0, false)[..], [0; 24]);
}

proptest! {
    #[test]
    fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(read) = RegisteredKeys::parse(&bytes) {
            prop_assert!(8 + 8 * read.keys.len() <= bytes.len());
        }
        if let Ok(read) = FullStatus::parse(&bytes) {
            prop_assert!(8 + 24 * read.registrants.len() <= bytes.len());
        }
        let _ = parse_reservation(&bytes);
        let _ = ReservationCapabilities::parse(&bytes);
    }

    #[test]
    fn names_of_initiators_come_back(name in "[a-z0-9.:-]{1,200}", format in 0_u8..2, key: u64) {
        let mut padded = name.clone().into_bytes();
        if format == 1 {
            padded.extend(b",i,0x400001370000");
        }
        padded.push(0);
        let list = registrant(key, 0, 0, 1, &transport_id(format, &padded));
        let mut bytes = header(1, list.len());
        bytes.extend(&list);
        let status = FullStatus::parse(&bytes).expect("registrations");
        prop_assert_eq!(status.registrants[0].key, key);
        prop_assert_eq!(status.registrants[0].initiator.as_ref(), Some(&name));
    }
}
