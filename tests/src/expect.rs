//! What a backend must support, as its test states it.

use volmux::{Capabilities, Grade, Support};

/// What the suite holds a pool to. Written down by hand in the backend's test and never read from
/// the backend, so that a capability that is lost fails a test.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// What `capabilities()` must return. What is `None` here must return `Unsupported`.
    pub capabilities: Capabilities,
    /// Grade of the allocated extents.
    pub allocated: Grade,
    /// Grade of the changed extents.
    pub changed: Grade,
    /// Granularity of both, in bytes.
    pub granularity: u64,
    /// Sizes are rounded up to a multiple of this many bytes.
    pub size_unit: u64,
    /// A thin volume of this size must be possible.
    pub large_size: u64,
    /// Whether zeros are written without writing them out. Where not, `fast_only` must fail.
    pub fast_zeroes: bool,
    /// Whether [`Fixture::reopen`](crate::Fixture::reopen) gives a second, independent pool on the
    /// same storage, as another process would have.
    pub second_handle: bool,
}

const fn all_native() -> Capabilities {
    Capabilities {
        snapshot: Support::Native,
        clone: Support::Native,
        revert: Support::Native,
        thin: Support::Native,
        thick: Support::Native,
        shrink: Support::Native,
        discard: Support::Native,
        changed_extents: Support::Native,
        attach: Support::Native,
        adopt: Support::Native,
        shared_writers: Support::Native,
        fencing: Support::None,
    }
}

impl Expect {
    /// The reference backend.
    pub const MEMORY: Expect = Expect {
        capabilities: Capabilities {
            attach: Support::None,
            adopt: Support::None,
            fencing: Support::Native,
            ..all_native()
        },
        allocated: Grade::Exact,
        changed: Grade::Exact,
        granularity: 4096,
        size_unit: 512,
        large_size: i64::MAX as u64 / 512 * 512,
        fast_zeroes: true,
        second_handle: false,
    };

    /// A pool in an object store.
    pub const OBJECT: Expect = Expect {
        capabilities: Capabilities {
            thick: Support::None,
            shared_writers: Support::None,
            ..Expect::MEMORY.capabilities
        },
        // What is written again is stored again, whatever it is.
        changed: Grade::Superset,
        second_handle: true,
        ..Expect::MEMORY
    };

    /// A pool in an object store whose flushes end in a journal: others see them later.
    pub const OBJECT_JOURNALED: Expect = Expect {
        second_handle: false,
        ..Expect::OBJECT
    };

    /// A directory pool on a file system that can share blocks between files.
    pub const DIR_REFLINK: Expect = Expect {
        capabilities: all_native(),
        // XFS shows cached zeros beside copied-on-write blocks as data.
        allocated: Grade::Superset,
        changed: Grade::Exact,
        granularity: 4096,
        size_unit: 512,
        large_size: i64::MAX as u64 / 4096 * 4096,
        fast_zeroes: true,
        second_handle: true,
    };

    /// A directory pool on a file system that has to copy. ext4 limits a file to 16 TiB.
    pub const DIR_COPY: Expect = Expect {
        capabilities: Capabilities {
            snapshot: Support::Emulated,
            clone: Support::Emulated,
            revert: Support::Emulated,
            changed_extents: Support::Emulated,
            ..all_native()
        },
        allocated: Grade::Exact,
        large_size: 15 << 40,
        ..Expect::DIR_REFLINK
    };
}
