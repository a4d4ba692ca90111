"""Encoder-decoders from rows to translations: the collator, training, decoding that starts in the right language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)

from peft_landermt import (
    LanderConfig,
    LanderTrainer,
    TranslationCollator,
    detect_neurons,
    evaluate_translation,
    translate,
)
from peft_landermt.errors import CorpusError

from ..seq2seq_tokenizers import nllb_tokenizer, unigram_tokenizer

_VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:"]
ROWS = [
    {"source": "tea", "target": "Tee", "language_pair": "en-de"},
    {"source": "house", "target": "Haus", "language_pair": "en-de"},
    {"source": "Tee", "target": "tea", "language_pair": "de-en"},
    {"source": "Haus", "target": "house", "language_pair": "de-en"},
]
PAIRS = ["en-de", "de-en"]
BY_PAIR = {pair: [row for row in ROWS if row["language_pair"] == pair] for pair in PAIRS}


def build(kind: str) -> tuple[PreTrainedModel, Any]:
    """A random model of two layers in each stack, and a tokenizer of the kind that goes with it."""
    torch.manual_seed(0)
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    if kind == "t5":
        tokenizer = unigram_tokenizer("T5Tokenizer", _VOCABULARY, extra_ids=0)
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
        config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=1, **sizes, **ids)
        return T5ForConditionalGeneration(config), tokenizer
    bart = {f"{stack}_{key}": n for stack in ("encoder", "decoder") for key, n in (("layers", 2), ("ffn_dim", 64))}
    bart |= {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "init_std": 0.2}
    bart |= {"dropout": 0.0, "attention_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
    if kind == "nllb":
        tokenizer = nllb_tokenizer(_VOCABULARY)
        config = M2M100Config(vocab_size=len(tokenizer), decoder_start_token_id=2, **bart, **ids)
        return M2M100ForConditionalGeneration(config), tokenizer
    tokenizer = unigram_tokenizer("MBartTokenizer", _VOCABULARY)
    return MBartForConditionalGeneration(MBartConfig(vocab_size=len(tokenizer), **bart, **ids)), tokenizer


def train(model: Any, tokenizer: Any, folder: Path, steps: int, lr: float) -> float:
    """The last loss."""
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        learning_rate=lr,
        per_device_train_batch_size=4,
        logging_steps=steps,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = LanderTrainer(model=model, args=arguments, train_dataset=ROWS, processing_class=tokenizer)
    assert isinstance(trainer.data_collator, TranslationCollator) and trainer.data_collator.encoder_decoder
    trainer.train()
    return trainer.state.log_history[0]["loss"]


@pytest.mark.parametrize("kind", ["nllb", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("t5", "mbart"))])
def test_what_was_learned_is_translated(kind: str, tmp_path: Path) -> None:
    """A model that was trained to know four words gives them back, in either direction and in any order."""
    model, tokenizer = build(kind)
    train(model, tokenizer, tmp_path, 120, 1e-2)
    for pair, rows in BY_PAIR.items():
        sources, targets = ([row[side] for row in rows] for side in ("source", "target"))
        assert translate(model, tokenizer, sources, pair) == targets
        assert translate(model, tokenizer, sources[::-1], pair, batch_size=1, num_beams=2) == targets[::-1]
        scores = evaluate_translation(model, tokenizer, sources, targets, pair)
        assert (scores.chrf, scores.num_empty, scores.num_runaway) == (100.0, 0, 0)
    assert translate(model, tokenizer, ["tea", ""], "en-de", max_new_tokens=3)[1] == ""
    mixed = ROWS[::2] + ROWS[1::2]
    sources, targets, pairs = ([row[key] for row in mixed] for key in ("source", "target", "language_pair"))
    assert translate(model, tokenizer, sources, pairs) == targets


@pytest.mark.parametrize("kind", ["nllb", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("t5", "mbart"))])
def test_an_adapter_from_detection_to_translation(kind: str, tmp_path: Path) -> None:
    model, tokenizer = build(kind)
    sentences = {"en": ["tea", "house"], "de": ["Tee", "Haus"]}
    neuron_map = detect_neurons(model, tokenizer, sentences, PAIRS, num_layers=1, progress=False)
    assert all(len(neuron_map.layers(pair)) == 2 for pair in PAIRS), "one layer of each stack"
    adapted = get_peft_model(
        model, LanderConfig(task_type="SEQ_2_SEQ_LM", neuron_map=neuron_map, language_pairs=PAIRS)
    )
    before = train(adapted, tokenizer, tmp_path, 1, 1e-9)
    after = train(adapted, tokenizer, tmp_path, 60, 1e-2)
    assert after < before
    adapted.save_pretrained(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(build(kind)[0], str(tmp_path / "adapter"))
    for pair in PAIRS:
        sources = [row["source"] for row in BY_PAIR[pair]]
        assert translate(loaded, tokenizer, sources, pair) == translate(adapted, tokenizer, sources, pair)


def test_collator() -> None:
    """Source and translation have lengths of their own; both padded on the right."""
    _, tokenizer = build("nllb")
    batch = TranslationCollator(tokenizer, encoder_decoder=True)(ROWS[:2])
    code = tokenizer.convert_tokens_to_ids
    en, de, end, pad = code(["eng_Latn", "deu_Latn", "</s>", "<pad>"])
    assert batch["input_ids"].tolist() == [
        [en, *code(list("▁tea")), end, pad, pad],
        [en, *code(list("▁house")), end],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0] * 2, [1] * 8]
    assert batch["labels"].tolist() == [
        [de, *code(list("▁Tee")), end, -100],
        [de, *code(list("▁Haus")), end],
    ]
    assert batch["language_pairs"] == ["en-de", "en-de"]


def test_collator_with_templates() -> None:
    _, tokenizer = build("t5")
    collator = TranslationCollator(tokenizer, templates=["{target_language}: {source}"], encoder_decoder=True)
    source, target = collator.encode(ROWS[0])
    assert source == tokenizer("German: tea")["input_ids"]
    assert target == tokenizer(text_target="Tee")["input_ids"]
    with pytest.raises(CorpusError, match=r"templates=\[\]"):
        TranslationCollator(tokenizer, templates=[])


@pytest.mark.parametrize("kind", ["t5", "nllb"])
def test_a_model_made_by_the_trainer(kind: str, tmp_path: Path) -> None:
    """The encoder reads the source alone, and labels are the translation."""
    _, tokenizer = build(kind)
    trainer = LanderTrainer(
        model_init=lambda: build(kind)[0],
        args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]),
        train_dataset=ROWS,
        processing_class=tokenizer,
    )
    expected = TranslationCollator(tokenizer, seed=42, encoder_decoder=True)(ROWS)
    found = trainer.data_collator(ROWS)
    assert torch.equal(found["input_ids"], expected["input_ids"]) and torch.equal(found["labels"], expected["labels"])


@pytest.mark.parametrize("kind", ["t5", "nllb"])
@pytest.mark.parametrize("adapted", [False, True])
def test_label_smoothing(kind: str, adapted: bool, tmp_path: Path) -> None:
    """The smoothed loss of transformers, with the decoder inputs that the model makes of labels."""
    model, tokenizer = build(kind)
    if adapted:
        model = get_peft_model(model, LanderConfig(task_type="SEQ_2_SEQ_LM"))
    trainer = LanderTrainer(
        model=model,
        args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], label_smoothing_factor=0.1, max_steps=2),
        train_dataset=ROWS,
        processing_class=tokenizer,
    )
    batch = trainer.data_collator(ROWS)
    inputs = {name: value for name, value in batch.items() if name != "language_pairs"}
    model.eval()
    with torch.no_grad():
        logits = model(**inputs).logits
        found = trainer.compute_loss(model, batch)
    log_probabilities = logits.log_softmax(-1)[batch["labels"] != -100]
    targets = batch["labels"][batch["labels"] != -100]
    likely = -log_probabilities.gather(1, targets[:, None]).mean()
    torch.testing.assert_close(found, 0.9 * likely - 0.1 * log_probabilities.mean())
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("kind", ["t5", "nllb"])
def test_a_loss_of_the_user(kind: str, tmp_path: Path) -> None:
    model, tokenizer = build(kind)
    seen: list[tuple[int, ...]] = []

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        seen.append(tuple(outputs.logits.shape[:2]))
        assert seen[-1] == tuple(labels.shape)
        return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())

    trainer = LanderTrainer(
        model=model,
        args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], max_steps=1),
        train_dataset=ROWS,
        processing_class=tokenizer,
        compute_loss_func=loss,
    )
    trainer.train()
    assert seen
