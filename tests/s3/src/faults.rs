//! Latency and faults, by order or by seed.

use std::sync::Mutex;
use std::time::Duration;

use crate::Kind;

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refused with 503 SlowDown; nothing is done.
    SlowDown,
    /// Refused with 500 InternalError; nothing is done.
    Internal,
    /// Refused with 403 AccessDenied; nothing is done.
    Denied,
    /// The connection is reset; nothing is done.
    Reset,
    /// It is done, and the connection is reset instead of the answer.
    LostAnswer,
    /// It is done, and half of the answer comes before the connection is reset.
    TornAnswer,
    /// Nothing is done, and no answer comes before so long a time; then the connection is reset.
    Hang(Duration),
}

/// Which requests fail, and how.
#[derive(Clone, Debug)]
pub struct Rule {
    /// How they fail.
    pub fault: Fault,
    /// Only these; `None`: all kinds.
    pub kind: Option<Kind>,
    /// Only those whose key holds this text.
    pub key: String,
    /// So many of them are let through first.
    pub skip: u64,
    /// So many fail after that, then the rule is gone.
    pub times: u64,
}

impl Rule {
    /// The next request of any kind.
    pub fn once(fault: Fault) -> Self {
        Rule {
            fault,
            kind: None,
            key: String::new(),
            skip: 0,
            times: 1,
        }
    }

    /// The same for requests of one kind only.
    #[must_use]
    pub fn of(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// The same for so many requests.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// The same after so many that are let through.
    #[must_use]
    pub fn after(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// The same for keys that hold this text only.
    #[must_use]
    pub fn key(mut self, part: impl Into<String>) -> Self {
        self.key = part.into();
        self
    }

    fn fits(&self, kind: Kind, key: &str) -> bool {
        self.kind.is_none_or(|wanted| wanted == kind) && key.contains(&self.key)
    }
}

/// What is wrong with the server at the moment.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    latency: Duration,
    latency_of: [Option<Duration>; Kind::COUNT],
    rules: Vec<Rule>,
    random: Option<(u64, u32)>,
}

impl Faults {
    pub(crate) fn latency(&self, kind: Option<Kind>, latency: Duration) {
        let mut inner = self.0.lock().expect("nobody panicked");
        match kind {
            Some(kind) => inner.latency_of[kind as usize] = Some(latency),
            None => {
                inner.latency_of = Default::default();
                inner.latency = latency;
            }
        }
    }

    pub(crate) fn add(&self, rule: Rule) {
        self.0.lock().expect("nobody panicked").rules.push(rule);
    }

    pub(crate) fn random(&self, seed: u64, per_mille: u32) {
        self.0.lock().expect("nobody panicked").random = Some((seed, per_mille));
    }

    /// Ends all latency and every rule.
    pub(crate) fn clear(&self) {
        *self.0.lock().expect("nobody panicked") = Inner::default();
    }

    /// How long the next request takes, and how it fails, if it does.
    pub(crate) fn next(&self, kind: Kind, key: &str) -> (Duration, Option<Fault>) {
        let mut inner = self.0.lock().expect("nobody panicked");
        let latency = inner.latency_of[kind as usize].unwrap_or(inner.latency);
        if let Some(at) = inner.rules.iter().position(|rule| rule.fits(kind, key)) {
            let rule = &mut inner.rules[at];
            if rule.skip > 0 {
                rule.skip -= 1;
                return (latency, None);
            }
            let fault = rule.fault;
            rule.times = rule.times.saturating_sub(1);
            if rule.times == 0 {
                inner.rules.remove(at);
            }
            return (latency, Some(fault));
        }
        let Some((state, per_mille)) = &mut inner.random else {
            return (latency, None);
        };
        let number = splitmix(state);
        let fault = [
            Fault::SlowDown,
            Fault::Internal,
            Fault::Reset,
            Fault::LostAnswer,
            Fault::TornAnswer,
        ][(number >> 32) as usize % 5];
        let strikes = (number as u32) % 1000 < *per_mille;
        (latency, strikes.then_some(fault))
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the next number of a sequence.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_strikes_as_often_as_it_says() {
        let faults = Faults::default();
        faults.add(
            Rule::once(Fault::Reset)
                .of(Kind::Get)
                .key("m/")
                .after(1)
                .times(2),
        );
        let next = |kind, key| faults.next(kind, key).1;
        assert_eq!(next(Kind::Put, "m/1"), None);
        assert_eq!(next(Kind::Get, "d/1"), None);
        assert_eq!(next(Kind::Get, "m/1"), None);
        assert_eq!(next(Kind::Get, "m/1"), Some(Fault::Reset));
        assert_eq!(next(Kind::Get, "m/2"), Some(Fault::Reset));
        assert_eq!(next(Kind::Get, "m/2"), None);
    }

    #[test]
    fn a_seed_gives_the_same_faults_again() {
        let run = |seed| -> Vec<Option<Fault>> {
            let faults = Faults::default();
            faults.random(seed, 200);
            (0..1000).map(|_| faults.next(Kind::Get, "").1).collect()
        };
        let first = run(7);
        assert_eq!(first, run(7));
        assert_ne!(first, run(8));
        let struck = first.iter().flatten().count();
        assert!((100..300).contains(&struck), "{struck} of 1000");
    }

    #[test]
    fn latency_is_that_of_the_kind() {
        let faults = Faults::default();
        let ms = Duration::from_millis;
        faults.latency(None, ms(5));
        faults.latency(Some(Kind::Put), ms(20));
        assert_eq!(faults.next(Kind::Get, "").0, ms(5));
        assert_eq!(faults.next(Kind::Put, "").0, ms(20));
        faults.clear();
        assert_eq!(faults.next(Kind::Put, "").0, ms(0));
    }
}
