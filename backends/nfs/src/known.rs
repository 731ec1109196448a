//! Records that were read before, for listings: opening, reading and closing a small file costs three
//! times as much as a look at whether it is still the same one.
//!
//! Only listings use this. Whatever acts on a volume reads its record anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::AtFlags;
use volmux_core::VolumeName;

use crate::layout::{PoolDirs, record_file};
use crate::record::VolumeRecord;

/// At most so many records are remembered (some 40 MB); past that listings read files again.
const MOST: usize = 100_000;
/// The coarsest step of a file system's clock (jiffies before Linux 6.13), and then some.
const SETTLED: Duration = Duration::from_millis(100);

/// Which file a record was in, and in which state. A record is replaced by renaming a new file over it,
/// so another record is another inode; writing into the file in place moves its change time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    size: u64,
    changed: Duration,
}

impl PoolDirs {
    /// The stamp of a volume's record; `None` if that can't be told.
    pub fn stamp(&self, name: &VolumeName) -> Option<Stamp> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statat(&self.volumes, record_file(name), flags).ok()?;
        let (seconds, nanos) = (stat.st_ctime as u64, stat.st_ctime_nsec as u32);
        let changed = Duration::new(seconds, nanos);
        Some(Stamp {
            inode: stat.st_ino,
            size: stat.st_size as u64,
            changed,
        })
    }
}

impl Stamp {
    /// Whether a change after `now` would show as another stamp. One within the same step of the
    /// clock might not, so such a record must not be remembered yet.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.changed + SETTLED < now
    }
}

/// Records by name, each with the stamp of the file that it was read from.
#[derive(Debug, Default)]
pub struct KnownRecords(Mutex<HashMap<VolumeName, (Stamp, Arc<VolumeRecord>)>>);

impl KnownRecords {
    /// Those of `names` whose stamp is still the same.
    pub fn get(
        &self,
        names: &[VolumeName],
        stamps: &[Option<Stamp>],
    ) -> Vec<Option<Arc<VolumeRecord>>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |(name, stamp): (&VolumeName, &Option<Stamp>)| {
            let (then, record) = known.get(name)?;
            (Some(*then) == *stamp).then(|| record.clone())
        };
        names.iter().zip(stamps).map(one).collect()
    }

    /// Remembers what was read.
    pub fn put(&self, read: Vec<(VolumeName, Stamp, Arc<VolumeRecord>)>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() + read.len() > MOST {
            known.clear();
        }
        known.extend(
            read.into_iter()
                .take(MOST)
                .map(|(name, stamp, record)| (name, (stamp, record))),
        );
    }
}

#[cfg(test)]
mod tests {
    use volmux_core::{ByteSize, Provisioning, VolumeId};

    use super::*;
    use crate::node::Node;

    fn record() -> Arc<VolumeRecord> {
        let size = ByteSize::mib(1);
        Arc::new(VolumeRecord::new(
            Node::raw(VolumeId::random()),
            size,
            Provisioning::Thin,
        ))
    }

    #[test]
    fn only_the_same_file_in_the_same_state_is_known() {
        let known = KnownRecords::default();
        let name = VolumeName::new("a").expect("a good name");
        let stamp = Stamp {
            inode: 7,
            size: 300,
            changed: Duration::from_secs(9),
        };
        let kept = record();
        known.put(vec![(name.clone(), stamp, kept.clone())]);
        let get = |stamp| known.get(std::slice::from_ref(&name), &[stamp]).remove(0);
        assert_eq!(get(Some(stamp)), Some(kept));
        for other in [
            Stamp { inode: 8, ..stamp },
            Stamp { size: 301, ..stamp },
            Stamp {
                changed: Duration::from_nanos(9_000_000_001),
                ..stamp
            },
        ] {
            assert_eq!(get(Some(other)), None);
        }
        assert_eq!(get(None), None);
    }

    #[test]
    fn a_file_that_has_just_changed_is_not_settled() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let stamp = |changed| Stamp {
            inode: 1,
            size: 1,
            changed,
        };
        assert!(!stamp(Duration::from_millis(99_950)).is_settled(now));
        assert!(!stamp(Duration::from_secs(200)).is_settled(now));
        assert!(stamp(Duration::from_secs(99)).is_settled(now));
    }

    #[test]
    fn memory_is_bounded() {
        let known = KnownRecords::default();
        let stamp = Stamp {
            inode: 1,
            size: 1,
            changed: Duration::ZERO,
        };
        let shared = record();
        for batch in 0..11 {
            let name = |i| VolumeName::new(format!("v{batch}-{i}")).expect("a good name");
            known.put(
                (0..MOST / 10)
                    .map(|i| (name(i), stamp, shared.clone()))
                    .collect(),
            );
        }
        assert!(known.0.lock().expect("not poisoned").len() <= MOST);
    }
}
