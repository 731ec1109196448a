//! Device-mapper by its ioctls (linux/dm-ioctl.h), so that a look at a pool costs no process.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;

/// The name under which device-mapper knows the volume `lv` of `group`.
pub fn dm_name(group: &str, lv: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), lv.replace('-', "--"))
}

/// A device as device-mapper has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Device number, first part.
    pub major: u32,
    /// Device number, second part.
    pub minor: u32,
    /// How often it is open: by processes, mounts and devices above it.
    pub open_count: u32,
    /// Requests wait until it is resumed.
    pub suspended: bool,
    /// It takes no writes.
    pub read_only: bool,
    /// It has a table and thus a size.
    pub live_table: bool,
}

/// One line of a device's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// First sector (512 bytes).
    pub start: u64,
    /// Sectors.
    pub length: u64,
    /// `thin`, `thin-pool`, `linear`…
    pub kind: String,
    /// What the target says about itself.
    pub params: String,
}

/// How a thin pool is, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolStatus {
    /// It works, wholly or in part.
    Ok(PoolState),
    /// The kernel has given it up: each request fails.
    Failed,
}

/// What a thin pool that has not failed says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolState {
    /// Counts what LVM does to the pool.
    pub transaction_id: u64,
    /// Blocks of 4 KiB for the mappings.
    pub metadata: Used,
    /// Chunks for data.
    pub data: Used,
    /// Where the reserved metadata snapshot begins, if there is one.
    pub held_root: Option<u64>,
    /// What it still does.
    pub mode: PoolMode,
    /// The metadata must be checked before the kernel writes to it again.
    pub needs_check: bool,
    /// Writes that need a new chunk fail at once when there is none, rather than wait for one.
    pub error_if_no_space: bool,
}

/// How many of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// In use.
    pub used: u64,
    /// In all.
    pub total: u64,
}

/// What a thin pool still does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// Everything.
    ReadWrite,
    /// Its metadata can't be changed: no chunk is allocated, shared or freed any more.
    ReadOnly,
    /// No free chunk is left.
    OutOfDataSpace,
}

impl PoolStatus {
    /// Reads the status line of a `thin-pool` target (thin-provisioning.rst in the kernel's
    /// documentation). `None` if it is not one.
    pub fn parse(params: &str) -> Option<PoolStatus> {
        let mut words = params.split_ascii_whitespace();
        let first = words.next()?;
        // "Error" is what the kernel prints where reading its own numbers failed.
        if ["Fail", "Error"].contains(&first) {
            return Some(PoolStatus::Failed);
        }
        let transaction_id = first.parse().ok()?;
        let metadata = Used::parse(words.next()?)?;
        let data = Used::parse(words.next()?)?;
        let held_root = match words.next()? {
            "-" => None,
            block => Some(block.parse().ok()?),
        };
        let mode = match words.next()? {
            "rw" => PoolMode::ReadWrite,
            "ro" => PoolMode::ReadOnly,
            "out_of_data_space" => PoolMode::OutOfDataSpace,
            _ => return None,
        };
        let flags: Vec<&str> = words.collect();
        Some(PoolStatus::Ok(PoolState {
            transaction_id,
            metadata,
            data,
            held_root,
            mode,
            needs_check: flags.contains(&"needs_check"),
            error_if_no_space: flags.contains(&"error_if_no_space"),
        }))
    }
}

impl Used {
    fn parse(text: &str) -> Option<Used> {
        let (used, total) = text.split_once('/')?;
        Some(Used {
            used: used.parse().ok()?,
            total: total.parse().ok()?,
        })
    }
}

/// Looks a device up. `None` if there is none of this name.
pub fn info(name: &str) -> io::Result<Option<Info>> {
    let request = Request::new(name, 0);
    let reply = match request.and_then(|r| r.call(Command::DevStatus, size_of::<Header>())) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        reply => reply?,
    };
    let header = reply.header;
    Ok(Some(Info {
        major: libc::major(header.dev),
        minor: libc::minor(header.dev),
        open_count: u32::try_from(header.open_count).unwrap_or(0),
        suspended: header.flags & SUSPENDED != 0,
        read_only: header.flags & READ_ONLY != 0,
        live_table: header.flags & ACTIVE_PRESENT != 0,
    }))
}

/// What each target of a device says about itself, in the order of their sectors. A thin pool does
/// not commit its metadata for that.
pub fn status(name: &str) -> io::Result<Vec<Target>> {
    // A pool's status has about 100 bytes; tables of hundreds of segments are rare.
    let mut room = 4096;
    while room <= LARGEST_REPLY {
        let request = Request::new(name, NO_FLUSH)?;
        let reply = request.call(Command::TableStatus, room)?;
        if reply.header.flags & BUFFER_FULL == 0 {
            return targets(reply.data(), reply.header.target_count);
        }
        room *= 4;
    }
    Err(malformed())
}

/// Sends `text` to the first target of a device.
pub fn message(name: &str, text: &str) -> io::Result<()> {
    let mut request = Request::new(name, 0)?;
    // struct dm_target_msg: the sector, then a C string.
    request.data.extend_from_slice(&0u64.to_ne_bytes());
    request.data.extend_from_slice(text.as_bytes());
    request.data.push(0);
    let size = size_of::<Header>() + request.data.len();
    request.call(Command::TargetMessage, size)?;
    Ok(())
}

/// The name of the device that has the `thin-pool` target of `group/pool`, and what it says.
/// `None` if the pool is not active.
pub fn pool_status(group: &str, pool: &str) -> io::Result<Option<(String, PoolStatus)>> {
    let name = dm_name(group, pool);
    // LVM puts a layer beneath the pool with its first thin volume.
    for name in [format!("{name}-tpool"), name] {
        let targets = match status(&name) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => continue,
            targets => targets?,
        };
        let Some(target) = targets.iter().find(|target| target.kind == "thin-pool") else {
            continue;
        };
        let status = PoolStatus::parse(&target.params).ok_or_else(malformed)?;
        return Ok(Some((name, status)));
    }
    Ok(None)
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "device-mapper said what is not understood",
    )
}

const READ_ONLY: u32 = 1 << 0;
const SUSPENDED: u32 = 1 << 1;
const ACTIVE_PRESENT: u32 = 1 << 5;
const BUFFER_FULL: u32 = 1 << 8;
const NO_FLUSH: u32 = 1 << 11;

const LARGEST_REPLY: usize = 16 << 20;
const NAME_LENGTH: usize = 128;

/// The number of a command in `enum` of linux/dm-ioctl.h.
#[derive(Clone, Copy)]
enum Command {
    DevStatus = 7,
    TableStatus = 12,
    TargetMessage = 14,
}

/// `struct dm_ioctl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; NAME_LENGTH],
    uuid: [u8; 129],
    data: [u8; 7],
}

const _: () = assert!(size_of::<Header>() == 312);

struct Request {
    header: Header,
    data: Vec<u8>,
}

struct Reply {
    header: Header,
    /// All of the answer, the header included, as `data_start` counts from there.
    whole: Vec<u64>,
}

impl Request {
    fn new(name: &str, flags: u32) -> io::Result<Request> {
        let bytes = name.as_bytes();
        // The kernel wants a NUL at the end.
        if bytes.is_empty() || bytes.len() >= NAME_LENGTH || bytes.contains(&0) {
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        }
        let mut header = Header {
            version: [4, 0, 0],
            data_size: 0,
            data_start: size_of::<Header>() as u32,
            target_count: 0,
            open_count: 0,
            flags,
            event_nr: 0,
            padding: 0,
            dev: 0,
            name: [0; NAME_LENGTH],
            uuid: [0; 129],
            data: [0; 7],
        };
        header.name[..bytes.len()].copy_from_slice(bytes);
        Ok(Request {
            header,
            data: Vec::new(),
        })
    }

    /// Sends the request, with `size` bytes for it and for the answer.
    fn call(mut self, command: Command, size: usize) -> io::Result<Reply> {
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/mapper/control")?;
        let size = size.max(size_of::<Header>() + self.data.len());
        self.header.data_size = size as u32;
        // Of 64-bit words, for the alignment that the header needs.
        let mut whole = vec![0u64; size.div_ceil(size_of::<u64>())];
        // SAFETY: `whole` has room for the header and, behind it, for the data (the maximum above),
        // and does not overlap with either.
        unsafe {
            let start = whole.as_mut_ptr().cast::<u8>();
            start.cast::<Header>().write(self.header);
            let data = start.add(size_of::<Header>());
            data.copy_from_nonoverlapping(self.data.as_ptr(), self.data.len());
        }
        ioctl(&control, command, &mut whole)?;
        // SAFETY: `whole` is aligned for a header and longer than one; every bit pattern is one.
        let header = unsafe { whole.as_ptr().cast::<Header>().read() };
        Ok(Reply { header, whole })
    }
}

/// `buffer` begins with a `Header` whose `data_size` is not more than the buffer's size.
fn ioctl(control: &File, command: Command, buffer: &mut [u64]) -> io::Result<()> {
    // _IOWR(0xfd, command, struct dm_ioctl)
    let direction_and_size = (3 << 30) | ((size_of::<Header>() as libc::c_ulong) << 16);
    let request = direction_and_size | (0xfd << 8) | command as libc::c_ulong;
    // SAFETY: the kernel reads and writes at most `data_size` bytes from the pointer on, and keeps
    // nothing of it once the call is over.
    let done = unsafe { libc::ioctl(control.as_raw_fd(), request as _, buffer.as_mut_ptr()) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

impl Reply {
    /// What stands behind the header.
    fn data(&self) -> &[u8] {
        // SAFETY: these are the initialised bytes of `whole`, borrowed as long as the result.
        let bytes = unsafe {
            let length = self.whole.len() * size_of::<u64>();
            std::slice::from_raw_parts(self.whole.as_ptr().cast::<u8>(), length)
        };
        let end = bytes.len().min(self.header.data_size as usize);
        let start = end.min(self.header.data_start as usize);
        &bytes[start..end]
    }
}

/// Reads `count` times a `struct dm_target_spec` and the C string behind it.
fn targets(data: &[u8], count: u32) -> io::Result<Vec<Target>> {
    const SPEC: usize = 40;
    let mut targets = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let rest = data.get(at..).ok_or_else(malformed)?;
        let (spec, params) = rest.split_at_checked(SPEC).ok_or_else(malformed)?;
        let next = u32::from_ne_bytes(spec[20..24].try_into().expect("four bytes")) as usize;
        targets.push(Target {
            start: u64::from_ne_bytes(spec[..8].try_into().expect("eight bytes")),
            length: u64::from_ne_bytes(spec[8..16].try_into().expect("eight bytes")),
            kind: text(&spec[24..]),
            params: text(params),
        });
        // From the first target on, not from this one.
        if next <= at && targets.len() < count as usize {
            return Err(malformed());
        }
        at = next;
    }
    Ok(targets)
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hyphens_in_names_are_doubled() {
        assert_eq!(dm_name("vg", "lv"), "vg-lv");
        assert_eq!(dm_name("a-b", "c--d_e"), "a--b-c----d_e");
    }

    fn state(params: &str) -> PoolState {
        match PoolStatus::parse(params) {
            Some(PoolStatus::Ok(state)) => state,
            other => panic!("{params}: {other:?}"),
        }
    }

    #[test]
    fn a_pool_that_works() {
        // Linux 6.1.
        let line = "3 13/1024 7/1024 - rw no_discard_passdown queue_if_no_space - 256 ";
        assert_eq!(
            state(line),
            PoolState {
                transaction_id: 3,
                metadata: Used {
                    used: 13,
                    total: 1024
                },
                data: Used {
                    used: 7,
                    total: 1024
                },
                held_root: None,
                mode: PoolMode::ReadWrite,
                needs_check: false,
                error_if_no_space: false,
            }
        );
        let line = "3 13/1024 7/1024 17 out_of_data_space discard_passdown error_if_no_space -";
        let held = state(line);
        assert_eq!(held.held_root, Some(17));
        assert_eq!(held.mode, PoolMode::OutOfDataSpace);
        assert!(held.error_if_no_space);
    }

    #[test]
    fn a_pool_that_does_not_work() {
        let line = "3 13/1024 7/1024 - ro discard_passdown queue_if_no_space needs_check 256";
        let broken = state(line);
        assert_eq!(broken.mode, PoolMode::ReadOnly);
        assert!(broken.needs_check);
        assert_eq!(PoolStatus::parse("Fail"), Some(PoolStatus::Failed));
        assert_eq!(PoolStatus::parse("Error"), Some(PoolStatus::Failed));
    }

    #[test]
    fn older_and_newer_kernels_say_less_and_more() {
        assert_eq!(state("0 1/2 3/4 - rw").mode, PoolMode::ReadWrite);
        let newer = "0 1/2 3/4 - ro ignore_discard queue_if_no_space needs_check 256 and more";
        assert!(state(newer).needs_check);
        for wrong in [
            "",
            "1",
            "1 2/3 4/5 -",
            "1 2/3 4 - rw",
            "1 2/3 4/5 - what",
            "x",
        ] {
            assert_eq!(PoolStatus::parse(wrong), None, "{wrong:?}");
        }
    }

    fn spec(start: u64, next: u32, kind: &str, params: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(start.to_ne_bytes());
        bytes.extend(8u64.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes.extend(kind.bytes().chain(std::iter::repeat(0)).take(16));
        bytes.extend(params.bytes());
        bytes.resize((bytes.len() + 1).next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn a_reply_is_read_target_by_target() {
        let mut data = spec(0, 56, "linear", "254:0 2048");
        assert_eq!(data.len(), 56);
        data.extend(spec(8, 112, "thin-pool", "Fail"));
        let read = targets(&data, 2).expect("two targets");
        assert_eq!(read[0].params, "254:0 2048");
        assert_eq!(
            read[1],
            Target {
                start: 8,
                length: 8,
                kind: "thin-pool".into(),
                params: "Fail".into()
            }
        );
        assert!(targets(&data, 3).is_err(), "one more than there are");
    }

    #[test]
    fn names_that_no_device_can_have_are_not_asked_for() {
        for name in ["", "a\0b", &"x".repeat(128)] {
            assert!(info(name).expect("no request is made").is_none());
        }
    }

    proptest! {
        #[test]
        fn any_status_line_is_read_or_refused(line in "\\PC{0,80}") {
            let _ = PoolStatus::parse(&line);
        }

        #[test]
        fn almost_status_lines_are_read_or_refused(
            words in prop::collection::vec("[0-9]{1,22}(/[0-9]{1,22})?|-|ro|rw|Fail|needs_check", 0..9)
        ) {
            let _ = PoolStatus::parse(&words.join(" "));
        }

        #[test]
        fn any_reply_is_read_or_refused(
            data in prop::collection::vec(any::<u8>(), 0..200), count in any::<u32>()
        ) {
            let _ = targets(&data, count);
        }
    }
}
