//! When a thin pool will be full, from how it grew.
//!
//! What its usage was is written down in a file, once a minute at most, so that processes that look
//! once and end know it too. The file is gone after a boot, and what was known with it.

use std::path::Path;
use std::time::Duration;

/// Looks that are nearer to each other are one.
const APART: u64 = 60;
/// What is older says nothing of now.
const OLDEST: u64 = 24 * 3600;
/// Looks that are kept.
const MOST: usize = 256;
/// Less than this says nothing.
const LEAST: u64 = 5 * 60;
/// What takes longer than this is as good as never.
const NEVER: f64 = 10.0 * 365.0 * 86_400.0;

/// How full a pool was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// Seconds since 1970.
    pub at: u64,
    /// Share of the data that was in use, from 0 to 1.
    pub data: f64,
    /// Share of the metadata that was in use.
    pub metadata: f64,
}

/// Adds a look to those in the file `path`, and says when the pool will be full. What can't be read
/// or written is no reason to fail: then it is not known.
pub fn note(path: &Path, now: Look) -> Option<Duration> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut looks = read(&text, now.at);
    if looks
        .last()
        .is_none_or(|last| now.at.saturating_sub(last.at) >= APART)
    {
        looks.push(now);
        let first = looks.len().saturating_sub(MOST);
        looks.drain(..first);
        if let Err(error) = replace(path, &write(&looks)) {
            tracing::debug!(%error, path = %path.display(), "the pool's growth can't be noted");
        }
    } else {
        looks.push(now);
    }
    time_to_full(&looks)
}

/// The file is whole at any time.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension(format!("new-{}", std::process::id()));
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}

fn write(looks: &[Look]) -> String {
    let lines = looks
        .iter()
        .map(|look| format!("{} {} {}\n", look.at, look.data, look.metadata));
    lines.collect()
}

/// The looks of a file that say something of `now`, in their order.
fn read(text: &str, now: u64) -> Vec<Look> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let look = Look {
            at: words.next()?.parse().ok()?,
            data: words.next()?.parse().ok()?,
            metadata: words.next()?.parse().ok()?,
        };
        let share = |share: f64| (0.0..=1.0).contains(&share);
        let right = share(look.data) && share(look.metadata) && words.next().is_none();
        (right && look.at <= now && now - look.at <= OLDEST).then_some(look)
    };
    let mut looks: Vec<Look> = text.lines().filter_map(line).collect();
    looks.sort_by_key(|look| look.at);
    looks
}

/// By the line that fits the looks best (least squares), of data or metadata, whichever is first.
fn time_to_full(looks: &[Look]) -> Option<Duration> {
    let (first, last) = (looks.first()?, looks.last()?);
    if last.at - first.at < LEAST {
        return None;
    }
    let by = |share: fn(&Look) -> f64| {
        let pace = slope(looks, share);
        let seconds = (1.0 - share(last)) / pace;
        (pace > 0.0 && seconds < NEVER).then_some(seconds)
    };
    let (data, metadata) = (by(|look| look.data), by(|look| look.metadata));
    let soonest = data.into_iter().chain(metadata).min_by(f64::total_cmp)?;
    Some(Duration::from_secs_f64(soonest.max(0.0)))
}

/// Growth in a second.
fn slope(looks: &[Look], share: fn(&Look) -> f64) -> f64 {
    let count = looks.len() as f64;
    let start = looks.first().map_or(0, |look| look.at);
    let seconds = |look: &Look| (look.at - start) as f64;
    let mean_at = looks.iter().map(seconds).sum::<f64>() / count;
    let mean = looks.iter().map(share).sum::<f64>() / count;
    let both = |look: &Look| (seconds(look) - mean_at) * (share(look) - mean);
    let square = |look: &Look| (seconds(look) - mean_at).powi(2);
    looks.iter().map(both).sum::<f64>() / looks.iter().map(square).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn look(at: u64, data: f64, metadata: f64) -> Look {
        Look { at, data, metadata }
    }

    #[test]
    fn steady_growth_is_foreseen() {
        // One percent a minute, at 20 %.
        let looks: Vec<Look> = (0..=10)
            .map(|i| look(i * 60, 0.1 + i as f64 / 100.0, 0.5))
            .collect();
        let time = time_to_full(&looks).expect("it grows");
        assert!((time.as_secs_f64() - 80.0 * 60.0).abs() < 1.0, "{time:?}");
    }

    #[test]
    fn what_is_full_first_counts() {
        let looks: Vec<Look> = (0..=10)
            .map(|i| look(i * 60, i as f64 / 100.0, 0.8 + i as f64 / 100.0))
            .collect();
        let time = time_to_full(&looks).expect("it grows");
        assert!((time.as_secs_f64() - 600.0).abs() < 1.0, "{time:?}");
    }

    #[test]
    fn what_does_not_grow_is_never_full() {
        let still: Vec<Look> = (0..10).map(|i| look(i * 60, 0.5, 0.1)).collect();
        assert_eq!(time_to_full(&still), None);
        let falling: Vec<Look> = (0..10)
            .map(|i| look(i * 60, 0.5 - i as f64 / 100.0, 0.1))
            .collect();
        assert_eq!(time_to_full(&falling), None);
        assert_eq!(
            time_to_full(&[look(0, 0.1, 0.1), look(200, 0.9, 0.1)]),
            None,
            "too short"
        );
    }

    #[test]
    fn looks_are_kept_between_processes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("growth");
        let mut time = None;
        for second in (0..600).step_by(20) {
            time = note(
                &path,
                look(1_000_000 + second, 0.2 + second as f64 / 1e4, 0.1),
            );
        }
        let kept = std::fs::read_to_string(&path).expect("it is there");
        assert_eq!(kept.lines().count(), 10, "one a minute: {kept}");
        let time = time.expect("it grows").as_secs();
        assert!((7400..7440).contains(&time), "{time}");
        // A day later all of that is old.
        assert_eq!(note(&path, look(1_200_000, 0.3, 0.1)), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "[0-9 .\nNaif-]{0,200}", at: u64) {
            let looks = read(&text, at);
            let _ = time_to_full(&looks);
            prop_assert_eq!(read(&write(&looks), at), looks);
        }
    }
}
