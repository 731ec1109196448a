//! A journal beside a list that loses only what was not synced.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Zero,
    Sync,
    /// This many of the records that are there are committed.
    Trim(prop::sample::Index),
    /// The process is killed.
    Kill,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0usize..4000).prop_map(Step::Append),
        2 => Just(Step::Zero),
        4 => Just(Step::Sync),
        3 => any::<prop::sample::Index>().prop_map(Step::Trim),
        1 => Just(Step::Kill),
        1 => Just(Step::Reopen),
    ]
}

/// Does the steps to a journal and to a list, and compares whenever it is opened.
async fn follows_the_model(seal: Seal, steps: Vec<Step>) {
    let mut place = dir();
    let (mut journal, _) = Journal::open(&config(place.path(), 4), log(), &seal, None).unwrap();
    let id = journal.id();
    let (mut ops, mut synced, mut mark) = (Vec::<(u64, Op)>::new(), 0, 0);
    for (n, step) in (1..).zip(steps) {
        match step {
            Step::Append(_) | Step::Zero => {
                let op = match step {
                    Step::Append(length) => write(n, length),
                    _ => Op::Zero {
                        range: ByteRange::new(n, n * 3),
                    },
                };
                while !journal.has_room(4000) {
                    mark = ops.last().map_or(mark, |(end, _)| *end);
                    ops.clear();
                    journal.trim(mark);
                    tokio::task::yield_now().await;
                }
                ops.push((journal.append(op.clone()).unwrap(), op));
            }
            Step::Sync => {
                journal.sync().await.unwrap();
                synced = journal.position();
            }
            Step::Trim(index) if !ops.is_empty() => {
                mark = ops[index.index(ops.len())].0;
                ops.retain(|(end, _)| *end > mark);
                journal.trim(mark);
            }
            Step::Trim(_) => {}
            Step::Kill | Step::Reopen => {
                if matches!(step, Step::Kill) {
                    prepared(&journal).await;
                    place = copy_of(place.path());
                } else {
                    journal.end(false).await;
                    synced = journal.position();
                }
                let opened =
                    Journal::open(&config(place.path(), 4), log(), &seal, Some((id, mark)));
                let (next, replay) = opened.unwrap();
                let found = all(replay);
                assert_eq!(found[..], ops[..found.len()]);
                assert!(next.position() >= synced && next.position() >= mark);
                let lost = &ops[found.len()..];
                assert!(lost.iter().all(|(end, _)| *end > synced));
                ops.truncate(found.len());
                assert_eq!(next.id(), id);
                journal = next;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn it_is_as_a_list_that_loses_only_what_was_not_synced(
        steps in prop::collection::vec(step(), 0..120),
        encrypted in any::<bool>(),
    ) {
        let seal = both(1, 1)[usize::from(encrypted)].clone();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(follows_the_model(seal, steps));
    }
}
