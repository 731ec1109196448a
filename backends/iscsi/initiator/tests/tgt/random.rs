//! Numbers by seed, and bytes to write.

use bytes::Bytes;

/// The SplitMix64 sequence of a seed (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", 2014).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number from 1 to `most`, small ones as often as large ones.
    pub fn length(&mut self, most: u64) -> u64 {
        let scale = self.below(u64::from(most.ilog2()) + 1);
        1 + self.below(most >> scale)
    }
}

/// Bytes to cut writes from: each place in it differs from every other, so what lands at a wrong
/// place is seen.
pub fn pool(seed: u64, length: usize) -> Bytes {
    let mut random = Random::new(seed);
    let words = (0..length.div_ceil(8)).flat_map(|_| random.next().to_le_bytes());
    words.take(length).collect::<Vec<u8>>().into()
}
