//! Every way in which a pool is broken on purpose.

/// What is wrong with the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing is broken.
    None,
    /// Names past 100 bytes are refused.
    LongNamesFail,
    /// Names that the pool keeps for itself can be used.
    ReservedNamesWork,
    /// Names are made lower case.
    FoldsCase,
    /// A missing name finds a volume whose name begins with it.
    FindsPrefixes,
    /// Every adoption leaves an empty volume, whatever else it does.
    AdoptLeavesAVolume,
    /// Creating what exists replaces it.
    CreateAlwaysNew,
    /// Creating what exists returns it, whatever was asked for.
    CreateIgnoresArguments,
    /// A volume is larger than was asked for.
    CreateAddsABlock,
    /// Size 0 becomes a size that works.
    CreateTakesSizeZero,
    /// Sizes past 1 TiB are refused.
    CreateLimitsSize,
    /// A new volume ends in old data.
    CreateShowsJunk,
    /// Snapshotting, cloning or copying onto what exists replaces it.
    DeriveAlwaysNew,
    /// Snapshotting, cloning or copying onto what exists returns it.
    DeriveIgnoresArguments,
    /// Deleting what does not exist fails.
    DeleteMissingFails,
    /// Deleting succeeds and does nothing.
    DeleteDoesNothing,
    /// Deleting takes snapshots, clones and copies with it.
    DeleteTakesChildren,
    /// Deleting a volume in use succeeds (and does nothing).
    DeleteIgnoresUse,
    /// Resizing to the present size fails.
    ResizeSameFails,
    /// Resizing damages the first bytes.
    ResizeLosesData,
    /// Impossible sizes become one that is possible.
    ResizeClamps,
    /// Shrinking works without the flag.
    ShrinkNeedsNoFlag,
    /// Shrinking a volume in use succeeds (and does nothing).
    ShrinkIgnoresUse,
    /// The grown part ends in old data.
    GrowthShowsJunk,
    /// Renaming to the same name fails.
    RenameToItselfFails,
    /// Renaming replaces another volume.
    RenameReplaces,
    /// Renaming a volume in use is refused.
    RenameNeedsIdle,
    /// Renaming what is gone succeeds if the target exists.
    RenameMissingSucceeds,
    /// A second revert to the same snapshot fails.
    RevertOnce,
    /// Reverting succeeds and does nothing.
    RevertDoesNothing,
    /// Reverting deletes the volume's other snapshots.
    RevertDropsSnapshots,
    /// Reverting to a foreign snapshot succeeds (and does nothing).
    RevertTakesAnything,
    /// Reverting a volume in use succeeds (and does nothing).
    RevertIgnoresUse,
    /// Flattening damages the first bytes.
    FlattenLosesData,
    /// Flattening a snapshot succeeds (and does nothing).
    FlattenTakesSnapshots,
    /// A snapshot's first bytes are wrong.
    SnapshotHoldsJunk,
    /// A clone's or copy's first bytes are wrong.
    CloneHoldsJunk,
    /// Reading a snapshot reads its parent as it is now.
    SnapshotIsLive,
    /// A snapshot opens for writing.
    SnapshotIsWritable,
    /// A snapshot is attached when asked for writing.
    SnapshotAttachesForWriting,
    /// Writing to a clone or copy writes to its parent too.
    WritesReachTheParent,
    /// A repeated attach fails.
    AttachOnlyOnce,
    /// A repeated attach with other options succeeds.
    AttachIgnoresOptions,
    /// Nothing remembers an attachment.
    AttachIsForgotten,
    /// Attaching a volume that is open for writing succeeds.
    AttachIgnoresWriters,
    /// An attachment names another device.
    AttachLeadsElsewhere,
    /// Detaching from a volume that does not exist fails.
    DetachMissingFails,
    /// Adopting damages the first bytes.
    AdoptLosesData,
    /// Shared blocks count once for each volume.
    UsageCountsShared,
    /// Nothing is ever used.
    UsageIgnoresData,
    /// What is provisioned counts as used.
    UsageCountsProvisioned,
    /// Nothing is ever provisioned.
    ProvisionedIsForgotten,
    /// A second handle does not see the volumes.
    OtherHandleIsStale,
    /// An audit finds what is not there.
    AuditFindsGhosts,
    /// An audit with repair deletes a volume that nobody uses.
    AuditDeletes,
    /// Discarding succeeds and does nothing.
    DiscardDoesNothing,
    /// Discarding frees nothing.
    DiscardOnlyZeroes,
    /// Writing zeros succeeds and does nothing.
    ZeroDoesNothing,
    /// An open volume never grows.
    DeviceSizeIsFixed,
    /// An open volume takes the size of whatever bears its name.
    RefreshGoesByName,
    /// Zeros that must be fast are refused.
    FastZeroesFail,
    /// A second writer is let in.
    WritersUnlimited,
    /// A reader beside a writer is refused.
    WriterExcludesReaders,
    /// Writing through a reader's handle succeeds.
    ReadersCanWrite,
    /// Shared writers exclude each other.
    SharedIsExclusive,
    /// A closed handle keeps its volume in use.
    HandlesLeak,
    /// A handle stops working when its pool handle is dropped.
    HandlesDieWithThePool,
    /// A dropped call leaves its volume locked.
    DropWedges,
    /// A dropped write or discard takes effect later.
    DroppedWritesComeLate,
    /// Capabilities name what is not there.
    ClaimsMore,
    /// What is not supported fails with another kind.
    UnsupportedIsInternal,
    /// Errors name no volume.
    ErrorsLoseNames,
    /// What does not exist fails with another kind.
    MissingIsUnavailable,
    /// What was cancelled fails with another kind.
    CancelIsInternal,
    /// Ranges past the end are cut to it.
    RangesAreCut,
    /// Thick volumes reserve nothing.
    ThickIsThin,
    /// The creation time changes with each look.
    CreatedIsNow,
    /// Looking a volume up does not tell its origin.
    NoOrigin,
    /// The id is made from the name.
    IdsFollowNames,
    /// Each volume is listed twice.
    ListsTwice,
    /// The pool does not tell its policy.
    ForgetsPolicy,
    /// The settings have no effect.
    IgnoresPolicy,
    /// There is a limit where none was asked for.
    OverdoesPolicy,
    /// Writes begin at a multiple of 512.
    WritesAreRounded,
    /// Requests of no length fail.
    EmptyRequestsFail,
    /// A request beside another one fails.
    OneRequestAtATime,
    /// A write returns before it took effect.
    WritesGoOnAfterwards,
    /// Flushing fails.
    FlushFails,
    /// Everything counts as allocated.
    ExtentsAreTooMany,
    /// The first extent is left out.
    ExtentsMissTheFirst,
    /// What is allocated counts as changed.
    ChangedIsAllocated,
    /// Changes since a volume that does not exist are told.
    ChangedSinceMissing,
    /// Nobody is told how far work is, and it can't be stopped.
    NoProgress,
}
