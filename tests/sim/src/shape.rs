//! What a seed's simulation is like.

use crate::faults::Faults;
use crate::rng::Rng;

/// Something that can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// See the functions of these names.
    Write,
    /// Write zeros.
    Zero,
    /// Discard.
    Discard,
    /// Read a range.
    Read,
    /// Flush.
    Flush,
    /// Look the size up.
    Refresh,
    /// Open for writing.
    Open,
    /// Open for writing, whoever has it.
    TakeOver,
    /// Close what is open for writing.
    Close,
    /// Two hosts take one volume over.
    Duel,
    /// Look at a whole volume as a reader.
    Verify,
    /// Look at a whole volume as its writer.
    VerifyWriter,
    /// Create a volume.
    Create,
    /// Create a volume that is there.
    CreateAgain,
    /// Snapshot a volume.
    Snapshot,
    /// Clone a volume or a snapshot.
    Clone,
    /// Copy a volume or a snapshot.
    Copy,
    /// Delete a volume or a snapshot.
    Delete,
    /// Rename.
    Rename,
    /// Grow or shrink.
    Resize,
    /// Revert to a snapshot.
    Revert,
    /// Collect garbage.
    Collect,
    /// Audit.
    Audit,
    /// List.
    List,
    /// Repeat what may not have come about.
    Retry,
    /// Look whether it did.
    Look,
    /// Open a volume of which a change is in doubt.
    Seal,
    /// A host dies and comes back.
    Crash,
    /// Nothing is asked for, for a while.
    Rest,
}

/// Each action and how often it is done, to begin with.
pub const ACTIONS: [(Action, u64); 29] = [
    (Action::Write, 60),
    (Action::Zero, 6),
    (Action::Discard, 6),
    (Action::Read, 15),
    (Action::Flush, 15),
    (Action::Refresh, 2),
    (Action::Open, 14),
    (Action::TakeOver, 5),
    (Action::Close, 5),
    (Action::Duel, 2),
    (Action::Verify, 6),
    (Action::VerifyWriter, 3),
    (Action::Create, 8),
    (Action::CreateAgain, 2),
    (Action::Snapshot, 8),
    (Action::Clone, 7),
    (Action::Copy, 2),
    (Action::Delete, 6),
    (Action::Rename, 3),
    (Action::Resize, 5),
    (Action::Revert, 5),
    (Action::Collect, 6),
    (Action::Audit, 2),
    (Action::List, 3),
    (Action::Retry, 10),
    (Action::Look, 6),
    (Action::Seal, 4),
    (Action::Crash, 2),
    (Action::Rest, 5),
];

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At this request, from the beginning of the life.
    AtRequest(u64),
    /// After so many milliseconds.
    AtTime(u64),
    /// When everything that was asked for is done.
    Done,
    /// The same, and everything was flushed and looked at.
    Clean,
}

/// What a seed's simulation is like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Number of hosts.
    pub hosts: usize,
    /// Number of actions in each life.
    pub steps: u64,
    /// Most actions at a time.
    pub together: usize,
    /// How often each of [`ACTIONS`] is done.
    pub weights: Vec<u64>,
    /// What goes wrong in each life, and how it ends.
    pub lives: Vec<(Faults, End)>,
    /// The longest pause between two actions, in milliseconds.
    pub pause: u64,
}

impl Shape {
    /// The shape of a seed.
    pub fn by_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed).fork(1);
        let steps = rng.within(8..=45);
        let mut weights: Vec<u64> = ACTIONS.iter().map(|(_, weight)| *weight * 4).collect();
        for weight in &mut weights {
            *weight = match rng.below(10) {
                0..2 => 0,
                2..3 => *weight * 4,
                3..5 => *weight / 4,
                _ => *weight,
            };
        }
        // What little is needed of is given up only where there is little in an object, and
        // collections come one after another.
        if rng.chance(300) {
            let collect = ACTIONS
                .iter()
                .position(|(action, _)| *action == Action::Collect);
            let often = 400 * rng.within(1..=4);
            if let Some(weight) = collect.and_then(|at| weights.get_mut(at)) {
                *weight = often;
            }
        }
        // Without these nothing would happen at all.
        for (weight, (action, usual)) in weights.iter_mut().zip(ACTIONS) {
            if matches!(action, Action::Create | Action::Open | Action::Write) {
                *weight = (*weight).max(usual);
            }
        }
        let lives = rng.within(1..=4);
        let pause = *rng.pick(&[0, 5, 50, 500, 10_000]);
        let lives = (0..lives).map(|_| {
            let span = steps * pause.max(10);
            let faults = Faults::by_seed(&mut rng, span);
            let end = match rng.below(10) {
                0..4 => End::AtRequest(rng.within(1..=120)),
                4..6 => End::AtTime(rng.below(span)),
                6..8 => End::Done,
                _ => End::Clean,
            };
            (faults, end)
        });
        let lives = lives.collect();
        Shape {
            hosts: *rng.pick(&[1, 1, 2, 2, 3]),
            steps,
            together: *rng.pick(&[1, 2, 4, 12]),
            weights,
            lives,
            pause,
        }
    }
}
