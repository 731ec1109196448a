//! Attachments of imports and exports that were killed.
//!
//! An attachment outlives its process. Whose process is gone is in nobody's way: its holder says
//! on which host and by which process it was made.

use std::fs;

use volmux::{Error, ErrorKind, Holder, Pool, Result, VolumeName};

/// What our holders begin with.
const PREFIX: &str = "volmux-cli-";
/// More attachments of killed processes than this on one volume are left for a person to look at.
const MAX_STALE: usize = 64;

/// This process as a holder: `volmux-cli-VERB-HOST-PID-START`.
///
/// # Errors
/// `Internal` if /proc can't be read.
pub fn own_holder(verb: &str) -> Result<Holder> {
    let pid = std::process::id();
    let start = start_time(pid).ok_or_else(|| {
        Error::new(ErrorKind::Internal, "holder").reason("/proc/self/stat can't be read")
    })?;
    Holder::new(format!("{PREFIX}{verb}-{}-{pid}-{start}", host()))
}

/// The host's name, as far as a holder can hold it.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim()
        .chars()
        .map(|c| if c.is_ascii_graphic() { c } else { '_' })
        .take(64)
        .collect()
}

/// When a process began, in clock ticks since boot: with the pid it names a process.
fn start_time(pid: u32) -> Option<u64> {
    start_time_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22; the second is the program's name, in parentheses, and may hold anything.
fn start_time_in(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether `holder` is ours, of this host, and its process is gone.
fn is_dead(holder: &str) -> bool {
    let parse = || {
        let mut parts = holder.strip_prefix(PREFIX)?.rsplitn(3, '-');
        let start: u64 = parts.next()?.parse().ok()?;
        let pid: u32 = parts.next()?.parse().ok()?;
        let (_verb, holder_host) = parts.next()?.split_once('-')?;
        Some((pid, start, holder_host))
    };
    parse().is_some_and(|(pid, start, holder_host)| {
        holder_host == host() && start_time(pid) != Some(start)
    })
}

/// The dead holders that a `Busy` error names.
fn dead_holders(error: &Error) -> Vec<Holder> {
    if error.kind() != ErrorKind::Busy {
        return Vec::new();
    }
    error
        .context()
        .flat_map(|(_, value)| value.split([' ', ',', '"', '\'', '(', ')']))
        .filter(|word| is_dead(word))
        .filter_map(|word| Holder::new(word).ok())
        .collect()
}

/// Runs `work`; where dead imports or exports are in its way, detaches them and tries again.
///
/// # Errors
/// Those of `work` and of detaching.
pub async fn retry<T>(
    pool: &dyn Pool,
    name: &VolumeName,
    work: impl AsyncFn() -> Result<T>,
) -> Result<T> {
    for _ in 0..MAX_STALE {
        let error = match work().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let dead = dead_holders(&error);
        if dead.is_empty() {
            return Err(error);
        }
        for holder in dead {
            tracing::info!(volume = %name, %holder, "detaching a killed process");
            pool.detach_volume(name, &holder).await?;
        }
    }
    work().await
}

/// Deletes `name`, detaching dead imports and exports.
///
/// # Errors
/// Those of the pool.
pub async fn delete(pool: &dyn Pool, name: &VolumeName) -> Result<()> {
    retry(pool, name, async || pool.delete_volume(name).await).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_looks_like_a_dead_process(text in "\\PC{0,80}") {
            let _ = start_time_in(&text);
            prop_assert!(!is_dead(&text));
        }
    }

    #[test]
    fn a_program_name_with_parentheses_does_not_confuse() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1";
        assert_eq!(start_time_in(stat), Some(987_654));
        assert_eq!(start_time_in("42 (a"), None);
        assert_eq!(start_time_in(""), None);
    }

    #[test]
    fn only_a_process_of_this_host_that_is_gone_is_dead() {
        let own = own_holder("import").expect("holder");
        assert!(!is_dead(own.as_str()));
        let other_start = format!("{}9", own.as_str());
        assert!(is_dead(&other_start));
        for foreign in [
            format!("{PREFIX}import-elsewhere.example-1-1"),
            format!("{PREFIX}import-1"),
            format!("vm-{}-1-1", host()),
            String::new(),
        ] {
            assert!(!is_dead(&foreign), "{foreign}");
        }
    }

    #[test]
    fn dead_holders_are_found_in_a_busy_error() {
        let dead = format!("{}9", own_holder("export").expect("holder"));
        let error = Error::new(ErrorKind::Busy, "delete_volume")
            .reason(format!("attached to host-1, {dead} (read-only)"));
        let found: Vec<String> = dead_holders(&error).into_iter().map(String::from).collect();
        assert_eq!(found, [dead]);
        assert!(dead_holders(&error.with_kind(ErrorKind::NotFound)).is_empty());
    }
}
