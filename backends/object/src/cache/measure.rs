//! What the cache costs; run with `--release -- --ignored --nocapture cache::measure`.

use std::hint::black_box;

use super::*;

const MIB: u64 = 1 << 20;
const BUDGET: u64 = 512 * MIB;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(end)) >> 64) as u64
    }
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// As the store's answers come: a buffer of some blocks, of which one or all are kept.
fn fill(cache: &Cache<Vec<u8>>, seed: u64, loads: u64) {
    let mut random = Random(seed);
    for n in 0..loads {
        let blocks = 1 + random.below(16);
        let answer = Bytes::from(vec![n as u8; blocks as usize * SLOT + 60]);
        let (object, first) = (random.below(10_000) as u32, random.below(1024) as u32);
        cache.put_blocks(object, first, &answer[..blocks as usize * SLOT]);
        // Mostly leaves of a map that was written at random.
        for _ in 0..2 {
            let leaf = random.below(200) > 0;
            let length = if leaf {
                800 + random.below(300)
            } else {
                20_000
            };
            let at = tests::at(random.below(400_000) as u32);
            cache.put_page(at, Arc::new(vec![1; length as usize]), length as u32);
        }
    }
}

/// Nanoseconds for which this thread had a processor: the machine may be busy with other work.
fn worked() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
#[ignore = "measures memory and time"]
fn memory_over_the_budget() {
    let before = resident();
    let cache = Cache::<Vec<u8>>::new(BUDGET).unwrap();
    for round in 0..6 {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let cache = &cache;
                scope.spawn(move || fill(cache, round * 31 + thread + 1, 60_000));
            }
        });
        let over = (resident() - before) as i64 - BUDGET as i64;
        println!(
            "round {round}: {:?}, over the budget: {} KiB",
            cache.stats(),
            over / 1024
        );
    }
    cache.forget_objects(|object| object % 2 == 0);
    fill(&cache, 99, 200_000);
    let over = (resident() - before) as i64 - BUDGET as i64;
    println!(
        "at the end: {:?}, over the budget: {} KiB",
        cache.stats(),
        over / 1024
    );
}

#[test]
#[ignore = "measures memory and time"]
fn time_of_a_get() {
    let cache = Cache::<Vec<u8>>::new(BUDGET).unwrap();
    let count = 80_000;
    for n in 0..count {
        cache.put_blocks(n / 1024, n % 1024, &[n as u8; SLOT]);
    }
    let mut random = Random(1);
    each("get", 2_000_000, |_| {
        let n = random.below(u64::from(count)) as u32;
        black_box(cache.block(n / 1024, n % 1024));
    });
    let block = [7; SLOT];
    each("put that evicts", 500_000, |n| {
        cache.put_blocks(1000 + n / 1024, n % 1024, &block);
    });
    each("miss and lead", 500_000, |n| {
        black_box(cache.fetch(100_000 + n / 1024, n % 1024));
    });
}

fn each(what: &str, count: u32, mut work: impl FnMut(u32)) {
    let begun = worked();
    (0..count).for_each(&mut work);
    println!("{what}: {} ns", (worked() - begun) / u64::from(count));
}
