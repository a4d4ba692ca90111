"""Tests whose cases repeat a form that others have too; most of these run with the slow tests (`make slow`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest

KEPT = {
    "benchmarks/test_runs.py::test_language_specific_lora": 1,
    "cli/test_overwrite.py::test_a_full_disk": 3,
    "cli/test_overwrite.py::test_resume_takes_the_newest_whole_checkpoint": 3,
    "cli/test_overwrite.py::test_what_is_there_is_kept": 3,
    "detection/test_awareness.py::test_equals_plain_autograd": 4,
    "lslo/test_export.py::test_lslo": 2,
    "lslo/test_folders.py::test_different_adapters_are_not_joined": 3,
    "lslo/test_folders.py::test_saved_and_loaded": 1,
    "lslo/test_folders.py::test_split_and_joined_by_language": 1,
    "lslo/test_folders.py::test_split_and_joined_by_pair": 1,
    "test_multimodal.py::test_detection_training_and_loading": 2,
    "test_neuron_map_file.py::test_extreme_maps_give_adapters_that_save_and_load": 2,
    "translation/test_accumulation.py::test_the_step_of_one_batch": 3,
    "translation/test_encoder_decoders.py::test_label_smoothing": 2,
    "translation/test_limits.py::test_a_whole_translation": 5,
    "translation/test_limits.py::test_room_for_a_translation_of_one_byte_a_token": 100,
    "translation/test_rows.py::test_refused_before_the_first_step": 4,
    "translation/test_rows.py::test_streamed_ones_are_left_out_and_counted": 2,
    "translation/test_trainer.py::test_loss_falls_on_mixed_pairs": 1,
    "translation/test_trainer.py::test_resumed_training_is_bit_identical": 1,
    "tuner/test_attention.py::test_roles_are_those_of_the_base": 12,
    "tuner/test_attention.py::test_saved_merged_and_unloaded": 5,
    "tuner/test_growth.py::test_a_mixed_batch_equals_each_sample_alone": 2,
    "tuner/test_growth.py::test_old_pairs_stay_bit_for_bit": 6,
    "tuner/test_growth.py::test_only_new_blocks_are_trained": 3,
    "tuner/test_growth.py::test_split_and_joined_again": 2,
    "tuner/test_registration.py::test_newer_peft_versions_are_told_once": 1,
}
"""By test, how many cases the quick suite keeps, from all along the table."""


def mark_repeats(items: Sequence[pytest.Item]) -> None:
    """Mark the other cases of the tests in `KEPT` as slow; those that are slow already do not count."""
    cases = defaultdict(list)
    for item in items:
        name = item.nodeid.partition("[")[0].removeprefix("tests/")
        if name in KEPT and item.get_closest_marker("slow") is None:
            cases[name].append(item)
    for name, found in cases.items():
        step = -(-len(found) // KEPT[name])
        for index, item in enumerate(found):
            if index % step:
                item.add_marker(pytest.mark.slow)
