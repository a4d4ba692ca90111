"""A base with fewer tokens: the same tokens of known words, shorter ones of others, the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ..conftest import build_model
from .helpers import run_script, write_packed

KNOWN = ["the old house", "das alte Haus"]
UNKNOWN = "hippopotamus"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose tokenizer has merged words of which the corpus holds some."""
    root = tmp_path_factory.mktemp("trim")
    tokens = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokens.pre_tokenizer = pre_tokenizers.Metaspace()
    tokens.decoder = decoders.Metaspace()
    special = ["<pad>", "<eos>", "<unk>", "unused", "<bos>"]
    tokens.train_from_iterator([*KNOWN, UNKNOWN], trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    tokens.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 4)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", bos_token="<bos>"
    )
    model = build_model("gemma3")
    model.resize_token_embeddings(len(tokenizer))
    model.config.bos_token_id, model.config.eos_token_id = 4, 1
    model.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    write_packed(root / "train" / "en-de.tsv.gz", ["\t".join([*KNOWN, "demo"])])
    for language, sentence in zip(("en", "de"), KNOWN, strict=True):
        write_packed(root / "flores200" / f"devtest.{language}.txt.gz", [sentence, UNKNOWN])
    return root


def test_what_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(folder), "--model", str(folder / "base"), "--output", str(folder / "small")]
    run_script(monkeypatch, "trim_vocabulary.py", *options)
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("largest change of a logit 0")

    old, new = (AutoTokenizer.from_pretrained(folder / name) for name in ("base", "small"))
    for text in KNOWN:
        assert new.tokenize(text) == old.tokenize(text)
    lengths = [len(old(text)["input_ids"]) for text in KNOWN]
    assert f"{1 - 2 / (sum(lengths) + 2 * 2):.1%} of the tokens" in printed, "one unknown word in each language"
    assert len(old.tokenize(UNKNOWN)) == 1 < len(new.tokenize(UNKNOWN))
    assert new.decode(new(UNKNOWN)["input_ids"], skip_special_tokens=True).strip() == UNKNOWN
    assert new("")["input_ids"] == [new.bos_token_id] == [3], "an unused token before it is gone"

    models_ = [AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in ("base", "small")]
    assert models_[1].config.vocab_size == len(new) < len(old)
    assert (models_[1].config.bos_token_id, models_[1].config.eos_token_id) == (3, 1)
    assert models_[1].get_input_embeddings().weight is models_[1].get_output_embeddings().weight
    kept = old.convert_tokens_to_ids(new.convert_ids_to_tokens(range(len(new))))
    with torch.no_grad():
        before, after = (
            model(input_ids=torch.tensor([tokenizer(KNOWN[0])["input_ids"]])).logits
            for model, tokenizer in zip(models_, (old, new), strict=True)
        )
    torch.testing.assert_close(after, before[..., kept])
