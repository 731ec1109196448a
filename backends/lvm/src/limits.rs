//! What the kernel says about a block device, and how to discard on one.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use volmux_core::ByteRange;

/// What the kernel says about the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Not a file.
    pub is_device: bool,
    /// Offsets and lengths must be multiples of it. A power of two.
    pub block: u64,
    /// Addresses must be multiples of it. A power of two.
    pub memory: usize,
    /// Takes discards.
    pub discards: bool,
    /// Writes zeros without their being sent.
    pub zeroes: bool,
}

impl Limits {
    /// Of an open disk or file.
    pub fn of(file: &File) -> io::Result<Limits> {
        let metadata = file.metadata()?;
        if !metadata.file_type().is_block_device() {
            // What no file system asks more than.
            return Ok(Limits {
                is_device: false,
                block: 4096,
                memory: 4096,
                discards: true,
                zeroes: true,
            });
        }
        let block = u64::from(rustix::fs::ioctl_blksszget(file)?);
        let queue = |name: &str| queue_limit(&metadata, name);
        // A mask. Kernels before 6.0 do not have it, and want whole blocks.
        let memory = queue("dma_alignment").map_or(block, |mask| mask + 1);
        let limits = Limits {
            is_device: true,
            block,
            memory: memory as usize,
            discards: queue("discard_max_bytes").is_some_and(|most| most > 0),
            zeroes: queue("write_zeroes_max_bytes").is_some_and(|most| most > 0),
        };
        if !block.is_power_of_two() || !limits.memory.is_power_of_two() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(limits)
    }
}

/// A number below `queue` in sysfs (Documentation/ABI/stable/sysfs-block).
fn queue_limit(device: &Metadata, name: &str) -> Option<u64> {
    let (major, minor) = (libc::major(device.rdev()), libc::minor(device.rdev()));
    let path = format!("/sys/dev/block/{major}:{minor}/queue/{name}");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// BLKDISCARD: `range` of the block device `file` holds nothing any more.
pub fn blkdiscard(file: &File, range: ByteRange) -> io::Result<()> {
    // _IO(0x12, 119) of linux/fs.h.
    const BLKDISCARD: libc::c_ulong = 0x1277;
    let range = [range.offset, range.length];
    // SAFETY: the kernel reads two 64-bit numbers from the pointer and keeps nothing of it.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
