//! The list of all cases: the one place that a new case is added to.

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::{Ctx, cases};

/// One case of the suite.
#[derive(Clone, Copy)]
pub struct Case {
    /// The name of its test, which begins with the clause.
    pub name: &'static str,
    /// The capabilities that it needs. Where one is not there, the case asserts that the calls
    /// that need it return `Unsupported` and change nothing.
    pub needs: &'static [&'static str],
    pub(crate) run: for<'c> fn(&'c Ctx<'c>) -> LocalBoxFuture<'c, ()>,
}

impl Case {
    /// The clause that it stands for: the name up to the first underscore.
    pub fn clause(&self) -> &'static str {
        self.name.split('_').next().expect("split yields one")
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .field("needs", &self.needs)
            .finish_non_exhaustive()
    }
}

/// Every clause that cases stand for, and what it says.
pub const CLAUSES: &[(&str, &str)] = &[
    (
        "c01",
        "the caller picks names; a bad one is refused before any side effect",
    ),
    (
        "c02",
        "a repeated call returns what is there, a different one AlreadyExists",
    ),
    ("c03", "snapshots and clones stand on their own"),
    (
        "c04",
        "a snapshot holds every flushed write, and never changes",
    ),
    (
        "c05",
        "snapshots and clones cost nothing that grows with the data",
    ),
    ("c06", "crash-safe; what is left over is found by an audit"),
    (
        "c07",
        "unwritten and discarded ranges are zeros; nobody's old data is readable",
    ),
    (
        "c08",
        "sizes are bytes, may be rounded up, and shrink only with a flag",
    ),
    ("c09", "one writer, unless shared; a stale one is fenced"),
    ("c10", "after a dropped future, calling again converges"),
    (
        "c11",
        "what a pool can't do is said beforehand and returns Unsupported",
    ),
    ("c12", "every failure is a typed error, and nothing changes"),
    ("revert", "content and size go back to a snapshot, in place"),
    ("flatten", "a volume comes to stand on data of its own"),
    ("pool", "what else the Pool trait promises"),
    ("device", "what else the BlockDevice trait promises"),
    ("extents", "which ranges hold data, and which changed"),
    ("usage", "how full a pool is"),
    ("policy", "the marks at which a pool refuses"),
    ("progress", "long work is watched and stopped"),
    ("concurrent", "many callers at once"),
];

/// Hands every case to a macro, grouped by the module that holds it, each with the capabilities
/// that it needs.
#[doc(hidden)]
#[macro_export]
macro_rules! __volmux_cases {
    ([$($callback:tt)*] $($args:tt)*) => {
        $($callback)*! { [$($args)*]
            names:
                c01_every_allowed_name_works []
                c01_names_differ_by_case []
                c01_a_name_that_begins_another_is_a_different_volume []
                c01_reserved_names_are_refused []
                c01_bad_names_do_nothing [];
            idempotent:
                c02_create_again_returns_the_same []
                c02_create_with_another_size_is_refused []
                c02_create_with_another_provisioning_is_refused [thin thick]
                c02_snapshot_again_returns_the_same [snapshot]
                c02_clone_again_returns_the_same [clone]
                c02_copy_again_returns_the_same []
                c02_snapshot_over_something_else_is_refused [snapshot]
                c02_clone_over_something_else_is_refused [clone]
                c02_copy_over_something_else_is_refused []
                c02_delete_missing_succeeds []
                c02_resize_to_the_same_size_changes_nothing []
                c02_rename_to_itself_changes_nothing []
                c02_revert_can_be_repeated [snapshot revert];
            retried:
                c02_attach_can_be_repeated [attach]
                c02_attach_with_other_options_is_refused [attach]
                c02_detach_can_be_repeated [attach]
                c09_an_attachment_leads_to_the_volumes_data [attach]
                c09_an_attachment_lasts_beyond_the_handle [attach]
                c09_an_attachment_follows_a_rename [attach];
            independent:
                c03_deleting_the_source_harms_nobody [snapshot clone]
                c03_deleting_a_snapshot_harms_nobody [snapshot clone]
                c03_every_order_of_deletion_works [snapshot clone]
                c03_chains_of_thirty_hold [snapshot clone]
                c03_a_clone_and_its_source_go_their_own_ways [clone discard]
                c03_a_clone_can_be_resized_alone [snapshot clone]
                c03_a_copy_is_independent [snapshot]
                c03_a_snapshot_of_a_snapshot_works [snapshot];
            in_use:
                c04_a_snapshot_in_use_holds_what_was_flushed [snapshot]
                c04_later_writes_do_not_show_in_a_snapshot [snapshot discard]
                c04_unflushed_writes_are_whole_or_absent_by_block [snapshot]
                c04_a_snapshot_taken_while_writes_run_is_a_moment [snapshot]
                c04_a_clone_of_a_volume_in_use_holds_what_was_flushed [clone]
                c04_a_snapshot_is_seen_by_another_handle [snapshot]
                c04_a_snapshot_is_read_only [snapshot revert]
                c04_a_snapshot_cannot_be_attached_for_writing [snapshot attach]
                c04_a_snapshot_survives_all_that_happens_to_its_source [snapshot clone];
            cost:
                c05_a_native_snapshot_takes_no_room [snapshot]
                c05_a_native_clone_takes_no_room [clone]
                c05_a_copy_takes_room_of_its_own []
                c05_an_empty_volume_takes_no_room [thin];
            crash:
                c06_another_handle_sees_every_effect [snapshot clone revert]
                c06_normal_work_leaves_nothing_for_an_audit [snapshot clone revert]
                c06_an_audit_changes_no_volume [snapshot clone revert]
                c06_an_audit_beside_running_work_takes_nothing_away [snapshot];
            zeros:
                c07_a_new_volume_reads_as_zeros []
                c07_a_new_thick_volume_reads_as_zeros [thick]
                c07_discarded_ranges_read_as_zeros [discard]
                c07_zeroed_ranges_read_as_zeros []
                c07_zeroed_and_discarded_ranges_read_as_zeros []
                c07_huge_ranges_can_be_discarded_and_zeroed [discard]
                c07_what_was_discarded_can_be_written_again [discard]
                c07_the_grown_part_reads_as_zeros []
                c07_shrunk_and_grown_reads_as_zeros [shrink]
                c07_no_data_of_a_deleted_volume_can_be_read []
                c07_zeros_in_a_snapshot_are_zeros [snapshot discard];
            sizes:
                c08_sizes_are_rounded_up_and_told []
                c08_wrong_sizes_are_refused_at_creation []
                c08_wrong_sizes_are_refused_at_resize []
                c08_large_volumes_work_to_their_last_byte []
                c08_a_smaller_size_needs_the_flag []
                c08_shrinking_keeps_what_lies_before [snapshot shrink]
                c08_growing_works_while_in_use []
                c08_growing_through_another_handle_is_seen []
                c08_thick_volumes_can_be_resized [thick shrink];
            writers:
                c09_a_second_writer_is_refused []
                c09_readers_go_together_with_a_writer []
                c09_a_reader_cannot_write [discard]
                c09_shared_writers_go_together [shared_writers]
                c09_a_closed_handle_frees_the_volume []
                c09_a_volume_in_use_cannot_be_deleted []
                c09_a_volume_in_use_cannot_be_shrunk [shrink]
                c09_attached_excludes_writers [snapshot revert attach shrink]
                c09_a_writer_excludes_attachments [attach]
                c09_read_only_attachments_go_with_a_writer [attach]
                c09_attachments_can_be_shared [attach]
                c09_taking_over_fences_the_old_writer [fencing discard]
                c09_taking_over_without_fencing_is_refused [];
            dropped:
                c10_dropped_creates_converge []
                c10_dropped_snapshots_converge [snapshot]
                c10_dropped_clones_converge [clone]
                c10_dropped_copies_converge []
                c10_dropped_reverts_converge [snapshot revert]
                c10_dropped_resizes_converge [shrink]
                c10_dropped_renames_converge []
                c10_dropped_deletes_converge []
                c10_dropped_adoptions_converge [adopt]
                c10_dropped_opens_leave_the_volume_free []
                c10_dropped_attaches_converge [attach]
                c10_dropped_looks_change_nothing []
                c10_a_dropped_write_never_overtakes_a_later_one []
                c10_a_dropped_discard_never_overtakes_a_later_write [discard]
                c10_a_dropped_write_does_not_reach_the_next_holder [];
            unsupported:
                c11_capabilities_are_those_expected []
                c11_what_is_not_supported_is_refused [];
            errors:
                c12_every_operation_on_a_missing_volume_says_so []
                c12_a_missing_source_is_named [snapshot clone]
                c12_attaching_a_missing_volume_says_so [attach]
                c12_a_volume_cannot_be_made_from_itself [snapshot clone]
                c12_a_rename_onto_another_volume_is_refused []
                c12_ranges_past_the_end_are_refused [discard]
                c12_absurd_lengths_take_no_memory [discard]
                c12_more_than_the_pool_holds_is_refused [thick]
                c12_adopting_what_is_not_there_says_so [adopt];
            revert:
                revert_puts_content_and_size_back [snapshot revert]
                revert_harms_no_snapshot_and_no_clone [snapshot clone revert]
                revert_takes_only_the_volumes_own_snapshots [snapshot clone revert]
                revert_knows_a_snapshot_by_identity_and_not_by_name [snapshot revert]
                revert_of_a_volume_in_use_is_busy [snapshot revert]
                revert_that_is_cancelled_changes_nothing [snapshot revert];
            flatten:
                flatten_keeps_content_and_identity [snapshot clone]
                flatten_takes_no_snapshot [snapshot];
            pool:
                pool_volume_tells_all_of_a_volume []
                pool_volume_tells_where_a_volume_came_from [snapshot clone]
                pool_ids_are_never_used_again []
                pool_ids_outlive_rename_and_resize []
                pool_rename_works_while_in_use []
                pool_rename_that_is_repeated_finds_nothing []
                pool_a_renamed_volumes_snapshots_stay [snapshot]
                pool_list_shows_every_volume_once [snapshot]
                pool_list_goes_on_while_volumes_change []
                pool_find_volume_tells_missing_from_failed []
                pool_thick_volumes_reserve_their_space [thick discard]
                pool_adopts_what_is_there [snapshot adopt]
                pool_says_what_it_is [];
            device:
                device_says_what_it_is []
                device_reads_back_what_was_written []
                device_takes_requests_of_no_length [discard]
                device_serves_many_requests_at_once []
                device_flush_makes_writes_durable []
                device_keeps_overlapping_writes_in_order []
                device_gives_discarded_space_back [discard]
                device_zeroes_fast_or_not_at_all []
                device_refresh_finds_the_volume_by_what_it_is []
                device_outlives_its_pool_handle [];
            extents:
                extents_allocated_are_what_was_written [discard]
                extents_show_writes_before_a_flush []
                extents_of_snapshots_and_clones_are_their_own [snapshot clone discard]
                extents_of_a_thick_volume_hold_its_data [thick]
                extents_changed_are_what_differs [snapshot changed_extents discard]
                extents_changed_are_none_right_after_a_snapshot [snapshot clone changed_extents]
                extents_changed_ignore_rewritten_data [snapshot changed_extents]
                extents_changed_of_a_clone_since_its_origin [snapshot clone changed_extents discard]
                extents_changed_with_different_sizes_count_the_rest_as_zeros [snapshot changed_extents]
                extents_changed_past_the_end_do_not_count [changed_extents]
                extents_changed_since_what_is_missing_says_so [changed_extents];
            policy:
                usage_moves_in_the_right_direction []
                usage_counts_every_volume_as_provisioned []
                usage_counts_snapshots_and_clones_as_provisioned [snapshot clone]
                policy_overcommit_limit_is_kept []
                policy_refuse_mark_is_kept [thick discard]
                policy_refuse_mark_counts_what_is_written [thin]
                policy_refuses_a_revert_too [snapshot revert thick]
                policy_off_refuses_nothing [thin];
            long_work:
                progress_of_a_copy_is_told []
                progress_stopped_in_a_copy_leaves_nothing []
                progress_of_a_copy_into_another_pool_is_told []
                progress_of_an_emulated_snapshot_is_told [snapshot]
                progress_of_an_emulated_clone_is_told [clone];
            concurrent:
                concurrent_same_creates_make_one_volume []
                concurrent_different_creates_have_one_winner []
                concurrent_renames_onto_one_name_have_one_winner []
                concurrent_writers_are_one []
                concurrent_snapshots_and_deletes_leave_a_whole_pool [snapshot clone]
                concurrent_creates_and_deletes_of_one_name_settle [];
        }
    };
}

macro_rules! table {
    ([] $($module:ident: $($case:ident [$($need:ident)*])*;)*) => {
        /// Every case.
        pub const CASES: &[Case] = &[$($(
            Case {
                name: stringify!($case),
                needs: &[$(stringify!($need)),*],
                run: |ctx| cases::$module::$case(ctx).boxed_local(),
            },
        )*)*];
    };
}

__volmux_cases!([table]);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use volmux::Capabilities;

    use super::*;

    #[test]
    fn cases_and_clauses_agree() {
        let listed: BTreeSet<&str> = CLAUSES.iter().map(|(clause, _)| *clause).collect();
        let used: BTreeSet<&str> = CASES.iter().map(Case::clause).collect();
        assert_eq!(listed.len(), CLAUSES.len(), "a clause is listed twice");
        assert_eq!(
            used, listed,
            "a clause without a case, or a case without a clause"
        );
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<&str> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), CASES.len());
    }

    #[test]
    fn needs_are_capabilities() {
        let capabilities = Capabilities::default();
        let known: BTreeSet<&str> = capabilities.iter().map(|(name, _)| name).collect();
        for case in CASES {
            for need in case.needs {
                assert!(known.contains(need), "{}: {need}", case.name);
            }
        }
    }
}
