//! What goes wrong with the requests to a store, and how often.

use crate::rng::Rng;

/// How many of a thousand requests suffer what, and times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Shortest and longest time that a request takes, one way.
    pub latency: (u64, u64),
    /// Takes up to `slowest` instead.
    pub slow: u64,
    /// See `slow`.
    pub slowest: u64,
    /// Fails and is not applied.
    pub fail: u64,
    /// Is applied, and an error is answered.
    pub lose_answer: u64,
    /// The connection dies part-way: an upload is applied or not, a download stops short.
    pub tear: u64,
    /// An error is answered, and only later is it applied.
    pub linger: u64,
    /// The longest of such delays.
    pub lingering: u64,
    /// Of those whose sender was killed or gave up, so many are applied all the same.
    pub orphan: u64,
    /// The longest time after which that happens.
    pub orphaned: u64,
    /// From when to when nothing gets through, in the time of the store.
    pub outages: Vec<(u64, u64)>,
    /// LIST answers in pages of at most so many.
    pub page: u64,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    /// Time until it reaches the store; `None` if it never does.
    pub arrives: Option<u64>,
    /// Time until the sender hears of it.
    pub answered: u64,
    /// Whether the sender hears of an error, whatever happened.
    pub error: bool,
    /// How many thousandths of a download come before it stops short.
    pub torn: Option<u64>,
    /// If the sender is killed or gives up: time until it reaches the store all the same.
    pub orphan: Option<u64>,
}

impl Faults {
    /// No faults and a steady latency.
    pub fn none() -> Self {
        Faults {
            latency: (1, 3),
            orphan: 500,
            orphaned: 50,
            page: 1000,
            ..Faults::default()
        }
    }

    /// The same without what the sender would notice: for when work must succeed.
    pub fn calm(&self) -> Self {
        Faults {
            page: self.page,
            latency: self.latency,
            ..Faults::none()
        }
    }

    /// Whether a sender may hear of errors that are not its own.
    pub fn any(&self) -> bool {
        self.fail + self.lose_answer + self.tear + self.linger + self.slow > 0
            || !self.outages.is_empty()
    }

    /// A mix for a seed; the outages lie within `span` from 0.
    pub fn by_seed(rng: &mut Rng, span: u64) -> Self {
        let mut faults = Faults::none();
        faults.page = *rng.pick(&[1, 2, 3, 10, 1000, 1000]);
        faults.orphan = *rng.pick(&[0, 300, 700, 1000]);
        faults.orphaned = *rng.pick(&[1, 50, 1_000, 20_000, 3_600_000]);
        faults.latency = *rng.pick(&[(0, 0), (1, 3), (1, 30), (10, 200), (0, 400)]);
        if rng.chance(300) {
            return faults;
        }
        let rate = *rng.pick(&[5, 20, 50, 150]);
        for share in [
            &mut faults.fail,
            &mut faults.lose_answer,
            &mut faults.tear,
            &mut faults.linger,
            &mut faults.slow,
        ] {
            *share = if rng.chance(500) { rate } else { 0 };
        }
        faults.slowest = *rng.pick(&[500, 5_000, 25_000]);
        faults.lingering = *rng.pick(&[10, 500, 10_000, 120_000]);
        if rng.chance(200) {
            let length = *rng.pick(&[100, 2_000, 15_000, 60_000]);
            let start = rng.below(span);
            faults.outages.push((start, start + length));
        }
        faults
    }

    /// What becomes of a request that is sent at `now`, by the numbers of `rng`, which is its own.
    pub fn fate(&self, mut rng: Rng, now: u64) -> Fate {
        let (low, high) = self.latency;
        let mut there = rng.within(low..=high);
        if rng.chance(self.slow) {
            there = rng.below(self.slowest + 1);
        }
        let back = rng.within(low..=high);
        let orphan = rng.chance(self.orphan);
        let mut fate = Fate {
            arrives: Some(there),
            answered: there + back,
            error: false,
            torn: None,
            orphan: orphan.then(|| there + rng.below(self.orphaned + 1)),
        };
        let out = self
            .outages
            .iter()
            .find(|(from, to)| (*from..*to).contains(&(now + there)));
        if out.is_some() {
            // Refused at once, or nothing is heard until the client's patience ends.
            fate.answered = if rng.chance(500) {
                there + back
            } else {
                30_000
            };
            fate.arrives = None;
            fate.error = true;
        } else if rng.chance(self.fail) {
            fate.arrives = None;
            fate.error = true;
        } else if rng.chance(self.lose_answer) {
            fate.error = true;
        } else if rng.chance(self.tear) {
            fate.torn = Some(rng.below(1000));
            fate.error = true;
            fate.arrives = fate.arrives.filter(|_| rng.chance(500));
        } else if rng.chance(self.linger) {
            fate.error = true;
            fate.arrives = Some(fate.answered + rng.below(self.lingering + 1));
        }
        fate
    }
}
