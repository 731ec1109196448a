//! Whether requests are worth trying without waiting.
//!
//! `RWF_NOWAIT` (preadv2(2)) reads what the page cache holds and writes what it can take at once,
//! and refuses everything else; what is refused goes to a thread that may wait. Some file systems
//! never do it and say so (ext4 and NFS for writes, tmpfs for both), and others refuse each request
//! (btrfs writes, unless copy-on-write is off).

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// After so many refusals in a row only some requests are tried.
const PATIENCE: u32 = 16;
/// One of so many.
const RARELY: u32 = 256;
const NEVER: u32 = u32::MAX;

/// What became of the requests of one kind, on one open file.
#[derive(Debug, Default)]
pub struct Nowait(AtomicU32);

impl Nowait {
    /// Whether to try the next one.
    pub fn is_worth_trying(&self) -> bool {
        match self.0.load(Ordering::Relaxed) {
            refused if refused < PATIENCE => true,
            NEVER => false,
            refused => {
                // Requests at the same time may be counted as one: this is only about cost.
                self.0.store(refused + 1, Ordering::Relaxed);
                refused.is_multiple_of(RARELY)
            }
        }
    }

    /// Takes note of a try, and returns how many bytes it did.
    pub fn done(&self, tried: &io::Result<usize>) -> usize {
        match tried {
            Ok(done) => {
                if self.0.load(Ordering::Relaxed) != 0 {
                    self.0.store(0, Ordering::Relaxed);
                }
                return *done;
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => {
                    self.0.store(NEVER, Ordering::Relaxed);
                }
                _ => {
                    let refused = self.0.load(Ordering::Relaxed);
                    if refused < PATIENCE {
                        self.0.store(refused + 1, Ordering::Relaxed);
                    }
                }
            },
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: i32) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn what_is_never_done_is_not_tried_again() {
        let nowait = Nowait::default();
        assert!(nowait.is_worth_trying());
        assert_eq!(nowait.done(&error(libc::EOPNOTSUPP)), 0);
        assert!((0..10_000).all(|_| !nowait.is_worth_trying()));
    }

    #[test]
    fn what_is_always_refused_is_tried_rarely_until_it_is_done() {
        let nowait = Nowait::default();
        let tries = |requests: usize, result: &dyn Fn() -> io::Result<usize>| {
            let tried = (0..requests).filter(|_| {
                let worth = nowait.is_worth_trying();
                if worth {
                    nowait.done(&result());
                }
                worth
            });
            tried.count()
        };
        let refused = || error(libc::EAGAIN);
        assert_eq!(tries(PATIENCE as usize, &refused), PATIENCE as usize);
        let rare = tries(100 * RARELY as usize, &refused);
        assert_eq!(rare, 100);
        let until_the_next = RARELY as usize;
        assert_eq!(tries(until_the_next, &refused), 1);
        assert!(tries(until_the_next, &|| Ok(4096)) > 0);
        assert_eq!(tries(1000, &|| Ok(4096)), 1000);
    }

    #[test]
    fn a_refusal_now_and_then_does_not_count() {
        let nowait = Nowait::default();
        for _ in 0..100 {
            for _ in 0..PATIENCE - 1 {
                assert!(nowait.is_worth_trying());
                nowait.done(&error(libc::EAGAIN));
            }
            assert!(nowait.is_worth_trying());
            assert_eq!(nowait.done(&Ok(7)), 7);
        }
    }
}
