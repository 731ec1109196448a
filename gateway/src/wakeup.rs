//! Waking a thread that waits for a socket and for futures at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Wake;

use rustix::event::{EventfdFlags, eventfd};

const AWAKE: u8 = 0;
const NOTIFIED: u8 = 1;
const ASLEEP: u8 = 2;

/// Wakes one thread, which looks at its futures again.
#[derive(Debug)]
pub(crate) struct Wakeup {
    state: AtomicU8,
    event: OwnedFd,
}

impl Wakeup {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Wakeup {
            state: AtomicU8::new(AWAKE),
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        }))
    }

    /// Forgets earlier calls. What the thread looks at after this is new.
    pub(crate) fn begin(&self) {
        self.state.store(AWAKE, Ordering::SeqCst);
    }

    /// Whether the thread may sleep: nobody called since [`begin`](Self::begin). If so, the next
    /// call makes [`event`](Self::event) readable.
    pub(crate) fn may_sleep(&self) -> bool {
        self.state
            .compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Readable after a call to a thread that sleeps.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// After a sleep that a call ended.
    pub(crate) fn clear_event(&self) {
        // Nothing to read is as good: another call will come with an event of its own.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
    }
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(NOTIFIED, Ordering::SeqCst) == ASLEEP {
            // Fails only when the counter is full, and then the thread is awake.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn readable(wakeup: &Wakeup) -> bool {
        let event = wakeup.event();
        let mut fds = [PollFd::new(&event, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).expect("poll") == 1
    }

    #[test]
    fn a_call_before_sleep_keeps_awake_and_one_after_it_makes_an_event() {
        let wakeup = Wakeup::new().expect("an eventfd");
        wakeup.begin();
        wakeup.wake_by_ref();
        assert!(!wakeup.may_sleep());
        assert!(
            !readable(&wakeup),
            "no system call for a thread that is awake"
        );
        wakeup.begin();
        assert!(wakeup.may_sleep());
        wakeup.wake_by_ref();
        wakeup.wake_by_ref();
        assert!(readable(&wakeup));
        wakeup.clear_event();
        assert!(!readable(&wakeup));
    }
}
