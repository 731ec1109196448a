//! Identifiers, from one source that a simulation can seed.

use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

/// Where random identifiers come from.
#[derive(Debug)]
pub struct Ids(Option<Mutex<u64>>);

impl Ids {
    /// From the operating system.
    pub const fn random() -> Self {
        Ids(None)
    }

    /// The same ones each time, for simulations only: two pools on one store need different seeds.
    pub const fn seeded(seed: u64) -> Self {
        Ids(Some(Mutex::new(seed)))
    }

    /// Twelve bytes, for a nonce.
    pub fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        // Six bits of a random UUID are not random: these bytes are.
        let (a, b) = (self.uuid(), self.uuid());
        nonce[..6].copy_from_slice(&a.as_bytes()[..6]);
        nonce[6..].copy_from_slice(&b.as_bytes()[..6]);
        nonce
    }

    /// A new one.
    pub fn uuid(&self) -> Uuid {
        match &self.0 {
            None => Uuid::new_v4(),
            Some(state) => {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                let (high, low) = (split_mix(&mut state), split_mix(&mut state));
                uuid::Builder::from_random_bytes(
                    (u128::from(high) << 64 | u128::from(low)).to_be_bytes(),
                )
                .into_uuid()
            }
        }
    }
}

/// Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014.
fn split_mix(state: &mut u64) -> u64 {
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
    fn a_seed_gives_the_same_ids_and_each_only_once() {
        let (a, b) = (Ids::seeded(7), Ids::seeded(7));
        let ids: Vec<Uuid> = (0..100).map(|_| a.uuid()).collect();
        assert!(ids.iter().all(|id| *id == b.uuid()));
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
        assert_ne!(Ids::random().uuid(), Ids::random().uuid());
    }
}
