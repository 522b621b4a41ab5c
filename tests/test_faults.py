"""Faults that a trainer and an evaluator should survive, and which test has each."""

import pytest

from tests.helpers.environment import ROOT

FAULTS = {
    "killed at any moment": "killed_at_any_moment_a_run_ends_as_it_would_have",
    "killed after any step": "a_run_killed_after_any_step_goes_on_to_the_same_bits",
    "signal": "a_signal_finishes_the_step_saves_and_goes_on_exactly",
    "second signal": "a_second_signal_ends_the_process_at_once",
    "full disk while saving": "a_full_disk_loses_nothing_in_any_writing_step",
    "full disk in a run": "a_run_on_a_disk_that_fills_up_stops_and_goes_on_exactly_once_there_is_room",
    "read-only or vanished folder": "a_read_only_or_vanished_folder_is_a_storage_error",
    "folder that vanishes in a run": "a_folder_that_vanishes_is_a_storage_error",
    "checkpoint cut short": "a_file_cut_at_any_length_is_detected_and_the_generation_before_is_taken",
    "file of a run cut short": "a_file_of_a_run_cut_anywhere_is_detected",
    "bits flipped in a checkpoint": "bits_flipped_anywhere_in_a_generation_are_detected_or_change_nothing",
    "bits flipped in a run": "bits_flipped_over_every_file_of_a_run_are_detected_or_change_nothing_that_is_told",
    "bit flipped in the metrics": "a_bit_flipped_in_the_metrics_is_detected_or_costs_the_last_epoch",
    "pipe, directory or link in place of a file": "what_is_no_regular_file_is_refused_at_once",
    "pickle, code in a config, header bomb": "a_hostile_run_is_refused_and_nothing_of_it_runs",
    "tensors of a stranger": "tensors_of_a_stranger_are_refused",
    "manifest that climbs out, another schema": "a_manifest_that_names_anything_else_is_refused_though_sealed",
    "weights of another model": "another_models_state_is_refused_by_name_and_shape",
    "weights of NaN": "a_state_of_nan_is_refused",
    "weights of NaN, asked for": "nan_weights_are_handed_out_only_where_asked_for",
    "options changed on resume": "changed_options_are_refused_with_a_table_unless_forked",
    "another run on resume": "another_run_is_refused_with_a_table_and_forks",
    "data changed": "changed_data_is_refused",
    "particles of other weights or data": "particles_of_other_weights_or_data_are_not_gone_on_from",
    "another version of torch": "another_version_of_torch_goes_on",
    "other versions": "other_versions_go_on_and_say_so",
    "writers that race": "of_eight_processes_one_writes_and_seven_are_told_who",
    "second writer": "a_second_writer_exits_75_and_changes_no_byte",
    "stale lock": "the_lock_of_a_killed_process_is_free_at_once",
    "reader beside a writer": "a_reader_beside_a_writer_never_sees_a_torn_state",
    "NaN in the data": "non_finite_rows_are_named",
    "data outside of a support": "rows_outside_a_support_come_with_words_and_a_way_out",
    "no rows, no columns": "data_that_cannot_be_used_is_refused_before_training",
    "one row": "one_row_trains",
    "uneven last batch": "the_loss_is_per_datum_with_an_uneven_last_batch",
    "other dtypes": "other_dtypes_are_copied_with_a_warning",
    "no numbers": "what_is_no_data_is_refused",
    "item that raises": "an_item_that_cannot_be_read_is_named_with_its_error",
    "items of other shapes": "items_of_other_shapes_and_of_several_parts_are_named",
    "stream": "streams_and_loaders_are_refused_with_the_way_to_an_array",
    "worker process of a loader dies": None,  # there are none: a DataLoader is refused with the way to make one array of it
    "model and guide that do not match": "a_broken_pair_is_named",
    "loss of NaN": "a_step_that_diverges_is_skipped_with_the_weights_and_buffers_untouched",
    "loss of NaN in a row": "after_some_in_a_row_training_stops_with_the_first_bad_site_and_a_capsule",
    "divergence replayed": "a_run_that_diverges_is_replayed_by_one_command",
    "extreme features": "extreme_features_stay_finite_in_float32",
    "posterior collapse": "latents_that_carry_nothing_are_warned_of_once",
    "memory of the device, training": "a_device_that_does_not_hold_a_batch_is_said_with_a_batch_that_may_fit",
    "memory of the device, evaluation": "too_little_memory_takes_smaller_chunks",
    "memory of the device, nothing fits": "what_does_not_fit_at_all_is_not_hidden",
    "memory, many particles": "a_million_particles_take_no_more_memory_than_a_chunk",
    "overflow, many particles": "more_particles_than_fit_a_word_do_not_overflow",
    "no CUDA": "cuda_without_cuda_is_an_error",
    "no such device": "devices_that_are_not_there_are_refused",
    "degenerate weights": "flags_are_where_the_shape_is_above_the_threshold",
    "degenerate weights, strict": "an_unreliable_number_is_written_with_its_flag_and_exits_5_under_strict",
    "damaged download": "a_damaged_gz_is_named",
    "failed download": "a_failed_download_says_so",
    "bytes of any kind as data": "fuzzed_arrays_are_read_or_data_errors",
    "names of any kind": "any_name_that_the_system_takes_is_a_runs",
    "name that is too long": "a_name_that_is_too_long_is_a_storage_error",
    "no seed": "a_seed_that_is_none_is_refused",
    "huge seed": "a_huge_seed_is_a_seed",
    "one seed twice": "the_same_seed_gives_the_same_run_whatever_ran_before",
    "global random state": "the_global_random_state_and_modes_are_unchanged",
    "two VAEs in a process, deep copies": "two_vaes_and_a_deep_copy_train_in_one_process",
    "clock that jumps": "no_duration_is_taken_from_a_clock_that_may_jump",
    "decimal comma": "a_decimal_comma_changes_no_number",
    "output that nobody reads": "output_that_nobody_reads_ends_the_command_quietly",
    "output that is closed": "output_that_is_closed_is_no_crash",
    "terminal of ASCII": "a_terminal_that_knows_only_ascii_gets_signs_spelled",
    "no terminal": "no_terminal_is_needed",
    "optional import that is missing": None,  # every import is a dependency of the package: extras are for tests and benchmarks
}


@pytest.mark.parametrize("fault", [fault for fault, test in FAULTS.items() if test])
def test_every_fault_has_a_test(fault, sources):
    assert f"def test_{FAULTS[fault]}(" in sources


@pytest.fixture(scope="module")
def sources():
    return "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
