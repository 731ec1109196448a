//! Who uses a data file: byte-range locks that other volmux processes and QEMU understand.
//!
//! QEMU (`block/file-posix.c`, since 2.10) announces on bytes 100+p that it uses permission p, and
//! on bytes 200+p that it lets nobody else use p, by shared locks; a test for an exclusive lock
//! tells whether anybody has announced. volmux announces the same, so that neither opens for
//! writing what the other writes. The locks end with the process that holds them.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use volmux_core::{Access, ByteRange, Sharing};

use crate::sys::{self, Lock};

const USES: u64 = 100;
const KEEPS: u64 = 200;
const READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;
/// Every byte that a user of the file may have locked.
const ALL: ByteRange = ByteRange::new(USES, 200);

/// Held exclusively by who keeps all others from the file, but only for a moment.
const CHANGING: ByteRange = ByteRange::new(1, 1);
/// Held by those who wait for that.
const WAITING: ByteRange = ByteRange::new(2, 1);

fn byte(base: u64, permission: u64) -> ByteRange {
    ByteRange::new(base + permission, 1)
}

/// Announces what one uses and keeps from others; `Ok(false)`, with nothing announced any more, if
/// that does not go together with what others have announced.
fn announce(file: &File, uses: &[u64], keeps: &[u64]) -> io::Result<bool> {
    let announced = try_announce(file, uses, keeps);
    if !matches!(announced, Ok(true)) {
        sys::unlock(file, ALL)?;
    }
    announced
}

fn try_announce(file: &File, uses: &[u64], keeps: &[u64]) -> io::Result<bool> {
    let bytes = uses
        .iter()
        .map(|&p| byte(USES, p))
        .chain(keeps.iter().map(|&p| byte(KEEPS, p)));
    for byte in bytes {
        if !sys::try_lock(file, Lock::Shared, byte)? {
            return Ok(false);
        }
    }
    // First announce, then look: of two that do so at once, at least one sees the other.
    let against = uses
        .iter()
        .map(|&p| byte(KEEPS, p))
        .chain(keeps.iter().map(|&p| byte(USES, p)));
    for byte in against {
        if sys::would_block(file, Lock::Exclusive, byte)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes the locks of an open volume; `Ok(false)` if somebody's use stands against it. They end
/// when the last descriptor of `file` is closed.
pub fn lock_for(file: &File, access: Access, sharing: Sharing) -> io::Result<bool> {
    match (access, sharing) {
        (Access::ReadOnly, _) => announce(file, &[READ], &[]),
        (Access::ReadWrite, Sharing::Shared) => announce(file, &[READ, WRITE], &[]),
        (Access::ReadWrite, Sharing::Exclusive) => {
            announce(file, &[READ, WRITE, RESIZE], &[WRITE, RESIZE])
        }
    }
}

/// Keeps writers out while a copy is made; `Ok(false)` if there is one.
pub fn lock_against_writers(file: &File) -> io::Result<bool> {
    announce(file, &[READ], &[WRITE, RESIZE])
}

/// Takes the file for oneself alone; `Ok(false)` if anybody uses it.
pub fn lock_alone(file: &File) -> io::Result<bool> {
    sys::try_lock(file, Lock::Exclusive, ALL)
}

/// Tells others that the locks that this holder has or takes next will be gone in a moment;
/// `Ok(false)` if somebody else has just said so.
pub fn begin_changing(file: &File) -> io::Result<bool> {
    sys::try_lock(file, Lock::Exclusive, CHANGING)
}

/// Ends what [`begin_changing`] began.
pub fn end_changing(file: &File) -> io::Result<()> {
    sys::unlock(file, CHANGING)
}

/// Whether somebody keeps others from the file for a moment only.
pub fn is_changing(file: &File) -> io::Result<bool> {
    sys::would_block(file, Lock::Exclusive, CHANGING)
}

/// Whether somebody waits for the file.
pub fn is_waited_for(file: &File) -> io::Result<bool> {
    sys::would_block(file, Lock::Exclusive, WAITING)
}

/// Keeps readers out, who must not hold anything of it; `Ok(false)` if there is one.
pub fn lock_readers_out(file: &File) -> io::Result<bool> {
    sys::try_lock(file, Lock::Exclusive, byte(USES, READ))
}

/// Gives up the announcement that the file is read, or makes it again.
pub fn set_reading(file: &File, reads: bool) -> io::Result<()> {
    if !reads {
        return sys::unlock(file, byte(USES, READ));
    }
    if sys::try_lock(file, Lock::Shared, byte(USES, READ))? {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }
}

/// Of a writer's announcements keeps the one that the file is read.
pub fn only_read(file: &File) -> io::Result<()> {
    for byte in [
        byte(USES, WRITE),
        byte(USES, RESIZE),
        byte(KEEPS, WRITE),
        byte(KEEPS, RESIZE),
    ] {
        sys::unlock(file, byte)?;
    }
    Ok(())
}

/// Gives up all announcements.
pub fn release(file: &File) -> io::Result<()> {
    sys::unlock(file, ALL)
}

/// How long to wait for who keeps others from a file only for a moment.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries.
pub const PAUSE: Duration = Duration::from_millis(20);

/// How often to try again to take a lock.
#[derive(Debug)]
pub struct Patience {
    deadline: Instant,
    once_more: bool,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            deadline: Instant::now() + PATIENCE,
            once_more: true,
        }
    }
}

impl Patience {
    /// Whether to try again: `file` could not be locked. If somebody keeps others from it for a
    /// moment only, waits a little, and tells him so.
    pub fn again(&mut self, file: &File) -> io::Result<bool> {
        if Instant::now() >= self.deadline || !is_changing(file)? {
            // It may have been a moment ago.
            return Ok(std::mem::take(&mut self.once_more));
        }
        self.once_more = true;
        let waiting = sys::try_lock(file, Lock::Shared, WAITING)?;
        std::thread::sleep(PAUSE);
        if waiting {
            sys::unlock(file, WAITING)?;
        }
        Ok(true)
    }
}

/// Takes a lock, and waits for who keeps others from the file for a moment only.
pub fn patiently(file: &File, lock: impl Fn(&File) -> io::Result<bool>) -> io::Result<bool> {
    let mut patience = Patience::default();
    while !lock(file)? {
        if !patience.again(file)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether anybody uses the file.
pub fn is_used(file: &File) -> io::Result<bool> {
    sys::would_block(file, Lock::Exclusive, ALL)
}

/// Whether anybody writes to it.
pub fn has_writer(file: &File) -> io::Result<bool> {
    sys::would_block(file, Lock::Exclusive, byte(USES, WRITE))
}
