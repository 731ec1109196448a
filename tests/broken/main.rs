//! Every case of the suite can fail: for each there is a pool that is broken on purpose, with which
//! it does, while the same pool without the flaw passes.

mod device;
mod flaw;
mod pool;
mod state;
mod storage;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use flaw::Flaw;
use storage::{Base, BrokenStorage};
use volmux_conformance::{CASES, Storage, run_case};

/// For each case a flaw with which it fails.
const FLAWS: &[(&str, Flaw)] = &[
    ("c01_every_allowed_name_works", Flaw::LongNamesFail),
    ("c01_names_differ_by_case", Flaw::FoldsCase),
    (
        "c01_a_name_that_begins_another_is_a_different_volume",
        Flaw::FindsPrefixes,
    ),
    ("c01_reserved_names_are_refused", Flaw::ReservedNamesWork),
    ("c01_bad_names_do_nothing", Flaw::AdoptLeavesAVolume),
    ("c02_create_again_returns_the_same", Flaw::CreateAlwaysNew),
    (
        "c02_create_with_another_size_is_refused",
        Flaw::CreateIgnoresArguments,
    ),
    (
        "c02_create_with_another_provisioning_is_refused",
        Flaw::CreateIgnoresArguments,
    ),
    ("c02_snapshot_again_returns_the_same", Flaw::DeriveAlwaysNew),
    ("c02_clone_again_returns_the_same", Flaw::DeriveAlwaysNew),
    ("c02_copy_again_returns_the_same", Flaw::DeriveAlwaysNew),
    (
        "c02_snapshot_over_something_else_is_refused",
        Flaw::DeriveIgnoresArguments,
    ),
    (
        "c02_clone_over_something_else_is_refused",
        Flaw::DeriveIgnoresArguments,
    ),
    (
        "c02_copy_over_something_else_is_refused",
        Flaw::DeriveIgnoresArguments,
    ),
    ("c02_delete_missing_succeeds", Flaw::DeleteMissingFails),
    (
        "c02_resize_to_the_same_size_changes_nothing",
        Flaw::ResizeSameFails,
    ),
    (
        "c02_rename_to_itself_changes_nothing",
        Flaw::RenameToItselfFails,
    ),
    ("c02_revert_can_be_repeated", Flaw::RevertOnce),
    ("c02_attach_can_be_repeated", Flaw::AttachOnlyOnce),
    (
        "c02_attach_with_other_options_is_refused",
        Flaw::AttachIgnoresOptions,
    ),
    ("c02_detach_can_be_repeated", Flaw::DetachMissingFails),
    (
        "c09_an_attachment_leads_to_the_volumes_data",
        Flaw::AttachLeadsElsewhere,
    ),
    (
        "c09_an_attachment_lasts_beyond_the_handle",
        Flaw::AttachIsForgotten,
    ),
    (
        "c09_an_attachment_follows_a_rename",
        Flaw::AttachIsForgotten,
    ),
    (
        "c03_deleting_the_source_harms_nobody",
        Flaw::DeleteTakesChildren,
    ),
    (
        "c03_deleting_a_snapshot_harms_nobody",
        Flaw::DeleteTakesChildren,
    ),
    (
        "c03_every_order_of_deletion_works",
        Flaw::DeleteTakesChildren,
    ),
    ("c03_chains_of_thirty_hold", Flaw::DeleteTakesChildren),
    (
        "c03_a_clone_and_its_source_go_their_own_ways",
        Flaw::WritesReachTheParent,
    ),
    ("c03_a_clone_can_be_resized_alone", Flaw::ResizeLosesData),
    ("c03_a_copy_is_independent", Flaw::WritesReachTheParent),
    (
        "c03_a_snapshot_of_a_snapshot_works",
        Flaw::DeleteTakesChildren,
    ),
    (
        "c04_a_snapshot_in_use_holds_what_was_flushed",
        Flaw::SnapshotHoldsJunk,
    ),
    (
        "c04_later_writes_do_not_show_in_a_snapshot",
        Flaw::SnapshotIsLive,
    ),
    (
        "c04_unflushed_writes_are_whole_or_absent_by_block",
        Flaw::SnapshotHoldsJunk,
    ),
    (
        "c04_a_snapshot_taken_while_writes_run_is_a_moment",
        Flaw::SnapshotHoldsJunk,
    ),
    (
        "c04_a_clone_of_a_volume_in_use_holds_what_was_flushed",
        Flaw::CloneHoldsJunk,
    ),
    (
        "c04_a_snapshot_is_seen_by_another_handle",
        Flaw::SnapshotIsLive,
    ),
    ("c04_a_snapshot_is_read_only", Flaw::SnapshotIsWritable),
    (
        "c04_a_snapshot_cannot_be_attached_for_writing",
        Flaw::SnapshotAttachesForWriting,
    ),
    (
        "c04_a_snapshot_survives_all_that_happens_to_its_source",
        Flaw::SnapshotIsLive,
    ),
    (
        "c05_a_native_snapshot_takes_no_room",
        Flaw::UsageCountsShared,
    ),
    ("c05_a_native_clone_takes_no_room", Flaw::UsageCountsShared),
    ("c05_a_copy_takes_room_of_its_own", Flaw::UsageIgnoresData),
    (
        "c05_an_empty_volume_takes_no_room",
        Flaw::UsageCountsProvisioned,
    ),
    (
        "c06_another_handle_sees_every_effect",
        Flaw::OtherHandleIsStale,
    ),
    (
        "c06_normal_work_leaves_nothing_for_an_audit",
        Flaw::AuditFindsGhosts,
    ),
    ("c06_an_audit_changes_no_volume", Flaw::AuditDeletes),
    (
        "c06_an_audit_beside_running_work_takes_nothing_away",
        Flaw::AuditDeletes,
    ),
    ("c07_a_new_volume_reads_as_zeros", Flaw::CreateShowsJunk),
    (
        "c07_a_new_thick_volume_reads_as_zeros",
        Flaw::CreateShowsJunk,
    ),
    (
        "c07_discarded_ranges_read_as_zeros",
        Flaw::DiscardDoesNothing,
    ),
    ("c07_zeroed_ranges_read_as_zeros", Flaw::ZeroDoesNothing),
    (
        "c07_zeroed_and_discarded_ranges_read_as_zeros",
        Flaw::ZeroDoesNothing,
    ),
    (
        "c07_huge_ranges_can_be_discarded_and_zeroed",
        Flaw::DiscardDoesNothing,
    ),
    (
        "c07_what_was_discarded_can_be_written_again",
        Flaw::DiscardDoesNothing,
    ),
    ("c07_the_grown_part_reads_as_zeros", Flaw::GrowthShowsJunk),
    ("c07_shrunk_and_grown_reads_as_zeros", Flaw::GrowthShowsJunk),
    (
        "c07_no_data_of_a_deleted_volume_can_be_read",
        Flaw::CreateShowsJunk,
    ),
    (
        "c07_zeros_in_a_snapshot_are_zeros",
        Flaw::DiscardDoesNothing,
    ),
    ("c08_sizes_are_rounded_up_and_told", Flaw::CreateAddsABlock),
    (
        "c08_wrong_sizes_are_refused_at_creation",
        Flaw::CreateTakesSizeZero,
    ),
    ("c08_wrong_sizes_are_refused_at_resize", Flaw::ResizeClamps),
    (
        "c08_large_volumes_work_to_their_last_byte",
        Flaw::CreateLimitsSize,
    ),
    ("c08_a_smaller_size_needs_the_flag", Flaw::ShrinkNeedsNoFlag),
    (
        "c08_shrinking_keeps_what_lies_before",
        Flaw::ResizeLosesData,
    ),
    ("c08_growing_works_while_in_use", Flaw::DeviceSizeIsFixed),
    (
        "c08_growing_through_another_handle_is_seen",
        Flaw::DeviceSizeIsFixed,
    ),
    ("c08_thick_volumes_can_be_resized", Flaw::ResizeLosesData),
    ("c09_a_second_writer_is_refused", Flaw::WritersUnlimited),
    (
        "c09_readers_go_together_with_a_writer",
        Flaw::WriterExcludesReaders,
    ),
    ("c09_a_reader_cannot_write", Flaw::ReadersCanWrite),
    ("c09_shared_writers_go_together", Flaw::SharedIsExclusive),
    ("c09_a_closed_handle_frees_the_volume", Flaw::HandlesLeak),
    (
        "c09_a_volume_in_use_cannot_be_deleted",
        Flaw::DeleteIgnoresUse,
    ),
    (
        "c09_a_volume_in_use_cannot_be_shrunk",
        Flaw::ShrinkIgnoresUse,
    ),
    ("c09_attached_excludes_writers", Flaw::AttachIsForgotten),
    (
        "c09_a_writer_excludes_attachments",
        Flaw::AttachIgnoresWriters,
    ),
    (
        "c09_read_only_attachments_go_with_a_writer",
        Flaw::AttachIsForgotten,
    ),
    ("c09_attachments_can_be_shared", Flaw::SharedIsExclusive),
    (
        "c09_taking_over_fences_the_old_writer",
        Flaw::WritersUnlimited,
    ),
    (
        "c09_taking_over_without_fencing_is_refused",
        Flaw::WritersUnlimited,
    ),
    ("c10_dropped_creates_converge", Flaw::DropWedges),
    ("c10_dropped_snapshots_converge", Flaw::DropWedges),
    ("c10_dropped_clones_converge", Flaw::DropWedges),
    ("c10_dropped_copies_converge", Flaw::DropWedges),
    ("c10_dropped_reverts_converge", Flaw::DropWedges),
    ("c10_dropped_resizes_converge", Flaw::DropWedges),
    ("c10_dropped_renames_converge", Flaw::DropWedges),
    ("c10_dropped_deletes_converge", Flaw::DropWedges),
    ("c10_dropped_adoptions_converge", Flaw::DropWedges),
    ("c10_dropped_opens_leave_the_volume_free", Flaw::DropWedges),
    ("c10_dropped_attaches_converge", Flaw::DropWedges),
    ("c10_dropped_looks_change_nothing", Flaw::DropWedges),
    (
        "c10_a_dropped_write_never_overtakes_a_later_one",
        Flaw::DroppedWritesComeLate,
    ),
    (
        "c10_a_dropped_discard_never_overtakes_a_later_write",
        Flaw::DroppedWritesComeLate,
    ),
    (
        "c10_a_dropped_write_does_not_reach_the_next_holder",
        Flaw::DroppedWritesComeLate,
    ),
    ("c11_capabilities_are_those_expected", Flaw::ClaimsMore),
    (
        "c11_what_is_not_supported_is_refused",
        Flaw::UnsupportedIsInternal,
    ),
    (
        "c12_every_operation_on_a_missing_volume_says_so",
        Flaw::ErrorsLoseNames,
    ),
    ("c12_a_missing_source_is_named", Flaw::ErrorsLoseNames),
    (
        "c12_attaching_a_missing_volume_says_so",
        Flaw::ErrorsLoseNames,
    ),
    (
        "c12_a_volume_cannot_be_made_from_itself",
        Flaw::ErrorsLoseNames,
    ),
    (
        "c12_a_rename_onto_another_volume_is_refused",
        Flaw::RenameReplaces,
    ),
    ("c12_ranges_past_the_end_are_refused", Flaw::RangesAreCut),
    ("c12_absurd_lengths_take_no_memory", Flaw::RangesAreCut),
    ("c12_more_than_the_pool_holds_is_refused", Flaw::ThickIsThin),
    (
        "c12_adopting_what_is_not_there_says_so",
        Flaw::ErrorsLoseNames,
    ),
    ("revert_puts_content_and_size_back", Flaw::RevertDoesNothing),
    (
        "revert_harms_no_snapshot_and_no_clone",
        Flaw::RevertDropsSnapshots,
    ),
    (
        "revert_takes_only_the_volumes_own_snapshots",
        Flaw::RevertTakesAnything,
    ),
    (
        "revert_knows_a_snapshot_by_identity_and_not_by_name",
        Flaw::RevertTakesAnything,
    ),
    ("revert_of_a_volume_in_use_is_busy", Flaw::RevertIgnoresUse),
    (
        "revert_that_is_cancelled_changes_nothing",
        Flaw::CancelIsInternal,
    ),
    ("flatten_keeps_content_and_identity", Flaw::FlattenLosesData),
    ("flatten_takes_no_snapshot", Flaw::FlattenTakesSnapshots),
    ("pool_volume_tells_all_of_a_volume", Flaw::CreatedIsNow),
    ("pool_volume_tells_where_a_volume_came_from", Flaw::NoOrigin),
    ("pool_ids_are_never_used_again", Flaw::IdsFollowNames),
    ("pool_ids_outlive_rename_and_resize", Flaw::IdsFollowNames),
    ("pool_rename_works_while_in_use", Flaw::RenameNeedsIdle),
    (
        "pool_rename_that_is_repeated_finds_nothing",
        Flaw::RenameMissingSucceeds,
    ),
    ("pool_a_renamed_volumes_snapshots_stay", Flaw::NoOrigin),
    ("pool_list_shows_every_volume_once", Flaw::ListsTwice),
    ("pool_list_goes_on_while_volumes_change", Flaw::ListsTwice),
    (
        "pool_find_volume_tells_missing_from_failed",
        Flaw::MissingIsUnavailable,
    ),
    ("pool_thick_volumes_reserve_their_space", Flaw::ThickIsThin),
    ("pool_adopts_what_is_there", Flaw::AdoptLosesData),
    ("pool_says_what_it_is", Flaw::ForgetsPolicy),
    ("device_says_what_it_is", Flaw::DeviceSizeIsFixed),
    ("device_reads_back_what_was_written", Flaw::WritesAreRounded),
    (
        "device_takes_requests_of_no_length",
        Flaw::EmptyRequestsFail,
    ),
    (
        "device_serves_many_requests_at_once",
        Flaw::OneRequestAtATime,
    ),
    ("device_flush_makes_writes_durable", Flaw::FlushFails),
    (
        "device_keeps_overlapping_writes_in_order",
        Flaw::WritesGoOnAfterwards,
    ),
    ("device_gives_discarded_space_back", Flaw::DiscardOnlyZeroes),
    ("device_zeroes_fast_or_not_at_all", Flaw::FastZeroesFail),
    (
        "device_refresh_finds_the_volume_by_what_it_is",
        Flaw::RefreshGoesByName,
    ),
    (
        "device_outlives_its_pool_handle",
        Flaw::HandlesDieWithThePool,
    ),
    (
        "extents_allocated_are_what_was_written",
        Flaw::ExtentsAreTooMany,
    ),
    (
        "extents_show_writes_before_a_flush",
        Flaw::ExtentsMissTheFirst,
    ),
    (
        "extents_of_snapshots_and_clones_are_their_own",
        Flaw::ExtentsAreTooMany,
    ),
    (
        "extents_of_a_thick_volume_hold_its_data",
        Flaw::ExtentsMissTheFirst,
    ),
    ("extents_changed_are_what_differs", Flaw::ChangedIsAllocated),
    (
        "extents_changed_are_none_right_after_a_snapshot",
        Flaw::ChangedIsAllocated,
    ),
    (
        "extents_changed_ignore_rewritten_data",
        Flaw::ChangedIsAllocated,
    ),
    (
        "extents_changed_of_a_clone_since_its_origin",
        Flaw::ChangedIsAllocated,
    ),
    (
        "extents_changed_with_different_sizes_count_the_rest_as_zeros",
        Flaw::ChangedIsAllocated,
    ),
    (
        "extents_changed_past_the_end_do_not_count",
        Flaw::ChangedIsAllocated,
    ),
    (
        "extents_changed_since_what_is_missing_says_so",
        Flaw::ChangedSinceMissing,
    ),
    ("usage_moves_in_the_right_direction", Flaw::UsageIgnoresData),
    (
        "usage_counts_every_volume_as_provisioned",
        Flaw::ProvisionedIsForgotten,
    ),
    (
        "usage_counts_snapshots_and_clones_as_provisioned",
        Flaw::ProvisionedIsForgotten,
    ),
    ("policy_overcommit_limit_is_kept", Flaw::IgnoresPolicy),
    ("policy_refuse_mark_is_kept", Flaw::IgnoresPolicy),
    (
        "policy_refuse_mark_counts_what_is_written",
        Flaw::IgnoresPolicy,
    ),
    ("policy_refuses_a_revert_too", Flaw::IgnoresPolicy),
    ("policy_off_refuses_nothing", Flaw::OverdoesPolicy),
    ("progress_of_a_copy_is_told", Flaw::NoProgress),
    (
        "progress_stopped_in_a_copy_leaves_nothing",
        Flaw::NoProgress,
    ),
    (
        "progress_of_a_copy_into_another_pool_is_told",
        Flaw::DeleteDoesNothing,
    ),
    (
        "progress_of_an_emulated_snapshot_is_told",
        Flaw::CancelIsInternal,
    ),
    (
        "progress_of_an_emulated_clone_is_told",
        Flaw::CancelIsInternal,
    ),
    (
        "concurrent_same_creates_make_one_volume",
        Flaw::CreateAlwaysNew,
    ),
    (
        "concurrent_different_creates_have_one_winner",
        Flaw::CreateIgnoresArguments,
    ),
    (
        "concurrent_renames_onto_one_name_have_one_winner",
        Flaw::RenameReplaces,
    ),
    ("concurrent_writers_are_one", Flaw::WritersUnlimited),
    (
        "concurrent_snapshots_and_deletes_leave_a_whole_pool",
        Flaw::DeleteTakesChildren,
    ),
    (
        "concurrent_creates_and_deletes_of_one_name_settle",
        Flaw::DeleteDoesNothing,
    ),
];

/// What needs attachments, adoption or a second handle can only be broken where these work.
fn base(name: &str) -> Base {
    const SECOND_HANDLE: [&str; 2] = [
        "c06_another_handle_sees_every_effect",
        "device_outlives_its_pool_handle",
    ];
    let case = CASES.iter().find(|case| case.name == name);
    let needs = case.expect("a known case").needs;
    if needs.contains(&"attach") || needs.contains(&"adopt") || SECOND_HANDLE.contains(&name) {
        Base::Directory
    } else {
        Base::Memory
    }
}

fn run(name: &str, flaw: Flaw) {
    let base = base(name);
    let make = move || Box::new(BrokenStorage::new(base, flaw)) as Box<dyn Storage>;
    run_case(name, &make, base.expect());
}

fn fails_only_with_its_flaw(name: &str) {
    let (_, flaw) = FLAWS
        .iter()
        .find(|(case, _)| *case == name)
        .unwrap_or_else(|| panic!("no flaw is known that breaks {name}"));
    run(name, Flaw::None);
    let flawed = catch_unwind(AssertUnwindSafe(|| run(name, *flaw)));
    assert!(flawed.is_err(), "{name} passes although {flaw:?}");
}

macro_rules! broken {
    ([] $($module:ident: $($case:ident [$($need:ident)*])*;)*) => {
        mod cases {
            $($(
                #[test]
                fn $case() {
                    super::fails_only_with_its_flaw(stringify!($case));
                }
            )*)*
        }
    };
}

volmux_conformance::__volmux_cases!([broken]);

#[test]
fn every_case_has_its_flaw() {
    let cases: BTreeSet<&str> = CASES.iter().map(|case| case.name).collect();
    let flawed: BTreeSet<&str> = FLAWS.iter().map(|(case, _)| *case).collect();
    assert_eq!(flawed, cases);
    assert_eq!(FLAWS.len(), CASES.len(), "a case is listed twice");
    assert!(FLAWS.iter().all(|(_, flaw)| *flaw != Flaw::None));
}
