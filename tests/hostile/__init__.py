"""Hostile input, one row of the catalogue each, and the tests that show it is harmless.

Rows whose cases are data are in `cases.py`; `ROWS` says which tests stand for the others, and
`NOT_HERE` what of a row this project does not offer or an ordinary machine cannot show, and why.
"""

from __future__ import annotations

_MALFORMED = (
    "api/test_transport.py::test_malformed_requests_are_refused_and_what_follows_is_not_read"
)
_LATE = "api/test_transport.py::test_a_request_that_does_not_arrive_is_given_up"

ROWS: dict[str, tuple[str, ...]] = {
    "T1": (_LATE, "api/test_transport.py::test_slow_heads_are_nobody_elses_business"),
    "T2": (_LATE, "api/test_transport.py::test_blank_lines_do_not_keep_a_connection_open"),
    "T3": (_LATE,),
    "T4": (_MALFORMED,),
    "T5": (_MALFORMED,),
    "T6": ("api/test_transport.py::test_sizes_of_heads_are_bounded",),
    "T7": (
        "api/test_edge.py::test_a_long_body_is_refused_declared_or_not",
        "api/test_transport.py::test_a_body_that_is_too_long_is_refused_before_it_is_sent",
    ),
    "T8": ("api/test_body.py::test_anything_but_plain_declared_json_is_an_unsupported_media_type",),
    "T9": ("api/test_edge.py::test_bodies_must_be_declared_as_json",),
    "T10": ("api/test_edge.py::test_wrong_methods", _MALFORMED),
    "T11": (
        "api/test_edge.py::test_unknown_paths",
        "api/test_access.py::test_every_route_wants_a_key_but_the_public_ones",
    ),
    "T12": ("api/test_transport.py::test_pipelined_requests_are_answered_in_order",),
    "H1": (
        "api/test_access.py::test_other_names_are_not",
        "api/test_access.py::test_the_name_comes_before_the_key",
    ),
    "H2": (
        "api/test_access.py::test_host_names_are_taken_apart_exactly",
        "api/test_access.py::test_a_path_never_comes_from_the_name",
    ),
    "H3": ("api/test_access.py::test_pages_from_elsewhere_get_nothing",),
    "H4": ("api/test_access.py::test_an_allowed_page_may_ask_and_read_the_refusal",),
    "H5": ("api/test_access.py::test_anything_else_does_not",),
    "H6": ("api/test_access.py::test_every_route_wants_a_key_but_the_public_ones",),
    "H7": (
        "api/test_access.py::test_keys_are_compared_in_constant_time_all_of_them_and_as_digests_of_one_length",
        "api/test_access.py::test_hangup_reads_the_keys_again_and_nothing_of_them_is_logged",
    ),
    "H8": ("api/test_access.py::test_a_path_never_comes_from_the_name",),
    "H9": (
        "api/test_ui.py::test_hostile_output_of_a_model_stays_inert",
        "api/test_ui.py::test_a_stream_with_hostile_text_is_framed_as_any_other",
        "web/test_page.py::test_hostile_output_stays_inert",
    ),
    "J6": ("hostile/test_cases.py::test_every_field_refuses_every_wrong_type",),
    "M2": ("chat/test_template.py::test_a_refusal_carries_the_templates_own_words",),
    "M13": (
        "test_live.py::test_a_disconnect_frees_the_worker",
        "api/test_chat.py::test_a_client_that_goes_cancels_its_request",
    ),
    "M14": ("api/test_transport.py::test_a_client_that_does_not_read_is_cut_off",),
    "G7": (
        "chat/test_constraint.py::test_a_grammar_that_runs_out_in_the_middle_is_an_error_of_its_own",
    ),
    "G9": ("chat/test_constraint.py::test_required_with_few_tokens_left",),
    "G10": ("chat/test_stream.py::test_hostile_text_costs_linear_time",),
    "G11": ("chat/test_constraint.py::test_grammars_are_kept_within_their_budget",),
    "S2": ("models/test_registry.py::test_what_cannot_be_served_is_not_listed_and_blocks_nothing",),
    "S3": ("gguf/test_header.py::test_every_truncation_is_noticed",),
    "S4": ("chat/test_template.py::test_hostile_templates_end_soon",),
    "S7": (
        "models/test_pool.py::test_a_switch_waits_for_running_requests_and_then_takes_all_that_wait",
    ),
    "S8": (
        "hostile/test_load.py::test_switches_at_once_are_one_load_at_a_time_and_all_are_answered",
    ),
    "S9": ("models/test_pool.py::test_equal_in_effect_is_no_reload",),
    "S10": ("hostile/test_load.py::test_a_client_that_goes_during_a_load_leaves_one_worker",),
    "S12": ("hostile/test_load.py::test_switching_to_and_fro_leaves_nothing_behind",),
    "L1": (
        "hostile/test_load.py::test_ten_times_the_queue_is_taken_up_to_its_bound_and_nothing_is_lost",
        "api/test_chat.py::test_the_queue_is_bounded",
    ),
    "L2": (
        "engine/test_engine.py::test_the_shortest_prompt_goes_first_until_the_long_one_has_waited",
        "engine/test_turns.py::test_who_submits_one_request_behind_many_of_another_is_next_but_one",
        "hostile/test_load.py::test_a_key_that_fills_the_queue_leaves_room_for_others",
    ),
    "L5": (
        "hostile/test_load.py::test_idle_connections_and_readers_that_do_not_read_are_nobody_elses_business",
    ),
    "L6": ("hostile/test_load.py::test_fifty_chats_without_a_model_are_one_load",),
}

NOT_HERE = {
    "H7": "a statistical test of times is worth nothing on a machine that others use",
    "M16": "images are not served: every image part is refused by its type, none is fetched",
    "S5": "a poisoned template cannot be told from an honest one",
    "S8": "coalescing switches to the last one is not offered: the pool serves all who wait for a "
    "model together, and then the next model",
    "L3": "make soak",
    "L4": "each case of cases.py sees that descriptors are back; make soak for many",
    "L5": "make load for 1000 idle connections and 200 streams",
    "S12": "make load for fifty switches",
}
