"""Faults that a server must outlive, one row each, and the tests that show it.

`ROWS` says for each fault which tests stand for it (`test_catalogue.py` sees that they exist);
`NOT_HERE` says what of a row cannot be shown on an ordinary machine, and why.
"""

from __future__ import annotations

ROWS: dict[str, tuple[str, ...]] = {
    "F1 worker killed": (
        "faults/test_workers.py::test_a_signal_costs_the_running_request_alone",
        "faults/test_workers.py::test_a_request_that_crashes_every_worker_is_refused",
        "worker/test_client.py::test_a_kill_by_the_system_while_loading_is_put_down_to_memory",
        "models/test_pool.py::test_a_model_that_keeps_crashing_is_tried_ever_more_slowly",
    ),
    "F2 worker crashes": (
        "faults/test_workers.py::test_a_signal_costs_the_running_request_alone",
        "faults/test_files.py::test_a_truncated_model_is_a_crash_and_a_clear_refusal",
    ),
    "F3 worker hangs": (
        "worker/test_watchdog.py::test_a_silent_worker_is_ended_and_its_requests_say_so",
        "worker/test_watchdog.py::test_silence_is_allowed_by_the_length_of_the_request",
    ),
    "F4 worker out of memory": (
        "faults/test_workers.py::test_the_kernel_ends_a_worker_that_takes_too_much",
        "worker/test_watchdog.py::test_a_worker_that_grows_too_big_is_ended",
    ),
    "F5 GPU out of memory": (
        "models/test_pool.py::test_a_failing_load_instead_brings_the_old_model_back",
    ),
    "F6 cache folder fails": (
        "faults/test_files.py::test_a_full_cache_folder_costs_no_request",
        "faults/test_files.py::test_a_cache_folder_that_is_taken_away_costs_no_request",
        "faults/test_files.py::test_a_cache_folder_that_is_deleted_is_made_again",
        "faults/test_files.py::test_a_mount_that_hangs_stops_no_server",
        "engine/test_hung_disk.py::test_a_prompt_that_cannot_be_read_is_computed",
        "cache/test_faults.py::test_any_operation_may_fail",
        "cache/test_faults.py::test_a_full_or_forbidden_disk_is_one_warning_and_recovers",
        "cache/test_faults.py::test_a_folder_that_is_a_file",
    ),
    "F7 chunks damaged": (
        "cache/test_store.py::test_every_changed_byte_is_a_miss",
        "cache/test_store.py::test_every_truncation_and_a_byte_too_many_is_a_miss",
        "cache/test_store.py::test_swapped_files_are_misses",
        "cache/test_store.py::test_a_chunk_of_another_model_is_a_miss",
        "engine/test_real_disk.py::test_a_corrupt_file_is_a_miss_and_the_answer_is_right",
    ),
    "F8 power loss": (
        "faults/test_power.py::test_a_death_at_any_operation_leaves_hits_or_misses",
        "cache/test_store.py::test_left_over_temporary_files_are_swept",
    ),
    "F9 clock jumps": ("cache/test_faults.py::test_a_clock_that_jumps",),
    "F10 model file changes": (
        "faults/test_files.py::test_a_model_that_is_replaced_is_loaded_anew",
        "faults/test_files.py::test_a_model_that_is_overwritten_ends_what_runs",
        "faults/test_files.py::test_a_model_that_is_deleted_goes_on_serving",
        "faults/test_files.py::test_a_truncated_model_is_a_crash_and_a_clear_refusal",
    ),
    "F11 same path, new content": (
        "faults/test_files.py::test_a_replaced_model_never_uses_old_chunks",
    ),
    "F12 bad address": (
        "test_server.py::test_a_port_in_use_is_one_line_before_any_model_is_loaded",
        "test_server.py::test_other_bad_starts",
    ),
    "F13 SIGTERM": (
        "test_server.py::test_a_signal_lets_running_answers_finish",
        "test_server.py::test_an_answer_that_takes_too_long_ends_in_an_error",
        "test_server.py::test_a_second_signal_stops_now",
    ),
    "F14 other signals": ("faults/test_process.py::test_signals_that_mean_nothing_to_it",),
    "F15 server killed": (
        "faults/test_process.py::test_after_a_kill_the_port_is_free_and_no_worker_is_left",
        "worker/test_main.py::test_it_dies_with_a_parent_that_is_killed",
    ),
    "F16 restart": ("faults/test_process.py::test_a_restart_finds_its_prompts_again",),
    "F17 two servers, one folder": (
        "cache/test_shared.py::test_processes_share_a_folder",
        "cache/test_shared.py::test_a_dead_lock_holder_blocks_nobody",
        "faults/test_files.py::test_two_servers_share_a_cache_folder",
    ),
    "F18 hostile worker": (
        "worker/test_client.py::test_death_ends_every_request_once_with_one_error",
        "worker/test_frames.py::test_anything_else_is_a_decode_error",
    ),
    "F19 nobody reads the log": (
        "test_logs.py::test_a_stalled_reader_costs_lines_and_no_time",
        "faults/test_process.py::test_a_log_that_nobody_reads_stops_nothing",
        "faults/test_process.py::test_a_log_that_was_full_before_the_start_stops_nothing",
        "faults/test_process.py::test_a_log_on_a_full_disk_stops_nothing",
    ),
    "F20 no descriptors left": ("faults/test_process.py::test_running_out_of_descriptors_passes",),
}

NOT_HERE = {
    "F5 GPU out of memory": "needs a GPU; the path behind it, a context that is refused, is shown "
    "with a worker that fails to load",
    "F6 cache folder fails": "EIO and quotas come from a wrapper around every operation: a faulty "
    "FUSE file system or a disk with quotas is not to be had in a test",
    "F8 power loss": "what a disk does with writes that were never flushed needs dm-log-writes; "
    "files prove themselves by checksum, so a lost write is a miss whatever the order",
    "F9 clock jumps": "of the whole process needs libfaketime; the one place that reads the wall "
    "clock for decisions is given another one",
    "F10 model file changes": "an unplugged disk is a read error under the mapping, SIGBUS: the "
    "same as a truncated file",
    "F20 no descriptors left": "no threads and no shared memory: limits on them do not bind root, "
    "which CI often is; shared memory is not used",
}
