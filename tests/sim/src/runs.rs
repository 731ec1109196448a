//! A map from byte ranges to what was written there.

use std::collections::BTreeMap;
use std::ops::Range;

/// Which write each byte is from; 0 where none is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs(BTreeMap<u64, (u64, u64)>);

impl Runs {
    /// Says that `range` is from write `id` now.
    pub fn set(&mut self, range: Range<u64>, id: u64) {
        if range.is_empty() {
            return;
        }
        self.split(range.start);
        self.split(range.end);
        let inner: Vec<u64> = self
            .0
            .range(range.clone())
            .map(|(start, _)| *start)
            .collect();
        for start in inner {
            self.0.remove(&start);
        }
        if id != 0 {
            self.0.insert(range.start, (range.end, id));
        }
    }

    fn split(&mut self, at: u64) {
        let Some((_, (end, id))) = self.0.range_mut(..at).next_back() else {
            return;
        };
        if *end > at {
            let rest = (*end, *id);
            *end = at;
            self.0.insert(at, rest);
        }
    }

    /// The write that the byte at `at` is from.
    pub fn at(&self, at: u64) -> u64 {
        match self.0.range(..=at).next_back() {
            Some((_, (end, id))) if *end > at => *id,
            _ => 0,
        }
    }

    /// The runs that are from writes, within `range`.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, u64)> {
        let first = self
            .0
            .range(..=range.start)
            .next_back()
            .map_or(range.start, |(s, _)| *s);
        let inner = self.0.range(first..range.end.max(first));
        inner.filter_map(move |(start, (end, id))| {
            let part = (*start).max(range.start)..(*end).min(range.end);
            (!part.is_empty()).then_some((part, *id))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn runs_are_what_an_array_would_be() {
        let mut rng = Rng::new(3);
        let mut runs = Runs::default();
        let mut array = [0u64; 64];
        for step in 0..2000 {
            let (a, b) = (rng.below(65), rng.below(65));
            let range = a.min(b)..a.max(b);
            let id = if rng.chance(300) { 0 } else { step };
            runs.set(range.clone(), id);
            array[range.start as usize..range.end as usize].fill(id);
            assert!((0..64).all(|at| runs.at(at) == array[at as usize]));
            let mut again = [0u64; 64];
            for (part, id) in runs.within(range.clone()) {
                again[part.start as usize..part.end as usize].fill(id);
            }
            let same = range.start as usize..range.end as usize;
            assert_eq!(again[same.clone()], array[same]);
        }
    }
}
