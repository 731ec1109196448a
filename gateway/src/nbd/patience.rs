//! Whether to look for the next request before going to sleep.
//!
//! To put a processor to sleep and to wake it costs more than to serve a request, on virtual
//! machines many times more. A client that sends one request at a time answers a reply soon, so it
//! is worth to look for its next request for a short while, as long as it comes. QEMU does the
//! same for its disks (`poll-max-ns`).

use std::time::Duration;

/// How long to look.
pub(crate) const LOOK: Duration = Duration::from_micros(100);
/// What comes later than this was not worth to look for. The first looks find a client that is
/// still asleep itself, and takes longer than it will from then on.
const SOON: Duration = Duration::from_micros(50);
/// After so many requests that came alone the client is one that sends one at a time.
const ALONE: u32 = 32;
/// After so many vain looks in a row there are breaks, each twice as long as the one before.
const VAIN: u32 = 4;
const FIRST_BREAK: u32 = 32;
const LONGEST_BREAK: u32 = 1 << 14;

/// What is known of a client's habits.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// Requests in a row that came alone.
    alone: u32,
    /// Looks in a row that were in vain.
    vain: u32,
    /// Sleeps left until the next look.
    rest: u32,
    last_break: u32,
}

impl Patience {
    /// So many requests came together.
    pub(crate) fn came(&mut self, requests: usize) {
        match requests {
            0 => {}
            1 => self.alone = self.alone.saturating_add(1),
            _ => self.alone = 0,
        }
    }

    /// Whether to look before this sleep.
    pub(crate) fn is_worth_it(&mut self) -> bool {
        if self.alone < ALONE {
            return false;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        true
    }

    /// Takes note of a look that found something after so long, or did not.
    pub(crate) fn looked(&mut self, found: Option<Duration>) {
        if found.is_some_and(|after| after <= SOON) {
            self.vain = 0;
            self.last_break = 0;
            return;
        }
        self.vain += 1;
        if self.vain >= VAIN {
            // One more vain look is enough for the next.
            self.vain = VAIN - 1;
            self.last_break = (self.last_break * 2).clamp(FIRST_BREAK, LONGEST_BREAK);
            self.rest = self.last_break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many sleeps are preceded by a look, each of which finds something or not.
    fn looks(patience: &mut Patience, sleeps: u32, found: bool) -> u32 {
        let found = found.then_some(SOON);
        let mut looks = 0;
        for _ in 0..sleeps {
            if patience.is_worth_it() {
                patience.looked(found);
                looks += 1;
            }
            patience.came(1);
        }
        looks
    }

    #[test]
    fn only_a_client_that_sends_one_at_a_time_is_looked_for() {
        let mut patience = Patience::default();
        assert_eq!(looks(&mut patience, ALONE, true), 0);
        assert_eq!(looks(&mut patience, 1000, true), 1000);
        patience.came(2);
        assert_eq!(looks(&mut patience, ALONE, true), 0);
    }

    #[test]
    fn vain_looks_become_rare_and_good_ones_bring_them_back() {
        let mut patience = Patience::default();
        looks(&mut patience, ALONE, false);
        let vain = looks(&mut patience, 1_000_000, false);
        assert!((10..100).contains(&vain), "{vain}");
        assert!(looks(&mut patience, LONGEST_BREAK + 1, true) > 0);
        assert_eq!(looks(&mut patience, 1000, true), 1000);
    }
}
