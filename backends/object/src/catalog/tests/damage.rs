//! Records and checkpoints that are not what they should be.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

async fn bytes_of(store: &Rough, name: &str) -> Vec<u8> {
    let got = store
        .inner
        .get(&Path::from(name))
        .await
        .expect("it is there");
    got.bytes().await.expect("it is in memory").to_vec()
}

async fn put(store: &Rough, name: &str, bytes: Vec<u8>) {
    let put = store.inner.put(&Path::from(name), bytes.into()).await;
    put.expect("it is in memory");
}

async fn put_body(store: &Rough, kind: Kind, name: &str, body: &[u8]) {
    let sealed = seal().wrap(kind, name, body, [0; 12]).expect("it fits");
    put(store, name, sealed.to_vec()).await;
}

async fn three_records() -> Arc<Rough> {
    let store = Rough::new(1);
    let catalog = open(&store, 1).await;
    for (number, called) in [(1, "a"), (2, "b"), (3, "c")] {
        commit(&catalog, vec![Change::Put(entry(number, called))]).await;
    }
    store
}

async fn expect_corrupt(store: &Arc<Rough>, object: &str, what: &str) {
    let error = try_open(store, 5).await.expect_err(what);
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    assert_eq!(error.get("object"), Some(object), "{what}: {error}");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_record_is_named() {
    let store = three_records().await;
    let name = keys::catalog_record(2);
    let whole = bytes_of(&store, &name).await;
    let first = bytes_of(&store, &keys::catalog_record(1)).await;
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let damaged = [
        ("empty", Vec::new()),
        ("cut off", whole[..whole.len() - 1].to_vec()),
        ("longer", [&whole[..], b" "].concat()),
        ("flipped", flipped(whole.len() / 2)),
        ("flipped head", flipped(9)),
        ("of another number", first),
        ("something else", b"<html>captive portal</html>".to_vec()),
    ];
    for (what, bytes) in damaged {
        put(&store, &name, bytes).await;
        expect_corrupt(&store, &name, what).await;
    }
    put(&store, &name, whole).await;
    assert_eq!(open(&store, 6).await.head(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_gone_is_named() {
    let store = three_records().await;
    remove(&store, &keys::catalog_record(2)).await;
    expect_corrupt(&store, &keys::catalog_record(2), "a gap").await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_does_not_fit_is_named_and_changes_nothing() {
    let tips = json!([serde_json::to_value(Tip::EMPTY).expect("a tip")]);
    let volume = |number: u128, name: &str| {
        let id = Uuid::from_u128(number).to_string();
        json!([id, name, 4096, "thin", null, 0, id, 0])
    };
    let record = |changes: Value| json!({"number": 4, "token": Uuid::nil(), "tips": tips, "origins": [], "changes": changes});
    let mut wrong_tip = volume(9, "z");
    wrong_tip[7] = json!(1);
    let mut wrong_origin = volume(9, "z");
    wrong_origin[4] = json!(0);
    let mut large = volume(9, "z");
    large[2] = json!(u64::MAX);
    let mut log = volume(9, "z");
    log[6] = json!(Uuid::from_u128(1));
    let mut number = record(json!([]));
    number["number"] = json!(5);
    let mut unknown = record(json!([]));
    unknown["more"] = json!(1);
    let unknown_volume = json!([{"remove": Uuid::from_u128(77)}]);
    let wrong = [
        (
            "a name twice",
            record(json!([{"put": volume(9, "z")}, {"put": volume(8, "a")}])),
        ),
        ("a log twice", record(json!([{"put": log}]))),
        ("removed", record(unknown_volume)),
        (
            "removed twice",
            record(json!(vec![json!({"remove": Uuid::from_u128(1)}); 2])),
        ),
        ("no such tip", record(json!([{"put": wrong_tip}]))),
        ("no such origin", record(json!([{"put": wrong_origin}]))),
        ("too large", record(json!([{"put": large}]))),
        ("bad name", record(json!([{"put": volume(9, "../x")}]))),
        ("unknown change", record(json!([{"destroy": Uuid::nil()}]))),
        ("unknown field", unknown),
        ("other number", number),
        ("no object", json!(7)),
    ];
    let name = keys::catalog_record(4);
    let store = three_records().await;
    let (early, before) = (open(&store, 7).await, all(&open(&store, 8).await));
    for (what, body) in wrong {
        put_body(
            &store,
            Kind::CatalogRecord,
            &name,
            body.to_string().as_bytes(),
        )
        .await;
        expect_corrupt(&store, &name, what).await;
        let error = early.refresh(OP).await.expect_err(what);
        assert_eq!(error.get("object"), Some(name.as_str()), "{what}: {error}");
        assert_eq!((early.head(), all(&early)), (3, before.clone()), "{what}");
    }
    let fits = record(json!([{"put": volume(9, "z")}])).to_string();
    put_body(&store, Kind::CatalogRecord, &name, fits.as_bytes()).await;
    assert_eq!(early.refresh(OP).await.expect("it fits"), 4);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_checkpoint_costs_time_and_nothing_else() {
    let store = Rough::new(1);
    let catalog = open(&store, 1).await;
    for number in 1..=130 {
        commit(
            &catalog,
            vec![Change::Put(entry(number, &format!("v{number}")))],
        )
        .await;
    }
    let names = [128, 64].map(keys::catalog_checkpoint);
    let older = bytes_of(&store, &names[1]).await;
    let volumes: Vec<_> = catalog.read(|state| state.in_id_order().cloned().collect());
    let twice = [&volumes[..], &volumes[..1]].concat();
    let twice = record::encode_checkpoint(128, &twice).expect("it fits");
    put_body(&store, Kind::CatalogCheckpoint, &names[0], &twice).await;
    assert_eq!(all(&open(&store, 2).await), all(&catalog), "a volume twice");
    for name in &names {
        put(&store, name, older[..older.len() / 2].to_vec()).await;
        assert_eq!(all(&open(&store, 3).await), all(&catalog), "{name}");
    }
    let foreign = format!("{}readme", keys::CATALOG_CHECKPOINT);
    put(&store, &foreign, b"hello".to_vec()).await;
    assert_eq!(all(&open(&store, 4).await), all(&catalog));
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_of_an_absurd_number_is_not_believed() {
    let store = three_records().await;
    let body = record::encode_checkpoint(u64::MAX, &[]).expect("it fits");
    let name = keys::catalog_checkpoint(u64::MAX);
    put_body(&store, Kind::CatalogCheckpoint, &name, &body).await;
    let catalog = open(&store, 2).await;
    assert_eq!(catalog.head(), 3);
    commit(&catalog, vec![Change::Remove(id(1))]).await;
}

/// Something like a record's JSON.
fn any_json() -> impl Strategy<Value = Value> {
    let id = (0..4u128).prop_map(|n| json!(Uuid::from_u128(n)));
    let leaf = prop_oneof![
        Just(Value::Null),
        (0..3u64).prop_map(|n| json!(n)),
        any::<u64>().prop_map(|n| json!(n)),
        id.clone(),
        "[a-z./]{0,3}".prop_map(|s| json!(s)),
    ];
    let size = prop_oneof![Just(4096), any::<u64>()];
    let volume = (
        id.clone(),
        "[ab]",
        size,
        0..2usize,
        prop::option::of(id.clone()),
        0..2usize,
    )
        .prop_map(|(id, name, size, origin, log, tip)| {
            let origin = [None, Some(0)][origin];
            json!([id, name, size, "thin", origin, 0, log, tip])
        });
    let change = prop_oneof![
        4 => volume.prop_map(|volume| json!({"put": volume})),
        2 => id.clone().prop_map(|id| json!({"remove": id})),
        1 => leaf.prop_map(|value| json!({"put": [value.clone(), value]})),
    ];
    let tips = json!([serde_json::to_value(Tip::EMPTY).expect("a tip")]);
    (vec(change, 0..8), id).prop_map(move |(changes, token)| {
        json!({"number": 1, "token": token, "tips": tips, "origins": [], "changes": changes})
    })
}

proptest! {
    #[test]
    fn no_record_makes_it_panic_or_leaves_half_of_itself(bodies in vec(any_json(), 1..6)) {
        let mut state = State::default();
        for (number, body) in (1..).zip(bodies) {
            let Ok(record) = record::decode(1, body.to_string().as_bytes()) else {
                continue;
            };
            let before: Vec<_> = state.iter().cloned().collect();
            let fits = state.check(record.changes.clone()).is_ok();
            prop_assert_eq!(&state.iter().cloned().collect::<Vec<_>>(), &before);
            prop_assert_eq!(state.apply(number, record.changes).is_ok(), fits);
            let volumes: Vec<_> = state.iter().map(|entry| (**entry).clone()).collect();
            if !fits {
                prop_assert_eq!(volumes.len(), before.len());
            }
            let sum: u128 = volumes.iter().map(|volume| u128::from(volume.size)).sum();
            prop_assert_eq!(state.provisioned(), sum);
            let fresh = State::from_checkpoint(number, volumes).expect("it was consistent");
            prop_assert_eq!(fresh.len(), state.len());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(record::decode(1, &bytes).is_err());
        prop_assert!(record::decode_checkpoint(1, &bytes).is_err());
    }
}
