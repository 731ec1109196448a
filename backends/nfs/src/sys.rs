//! The few system calls that need more than the standard library: open-file-description locks,
//! FICLONE, FIEMAP, fallocate. All of this crate's `unsafe` is here.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{AtFlags, FallocateFlags, SeekFrom, StatxFlags};
use rustix::io::ReadWriteFlags;
use volmux_core::ByteRange;

/// A lock's strength on a byte range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Goes together with other shared locks.
    Shared,
    /// Goes together with none.
    Exclusive,
}

/// A file whose locks end when this is dropped.
///
/// Closing alone is not enough: a child that another thread has just forked has a copy of the
/// descriptor until it runs its own program, and the locks would last as long.
#[derive(Debug)]
pub struct Locked(File);

impl From<File> for Locked {
    fn from(file: File) -> Self {
        Locked(file)
    }
}

impl std::ops::Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Length 0 is everything. Should it fail, the close that follows unlocks as well.
        let _unlocked = unlock(&self.0, ByteRange::new(0, 0));
    }
}

/// Gives up this open file description's locks in `range`.
pub fn unlock(file: &File, range: ByteRange) -> io::Result<()> {
    let mut flock = flock(Lock::Shared, range);
    flock.l_type = libc::F_UNLCK as libc::c_short;
    // SAFETY: as in `try_lock`.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const flock) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn flock(lock: Lock, range: ByteRange) -> libc::flock {
    // SAFETY: `flock` is a plain C struct for which all-zero bytes are a valid value; l_pid must be
    // 0 for open-file-description locks (fcntl(2)).
    let mut flock: libc::flock = unsafe { std::mem::zeroed() };
    flock.l_type = match lock {
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
    } as libc::c_short;
    flock.l_whence = libc::SEEK_SET as libc::c_short;
    flock.l_start = range.offset as libc::off_t;
    flock.l_len = range.length as libc::off_t;
    flock
}

/// Tries to take an open-file-description lock, which ends with the last descriptor of `file` and so
/// never outlives its process. `Ok(false)` if somebody else's lock is in the way.
pub fn try_lock(file: &File, lock: Lock, range: ByteRange) -> io::Result<bool> {
    let flock = flock(lock, range);
    // SAFETY: the descriptor is open for the call and `flock` is a valid `struct flock`.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const flock) };
    if done == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        Some(libc::EINTR) => try_lock(file, lock, range),
        _ => Err(error),
    }
}

/// Whether taking `lock` would be stopped by another open file description.
pub fn would_block(file: &File, lock: Lock, range: ByteRange) -> io::Result<bool> {
    let mut flock = flock(lock, range);
    // SAFETY: as in `try_lock`; F_OFD_GETLK writes only into `flock`.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut flock) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(flock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Makes `to` share all blocks of `from` (ioctl_ficlone(2)).
pub fn clone_file(from: &File, to: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

/// Whether an error of [`clone_file`] means that the file system can't do it.
pub fn is_clone_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EXDEV | libc::EINVAL | libc::ENOTTY | libc::ENOSYS)
    )
}

/// Whether a file lies on an NFS server (statfs(2)).
pub fn is_remote(file: impl AsFd) -> io::Result<bool> {
    const NFS_SUPER_MAGIC: u64 = 0x6969;
    Ok(rustix::fs::fstatfs(file)?.f_type as u64 == NFS_SUPER_MAGIC)
}

/// Has an NFS client ask its server what a file or a directory is like now, and forget what it knows
/// of the names in that if they have changed (AT_STATX_FORCE_SYNC, statx(2)). By itself it would for half a
/// minute not see what other hosts do there.
pub fn look_again(file: impl AsFd) -> io::Result<()> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(file, "", flags, StatxFlags::BASIC_STATS)?;
    Ok(())
}

/// Reserves `range`, which lies within the file, without changing what is in it.
pub fn reserve(file: &File, range: ByteRange) -> io::Result<()> {
    let reserve = |flags| rustix::fs::fallocate(file, flags, range.offset, range.length);
    match reserve(FallocateFlags::KEEP_SIZE) {
        // NFS has no such thing (ALLOCATE, RFC 7862 section 15.1). Past the end it would make the
        // file longer.
        Err(rustix::io::Errno::OPNOTSUPP) if range.end() <= file.metadata()?.len() => {
            Ok(reserve(FallocateFlags::empty())?)
        }
        reserved => Ok(reserved?),
    }
}

/// Has the server copy `range` by itself (COPY, RFC 7862 section 15.2); `Ok(false)` if it can't, and
/// then nothing or a part of it is copied.
pub fn copy_on_server(from: &File, to: &File, range: ByteRange) -> io::Result<bool> {
    let (mut at, mut target) = (range.offset, range.offset);
    while at < range.end() {
        let length = (range.end() - at) as usize;
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut target), length);
        match copied {
            Ok(0) => return Ok(false),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return match io::Error::from(error) {
                    error if is_clone_unsupported(&error) => Ok(false),
                    error => Err(error),
                };
            }
        }
    }
    Ok(true)
}

/// Frees the blocks of `range`; parts of blocks are zeroed.
pub fn punch_hole(file: &File, range: ByteRange) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(
        file,
        flags,
        range.offset,
        range.length,
    )?)
}

/// Makes `range` read as zeros with its blocks reserved.
pub fn zero_range(file: &File, range: ByteRange) -> io::Result<()> {
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(
        file,
        flags,
        range.offset,
        range.length,
    )?)
}

/// Whether a request may wait for a disk or a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As long as it takes.
    May,
    /// Fails with `EAGAIN` where it would have to, or does a part (RWF_NOWAIT).
    MustNot,
}

impl Wait {
    fn flags(self) -> libc::c_int {
        match self {
            Wait::May => 0,
            Wait::MustNot => libc::RWF_NOWAIT,
        }
    }
}

/// Appends up to `length` bytes from `offset`, as many as `into` has room for at most; none at the
/// end of the file.
pub fn read(
    file: &File,
    into: &mut Vec<u8>,
    length: usize,
    offset: u64,
    wait: Wait,
) -> io::Result<usize> {
    let room = into.spare_capacity_mut();
    let vector = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len().min(length),
    };
    let (fd, offset) = (file.as_raw_fd(), offset as libc::off_t);
    // SAFETY: the kernel writes into at most `iov_len` bytes of memory that is `into`'s own and not
    // in use yet.
    let read = unsafe { libc::preadv2(fd, &raw const vector, 1, offset, wait.flags()) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has written so many bytes after those that were there.
    unsafe { into.set_len(into.len() + read) };
    Ok(read)
}

/// Writes what can be written of `data` without waiting.
pub fn write_now(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
    let vector = [io::IoSlice::new(data)];
    let flags = ReadWriteFlags::NOWAIT;
    Ok(rustix::io::pwritev2(file, &vector, offset, flags)?)
}

/// Starts writing `range` to the disk without waiting for it. Only a hint: it makes nothing durable.
pub fn start_writeback(file: &File, range: ByteRange) {
    // SAFETY: the descriptor is open for the call; no memory is passed.
    unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            range.offset as libc::off64_t,
            range.length as libc::off64_t,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}

/// The next range of data in `range`, by SEEK_DATA and SEEK_HOLE (lseek(2)); `None` if the rest is a
/// hole. Moves the file's position, which nothing else here uses.
pub fn next_data(file: &File, range: ByteRange) -> io::Result<Option<ByteRange>> {
    if range.is_empty() {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file.as_fd(), SeekFrom::Data(range.offset)) {
        Ok(start) if start < range.end() => start,
        Ok(_) | Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file.as_fd(), SeekFrom::Hole(start))?;
    Ok(Some(ByteRange::from_to(start, end.min(range.end()))))
}

/// One extent as FIEMAP tells it (Documentation/filesystems/fiemap.rst of the kernel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileExtent {
    /// Where in the file.
    pub range: ByteRange,
    /// Where on the device; `None` where the kernel can't say so reliably.
    pub physical: Option<u64>,
    /// Reserved but never written: reads as zeros.
    pub unwritten: bool,
    /// Shared with another file.
    pub shared: bool,
}

const FIEMAP_BATCH: usize = 256;
const FIEMAP_FLAG_SYNC: u32 = 0x1;
const EXTENT_LAST: u32 = 0x1;
const EXTENT_UNWRITTEN: u32 = 0x800;
const EXTENT_SHARED: u32 = 0x2000;
/// UNKNOWN, DELALLOC, ENCODED, DATA_ENCRYPTED, NOT_ALIGNED, DATA_INLINE, DATA_TAIL: the physical
/// address is missing or does not identify the bytes.
const EXTENT_NO_ADDRESS: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400;

#[repr(C)]
#[derive(Clone, Copy)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct RawFiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [RawExtent; FIEMAP_BATCH],
}

/// `_IOWR('f', 11, struct fiemap)`: the size in it is that of the header alone.
const FS_IOC_FIEMAP: libc::Ioctl = 0xC020_660B_u32 as libc::Ioctl;

/// Some of a file's extents, in ascending order.
#[derive(Debug)]
pub struct FileExtents {
    /// The extents; holes are left out.
    pub extents: Vec<FileExtent>,
    /// Where to ask next; `None` at the end of the range.
    pub next: Option<u64>,
}

/// Asks for up to 256 extents that touch `range`; with `sync`, after writing dirty pages out, without
/// which recent writes may have no address yet.
pub fn file_extents(file: &File, range: ByteRange, sync: bool) -> io::Result<FileExtents> {
    let empty = RawExtent {
        logical: 0,
        physical: 0,
        length: 0,
        reserved64: [0; 2],
        flags: 0,
        reserved: [0; 3],
    };
    let mut map = Box::new(RawFiemap {
        start: range.offset,
        length: range.length,
        flags: if sync { FIEMAP_FLAG_SYNC } else { 0 },
        mapped_extents: 0,
        extent_count: FIEMAP_BATCH as u32,
        reserved: 0,
        extents: [empty; FIEMAP_BATCH],
    });
    // SAFETY: `map` has the layout of `struct fiemap` followed by `extent_count` `struct
    // fiemap_extent`s; the kernel writes no more than that many.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut *map) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let raw = &map.extents[..(map.mapped_extents as usize).min(FIEMAP_BATCH)];
    let extents: Vec<FileExtent> = raw
        .iter()
        .map(|e| FileExtent {
            range: ByteRange::new(e.logical, e.length),
            physical: (e.flags & EXTENT_NO_ADDRESS == 0).then_some(e.physical),
            unwritten: e.flags & EXTENT_UNWRITTEN != 0,
            shared: e.flags & EXTENT_SHARED != 0,
        })
        .collect();
    let next = raw.last().and_then(|last| {
        let end = last.logical.saturating_add(last.length);
        let more = raw.len() == FIEMAP_BATCH && last.flags & EXTENT_LAST == 0;
        (more && end < range.end()).then_some(end)
    });
    Ok(FileExtents { extents, next })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn reading_appends_what_there_is_room_for() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"0123456789").expect("write");
        let mut into = Vec::with_capacity(8);
        into.extend_from_slice(b"ab");
        let room = into.capacity() - 2;
        assert_eq!(read(&file, &mut into, 3, 1, Wait::May).expect("read"), 3);
        assert_eq!(into, b"ab123");
        let more = read(&file, &mut into, 100, 0, Wait::May).expect("read");
        assert_eq!(more, room - 3);
        assert_eq!(into.len(), into.capacity());
        assert_eq!(read(&file, &mut into, 100, 0, Wait::May).expect("read"), 0);
        into.clear();
        assert_eq!(read(&file, &mut into, 5, 8, Wait::May).expect("read"), 2);
        assert_eq!(read(&file, &mut into, 5, 10, Wait::May).expect("read"), 0);
        assert_eq!(into, b"89");
    }

    #[test]
    fn a_failed_read_leaves_what_was_there() {
        let path = tempfile::NamedTempFile::new().expect("a file");
        let file = std::fs::OpenOptions::new().write(true).open(path.path());
        let mut into = Vec::with_capacity(100);
        into.push(1);
        for wait in [Wait::May, Wait::MustNot] {
            let error = read(file.as_ref().expect("open"), &mut into, 10, 0, wait);
            assert_eq!(
                error.expect_err("write-only").raw_os_error(),
                Some(libc::EBADF)
            );
            assert_eq!(into, [1]);
        }
    }
}
