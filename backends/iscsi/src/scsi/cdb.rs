//! Command descriptor blocks (SPC-4, SBC-3): what is sent.

/// A command descriptor block, and what the command is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cdb {
    name: &'static str,
    bytes: Vec<u8>,
}

impl Cdb {
    fn new(name: &'static str, code: u8, length: usize) -> Cdb {
        let mut bytes = vec![0; length];
        bytes[0] = code;
        Cdb { name, bytes }
    }

    fn with(mut self, at: usize, field: &[u8]) -> Cdb {
        self.bytes[at..at + field.len()].copy_from_slice(field);
        self
    }

    /// The name of the command as the standards write it, such as `READ(16)`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The 6 to 16 bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a read or a write may do to caches (SBC-3 5.13, 5.40).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheBits {
    /// FUA: the medium has it before the command is done.
    pub force_unit_access: bool,
    /// DPO: it need not stay in the cache.
    pub disable_page_out: bool,
}

impl CacheBits {
    fn byte(self) -> u8 {
        u8::from(self.disable_page_out) << 4 | u8::from(self.force_unit_access) << 3
    }
}

/// What WRITE SAME may do besides writing (SBC-3 5.49).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SameBits {
    /// UNMAP: blocks may be deallocated, if they then read as what would have been written.
    pub unmap: bool,
    /// ANCHOR: blocks that are deallocated stay reserved. Only with `unmap`.
    pub anchor: bool,
    /// NDOB: no data go with the command; zeros are written.
    pub no_data: bool,
}

/// TEST UNIT READY (SPC-4 6.47).
pub fn test_unit_ready() -> Cdb {
    Cdb::new("TEST UNIT READY", 0x00, 6)
}

/// INQUIRY of the standard data, of which at most `length` bytes are wanted (SPC-4 6.6).
pub fn inquiry(length: u16) -> Cdb {
    Cdb::new("INQUIRY", 0x12, 6).with(3, &length.to_be_bytes())
}

/// INQUIRY of a page of vital product data (SPC-4 6.6, 7.8).
pub fn vital_product_data(page: u8, length: u16) -> Cdb {
    inquiry(length).with(1, &[1, page])
}

/// READ CAPACITY(10) (SBC-3 5.15). The reply has 8 bytes.
pub fn read_capacity_10() -> Cdb {
    Cdb::new("READ CAPACITY(10)", 0x25, 10)
}

/// READ CAPACITY(16) (SBC-3 5.16). The reply has 32 bytes.
pub fn read_capacity_16(length: u32) -> Cdb {
    let cdb = Cdb::new("READ CAPACITY(16)", 0x9e, 16);
    cdb.with(1, &[0x10]).with(10, &length.to_be_bytes())
}

/// REPORT LUNS: those that are not well known (SPC-4 6.33). 16 bytes are the least.
pub fn report_luns(length: u32) -> Cdb {
    Cdb::new("REPORT LUNS", 0xa0, 12).with(6, &length.to_be_bytes())
}

/// MODE SENSE(6) of the current values of a page, without block descriptors (SPC-4 6.13).
pub fn mode_sense_6(page: u8, length: u8) -> Cdb {
    let cdb = Cdb::new("MODE SENSE(6)", 0x1a, 6);
    cdb.with(1, &[0x08, page & 0x3f, 0, length])
}

/// MODE SENSE(10) of the current values of a page, without block descriptors (SPC-4 6.14).
pub fn mode_sense_10(page: u8, length: u16) -> Cdb {
    let cdb = Cdb::new("MODE SENSE(10)", 0x5a, 10);
    cdb.with(1, &[0x08, page & 0x3f])
        .with(7, &length.to_be_bytes())
}

fn long(name: &'static str, code: u8, flags: u8, lba: u64, blocks: u32) -> Cdb {
    Cdb::new(name, code, 16)
        .with(1, &[flags])
        .with(2, &lba.to_be_bytes())
        .with(10, &blocks.to_be_bytes())
}

/// READ(16) (SBC-3 5.13).
pub fn read_16(lba: u64, blocks: u32, cache: CacheBits) -> Cdb {
    long("READ(16)", 0x88, cache.byte(), lba, blocks)
}

/// WRITE(16) (SBC-3 5.40).
pub fn write_16(lba: u64, blocks: u32, cache: CacheBits) -> Cdb {
    long("WRITE(16)", 0x8a, cache.byte(), lba, blocks)
}

/// SYNCHRONIZE CACHE(16) of all blocks; it is answered when they are on the medium (SBC-3 5.27).
pub fn synchronize_cache_16() -> Cdb {
    Cdb::new("SYNCHRONIZE CACHE(16)", 0x91, 16)
}

/// SYNCHRONIZE CACHE(10) of all blocks; it is answered when they are on the medium (SBC-3 5.26).
pub fn synchronize_cache_10() -> Cdb {
    Cdb::new("SYNCHRONIZE CACHE(10)", 0x35, 10)
}

/// UNMAP with a parameter list of so many bytes (SBC-3 5.31).
pub fn unmap(length: u16) -> Cdb {
    Cdb::new("UNMAP", 0x42, 10).with(7, &length.to_be_bytes())
}

/// WRITE SAME(16) (SBC-3 5.49). No blocks means all up to the end, to targets that allow it.
pub fn write_same_16(lba: u64, blocks: u32, bits: SameBits) -> Cdb {
    let flags = u8::from(bits.anchor) << 4 | u8::from(bits.unmap) << 3 | u8::from(bits.no_data);
    long("WRITE SAME(16)", WRITE_SAME_16, flags, lba, blocks)
}

/// The operation code of WRITE SAME(16).
pub const WRITE_SAME_16: u8 = 0x93;

/// GET LBA STATUS from `lba` on (SBC-3 5.6). 24 bytes are the least that tells anything.
pub fn get_lba_status(lba: u64, length: u32) -> Cdb {
    long("GET LBA STATUS", 0x9e, 0x12, lba, length)
}

/// COMPARE AND WRITE of up to 255 blocks (SBC-3 5.2). As many to compare, and then as many to
/// write, go with it.
pub fn compare_and_write(lba: u64, blocks: u8) -> Cdb {
    let cdb = Cdb::new("COMPARE AND WRITE", 0x89, 16);
    cdb.with(2, &lba.to_be_bytes()).with(13, &[blocks])
}

/// What PERSISTENT RESERVE IN reads (SPC-4 6.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReserveIn {
    /// READ KEYS.
    Keys = 0,
    /// READ RESERVATION.
    Reservation = 1,
    /// REPORT CAPABILITIES.
    Capabilities = 2,
    /// READ FULL STATUS.
    FullStatus = 3,
}

/// PERSISTENT RESERVE IN (SPC-4 6.15).
pub fn persistent_reserve_in(what: ReserveIn, length: u16) -> Cdb {
    let name = match what {
        ReserveIn::Keys => "PERSISTENT RESERVE IN (READ KEYS)",
        ReserveIn::Reservation => "PERSISTENT RESERVE IN (READ RESERVATION)",
        ReserveIn::Capabilities => "PERSISTENT RESERVE IN (REPORT CAPABILITIES)",
        ReserveIn::FullStatus => "PERSISTENT RESERVE IN (READ FULL STATUS)",
    };
    let cdb = Cdb::new(name, 0x5e, 10);
    cdb.with(1, &[what as u8]).with(7, &length.to_be_bytes())
}

/// What PERSISTENT RESERVE OUT does (SPC-4 6.16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReserveOut {
    /// REGISTER.
    Register = 0,
    /// RESERVE.
    Reserve = 1,
    /// RELEASE.
    Release = 2,
    /// CLEAR.
    Clear = 3,
    /// PREEMPT.
    Preempt = 4,
    /// PREEMPT AND ABORT.
    PreemptAndAbort = 5,
    /// REGISTER AND IGNORE EXISTING KEY.
    RegisterIgnoring = 6,
}

/// PERSISTENT RESERVE OUT on the whole logical unit, with a parameter list of `length` bytes
/// (SPC-4 6.16). `kind` is the type code of a reservation, 0 where none is named.
pub fn persistent_reserve_out(what: ReserveOut, kind: u8, length: u32) -> Cdb {
    let name = match what {
        ReserveOut::Register => "PERSISTENT RESERVE OUT (REGISTER)",
        ReserveOut::Reserve => "PERSISTENT RESERVE OUT (RESERVE)",
        ReserveOut::Release => "PERSISTENT RESERVE OUT (RELEASE)",
        ReserveOut::Clear => "PERSISTENT RESERVE OUT (CLEAR)",
        ReserveOut::Preempt => "PERSISTENT RESERVE OUT (PREEMPT)",
        ReserveOut::PreemptAndAbort => "PERSISTENT RESERVE OUT (PREEMPT AND ABORT)",
        ReserveOut::RegisterIgnoring => "PERSISTENT RESERVE OUT (REGISTER AND IGNORE EXISTING KEY)",
    };
    let cdb = Cdb::new(name, 0x5f, 10);
    cdb.with(1, &[what as u8, kind & 0x0f])
        .with(5, &length.to_be_bytes())
}

/// REPORT SUPPORTED OPERATION CODES of one command without service actions (SPC-4 6.35).
pub fn report_supported_operation(code: u8, length: u32) -> Cdb {
    let cdb = Cdb::new("REPORT SUPPORTED OPERATION CODES", 0xa3, 12);
    cdb.with(1, &[0x0c, 1, code]).with(6, &length.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_standards_have_them() {
        let cache = CacheBits {
            force_unit_access: true,
            disable_page_out: false,
        };
        let bits = SameBits {
            unmap: true,
            anchor: true,
            no_data: true,
        };
        let lba = 0x0102_0304_0506_0708;
        for (cdb, bytes) in [
            (test_unit_ready(), &[0; 6][..]),
            (inquiry(0x0102), &[0x12, 0, 0, 1, 2, 0]),
            (vital_product_data(0x83, 0x0304), &[0x12, 1, 0x83, 3, 4, 0]),
            (read_capacity_10(), &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (
                read_capacity_16(32),
                &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
            ),
            (
                report_luns(0x0102_0304),
                &[0xa0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0],
            ),
            (mode_sense_6(8, 192), &[0x1a, 8, 8, 0, 192, 0]),
            (
                mode_sense_10(0x3f, 0x0102),
                &[0x5a, 8, 0x3f, 0, 0, 0, 0, 1, 2, 0],
            ),
            (
                read_16(lba, 0x090a_0b0c, CacheBits::default()),
                &[0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0],
            ),
            (
                write_16(lba, 1, cache),
                &[0x8a, 0x08, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0],
            ),
            (
                synchronize_cache_16(),
                &[0x91, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            (synchronize_cache_10(), &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (unmap(24), &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]),
            (
                write_same_16(lba, 2, bits),
                &[0x93, 0x19, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 2, 0, 0],
            ),
            (
                get_lba_status(lba, 4104),
                &[0x9e, 0x12, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x10, 8, 0, 0],
            ),
            (
                compare_and_write(lba, 9),
                &[0x89, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 9, 0, 0],
            ),
            (
                persistent_reserve_in(ReserveIn::FullStatus, 0x0102),
                &[0x5e, 3, 0, 0, 0, 0, 0, 1, 2, 0],
            ),
            (
                persistent_reserve_out(ReserveOut::Preempt, 5, 24),
                &[0x5f, 4, 5, 0, 0, 0, 0, 0, 24, 0],
            ),
            (
                report_supported_operation(0x93, 256),
                &[0xa3, 0x0c, 1, 0x93, 0, 0, 0, 0, 1, 0, 0, 0],
            ),
        ] {
            assert_eq!(cdb.bytes(), bytes, "{}", cdb.name());
        }
        let cache = CacheBits {
            force_unit_access: false,
            disable_page_out: true,
        };
        assert_eq!(read_16(0, 1, cache).bytes()[1], 0x10);
    }
}
