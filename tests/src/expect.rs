//! What a backend must support, as its test states it.

use volmux::{ByteSize, Capabilities, CreateOptions, Grade, Provisioning, Support, VolumeName};

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
    /// A volume of this size must be possible; a thin one, where there are thin ones.
    pub large_size: u64,
    /// Whether it is known where a volume holds nothing. Where not, all of it is data.
    pub holes: bool,
    /// Whether zeros are written without writing them out. Where not, `fast_only` must fail.
    pub fast_zeroes: bool,
    /// Whether [`Fixture::reopen`](crate::Fixture::reopen) gives a second, independent pool on the
    /// same storage, as another process would have.
    pub second_handle: bool,
    /// The longest name of a volume, in bytes. A longer one must be `InvalidInput`.
    pub longest_name: usize,
    /// Names that the store keeps for itself: they must be `InvalidInput`, whatever the call.
    pub reserved_names: &'static [&'static str],
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
    /// How volumes are provisioned where it does not matter: thin, unless there is only thick.
    pub fn provisioning(&self) -> Provisioning {
        match self.capabilities.thin {
            Support::None => Provisioning::Thick,
            _ => Provisioning::Thin,
        }
    }

    /// A volume of `size`, provisioned like that.
    pub fn volume(&self, size: u64) -> CreateOptions {
        CreateOptions {
            size: ByteSize::new(size),
            provisioning: self.provisioning(),
        }
    }

    /// Whether a volume can be larger than the space that it takes.
    pub fn thin(&self) -> bool {
        self.provisioning() == Provisioning::Thin
    }

    /// What a volume has that was asked for with `size`.
    pub fn rounded(&self, size: u64) -> u64 {
        size.next_multiple_of(self.size_unit)
    }

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
        holes: true,
        fast_zeroes: true,
        second_handle: false,
        longest_name: VolumeName::MAX_LEN,
        reserved_names: &[],
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
        capabilities: Capabilities {
            fencing: Support::Native,
            ..all_native()
        },
        // XFS shows cached zeros beside copied-on-write blocks as data.
        allocated: Grade::Superset,
        changed: Grade::Exact,
        granularity: 4096,
        size_unit: 512,
        large_size: i64::MAX as u64 / 4096 * 4096,
        holes: true,
        fast_zeroes: true,
        second_handle: true,
        longest_name: VolumeName::MAX_LEN,
        reserved_names: &[],
    };

    /// A directory pool on a file system that can't: snapshots and clones are chains of images. ext4
    /// limits a file to 16 TiB.
    pub const DIR_CHAIN: Expect = Expect {
        capabilities: Capabilities {
            fencing: Support::Emulated,
            ..all_native()
        },
        large_size: 15 << 40,
        ..Expect::DIR_REFLINK
    };

    /// A pool on an NFS 4.2 server whose file system can share blocks between files.
    pub const NFS_CLONE: Expect = Expect {
        capabilities: Capabilities {
            // What files share is not told.
            changed_extents: Support::Emulated,
            ..Expect::DIR_REFLINK.capabilities
        },
        large_size: 1 << 60,
        ..Expect::DIR_REFLINK
    };

    /// A pool on an NFS 4.2 server whose file system can't.
    pub const NFS_CHAIN: Expect = Expect {
        capabilities: Expect::DIR_CHAIN.capabilities,
        large_size: 15 << 40,
        ..Expect::NFS_CLONE
    };

    /// A pool on an NFS server of an older version: no holes, and nothing can be reserved.
    pub const NFS_OLD: Expect = Expect {
        capabilities: Capabilities {
            thick: Support::None,
            discard: Support::None,
            ..Expect::DIR_CHAIN.capabilities
        },
        holes: false,
        fast_zeroes: false,
        ..Expect::NFS_CHAIN
    };

    /// Volumes of a directory on XFS that tgt shows.
    pub const TGT_XFS: Expect = Expect {
        // As logical units have blocks.
        size_unit: 512,
        // It is unmapped by the gigabyte.
        large_size: 1 << 44,
        ..Expect::DIR_REFLINK
    };

    /// Volumes of a directory on XFS that LIO shows.
    pub const LIO_XFS: Expect = Expect::TGT_XFS;

    /// An LVM thin pool with chunks of 64 KiB in a group with extents of as much.
    pub const LVM_THIN: Expect = Expect {
        capabilities: Capabilities {
            thick: Support::None,
            ..all_native()
        },
        allocated: Grade::Exact,
        // A chunk that was written again is another one, whatever is in it.
        changed: Grade::Superset,
        granularity: 64 << 10,
        size_unit: 64 << 10,
        large_size: 128 << 40,
        holes: true,
        fast_zeroes: true,
        second_handle: true,
        // The device's name has the group's in it, and may have 127 bytes.
        longest_name: 109,
        reserved_names: &[
            "snapshot",
            "snapshot1",
            "pvmove0",
            "a_tmeta",
            "a_tdata",
            "a_rimage_0",
            "a_cpool",
            "lvol0_pmspare",
            "_vorigin",
        ],
    };

    /// Volumes of an LVM thin pool that LIO shows.
    pub const LIO_LVM: Expect = Expect {
        capabilities: Capabilities {
            fencing: Support::Native,
            ..Expect::LVM_THIN.capabilities
        },
        // It is unmapped by the gigabyte.
        large_size: 1 << 44,
        ..Expect::LVM_THIN
    };

    /// A volume group in which every volume is thick, with extents of 64 KiB.
    pub const LVM_THICK: Expect = Expect {
        capabilities: Capabilities {
            snapshot: Support::None,
            clone: Support::None,
            revert: Support::None,
            thin: Support::None,
            thick: Support::Native,
            discard: Support::None,
            changed_extents: Support::None,
            ..all_native()
        },
        allocated: Grade::Superset,
        large_size: 64 << 20,
        ..Expect::LVM_THIN
    };
}
