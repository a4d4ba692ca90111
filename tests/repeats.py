"""Tests that are long, or whose cases repeat a form that others have: they run with the slow ones (`make slow`)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import pytest

KEPT = {
    "benchmarks/test_runs.py::test_language_specific_lora": 0,
    "cli/test_cli.py::test_merged_weights_have_the_type_of_the_base": 6,
    "cli/test_overwrite.py::test_a_full_disk": 3,
    "cli/test_overwrite.py::test_resume_takes_the_newest_whole_checkpoint": 3,
    "cli/test_overwrite.py::test_what_is_there_is_kept": 3,
    "cli/test_terminal.py::test_inspect": 8,
    "detection/test_awareness.py::test_batch_size_does_not_matter": 2,
    "detection/test_awareness.py::test_equals_plain_autograd": 4,
    "detection/test_detect.py::test_signature_follows_the_options": 4,
    "detection/test_detect.py::test_the_model_comes_back_as_it_was": 3,
    "examples/test_examples.py::test_on_a_tiny_model": 1,
    "examples/test_serve.py::test_a_sentence_that_is_too_long_for_the_model": 0,
    "examples/test_serve.py::test_answers_stay_right_when_batches_step_aside": 0,
    "examples/test_serve.py::test_what_is_refused": 12,
    "examples/test_serve.py::test_work_of_clients_that_left_is_dropped": 0,
    "fuzz/test_folders.py::test_changed_tensors": 4,
    "lslo/test_batches.py::test_a_mixed_batch_is_each_sample_alone": 5,
    "lslo/test_batches.py::test_generation_is_each_sample_alone": 2,
    "lslo/test_export.py::test_lander": 4,
    "lslo/test_export.py::test_lslo": 2,
    "lslo/test_folders.py::test_different_adapters_are_not_joined": 3,
    "lslo/test_folders.py::test_saved_and_loaded": 1,
    "lslo/test_folders.py::test_split_and_joined_by_language": 1,
    "lslo/test_folders.py::test_split_and_joined_by_pair": 1,
    "test_card.py::test_a_broken_card_is_left_alone": 5,
    "test_card.py::test_text_of_the_owner_is_kept": 12,
    "test_multimodal.py::test_detection_training_and_loading": 2,
    "test_multimodal.py::test_ffns_are_those_of_the_language_model": 7,
    "test_neuron_map_file.py::test_extreme_maps_give_adapters_that_save_and_load": 2,
    "test_neuron_map_file.py::test_header": 70,
    "test_neuron_map_file.py::test_tensor": 30,
    "test_snippets.py::test_the_code_of_an_adapter": 2,
    "translation/test_accumulation.py::test_the_step_of_one_batch": 3,
    "translation/test_batches.py::test_in_a_trainer": 20,
    "translation/test_batches.py::test_in_detection": 4,
    "translation/test_batches.py::test_in_evaluation": 4,
    "translation/test_batches.py::test_in_translation": 4,
    "translation/test_decoding.py::test_order_and_text_do_not_depend_on_the_batch_size": 2,
    "translation/test_direction.py::test_with_language_identification": 8,
    "translation/test_encoder_decoders.py::test_label_smoothing": 2,
    "translation/test_encoder_decoders.py::test_what_was_learned_is_translated": 0,
    "translation/test_limits.py::test_a_whole_translation": 3,
    "translation/test_limits.py::test_room_for_a_translation_of_one_byte_a_token": 100,
    "translation/test_lines.py::test_a_file_may_not_unpack_to_much_more_than_text_does": 1,
    "translation/test_rows.py::test_refused_before_the_first_step": 4,
    "translation/test_rows.py::test_streamed_ones_are_left_out_and_counted": 2,
    "translation/test_trainer.py::test_loss_falls_on_mixed_pairs": 1,
    "translation/test_trainer.py::test_resumed_training_is_bit_identical": 1,
    "tuner/test_adapters.py::test_different_adapters_are_not_joined": 4,
    "tuner/test_adapters.py::test_folders_load_through_peft": 4,
    "tuner/test_adapters.py::test_split_and_join": 4,
    "tuner/test_architectures.py::test_a_fresh_adapter_changes_nothing": 24,
    "tuner/test_architectures.py::test_detection_equals_autograd": 8,
    "tuner/test_architectures.py::test_each_pair_runs_through_its_own_weights": 20,
    "tuner/test_architectures.py::test_generate_with_mixed_pairs": 16,
    "tuner/test_architectures.py::test_gradient_checkpointing": 16,
    "tuner/test_architectures.py::test_merging_is_exact": 8,
    "tuner/test_architectures.py::test_save_and_load": 8,
    "tuner/test_architectures.py::test_training_changes_only_the_pairs_neurons": 8,
    "tuner/test_attention.py::test_roles_are_those_of_the_base": 12,
    "tuner/test_attention.py::test_saved_merged_and_unloaded": 5,
    "tuner/test_damaged.py::test_damaged_file": 6,
    "tuner/test_files.py::test_type_of_saved_deltas": 4,
    "tuner/test_generation.py::test_generate_with_mixed_pairs_equals_row_by_row": 8,
    "tuner/test_growth.py::test_a_mixed_batch_equals_each_sample_alone": 2,
    "tuner/test_growth.py::test_old_pairs_stay_bit_for_bit": 4,
    "tuner/test_growth.py::test_only_new_blocks_are_trained": 3,
    "tuner/test_growth.py::test_split_and_joined_again": 2,
    "tuner/test_identity.py::test_fresh_adapter_changes_nothing": 10,
    "tuner/test_identity.py::test_options_that_change_a_fresh_model_say_so_once": 4,
    "tuner/test_loading.py::test_damage_is_refused_before_anything_changes": 60,
    "tuner/test_loading.py::test_other_names_save_and_load": 3,
    "tuner/test_precision.py::test_autocast": 16,
    "tuner/test_quantized.py::test_adapters_go_from_float_to_quantized_bases_and_back": 3,
    "tuner/test_quantized.py::test_detection": 3,
    "tuner/test_quantized.py::test_ffns_compute_what_dequantized_ones_do": 12,
    "tuner/test_quantized.py::test_half_precision": 3,
    "tuner/test_quantized.py::test_merging_is_refused_before_anything_changes": 5,
    "tuner/test_quantized.py::test_training_leaves_the_base_quantized": 3,
    "tuner/test_registration.py::test_newer_peft_versions_are_told_once": 0,
    "tuner/test_routing.py::test_adapter_names_per_sample": 5,
    "tuner/test_selectivity.py::test_gradient_checkpointing_keeps_the_route": 8,
    "tuner/test_several_adapters.py::test_loading_a_second_adapter_reports_no_missing_keys": 4,
    "tuner/test_several_adapters.py::test_names_side_by_side": 1,
    "tuner/test_sharing.py::test_what_happens_to_one_adapter_leaves_the_others": 2,
    "tuner/test_stored.py::test_a_stored_adapter_is_read_and_written_as_it_was": 14,
}
"""By test, how many cases the quick suite keeps: some that do not follow the order of its parameters."""


def mark_repeats(items: Sequence[pytest.Item]) -> None:
    """Mark the other cases of the tests in `KEPT` as slow; those that are slow already do not count."""
    cases = defaultdict(list)
    for item in items:
        name = item.nodeid.partition("[")[0].removeprefix("tests/")
        if name in KEPT and item.get_closest_marker("slow") is None:
            cases[name].append(item)
    for name, found in cases.items():
        # an even step through a table of two parameters could leave out a value of one
        found.sort(key=lambda item: hashlib.sha256(item.nodeid.encode()).digest())
        for item in found[KEPT[name] :]:
            item.add_marker(pytest.mark.slow)
