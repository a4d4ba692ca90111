"""Code in cards is run as it stands, for every kind of base, with paths in place of those that it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from peft import PeftModel
from transformers import (
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from peft_landermt import translate
from peft_landermt.cache import DEMO_NAME
from peft_landermt.cli import main
from peft_landermt.demo import load_base

from .conftest import build_model
from .prompt_tokenizers import CHATS, byte_tokenizer, piece_tokenizer
from .seq2seq_tokenizers import unigram_tokenizer
from .tuner.helpers import adapt

ANSWER = "Good morning."
pytestmark = [
    pytest.mark.usefixtures("usual_lengths"),
    pytest.mark.filterwarnings("ignore:.*found no end and were cut:UserWarning"),
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LANDERMT_CACHE", str(tmp_path / "cache"))


def decoder(folder: Path, tokenizer: Any = None) -> str:
    tokenizer = tokenizer or byte_tokenizer()
    build_model("llama", vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def encoder_decoder(folder: Path) -> str:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:."]
    tokenizer = unigram_tokenizer("T5Tokenizer", tokens, extra_ids=0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = T5Config(
        vocab_size=len(tokenizer), decoder_start_token_id=1, pad_token_id=1, bos_token_id=0, eos_token_id=2, **sizes
    )
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def demo(folder: Path) -> str:
    """In the cache, as `load_demo_base` leaves it."""
    return decoder(folder.parent / "cache" / DEMO_NAME)


def gguf(folder: Path) -> str:
    """A random Llama of two layers, by the names and sizes of the GGUF specification."""
    writer_module = pytest.importorskip("gguf")
    folder.mkdir(parents=True)
    path = folder / "tiny.gguf"
    writer = writer_module.GGUFWriter(str(path), "llama")
    draw, width, wide = np.random.default_rng(0), 32, 64
    characters = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *characters, "▁", *"abcdefghijklmnopqrstuvwxyz"]
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * 27])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {"token_embd": (len(tokens), width), "output": (len(tokens), width)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.attn_{part}": (width, width) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.ffn_{part}": (wide, width) for part in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down"] = (width, wide)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(0, 0.2, shape).astype(np.float32))
    for name in ("output_norm", *(f"blk.{layer}.{norm}_norm" for layer in range(2) for norm in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def adapter_of(base: str, folder: Path, **options: Any) -> Path:
    model, _ = load_base(base)
    kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    adapted = adapt(model, language_pairs=["en-de"], task_type=kind, **options)
    adapted.save_pretrained(str(folder))
    return folder


def printed(card: Path, capsys: pytest.CaptureFixture[str], **paths: str) -> str:
    """What the Python block of a card prints."""
    (code,) = [
        token.content for token in MarkdownIt().parse(card.read_text(encoding="utf-8")) if token.info == "python"
    ]
    for asked, path in paths.items():
        assert asked.replace("_", "/") in code, "the card asks for no other paths"
        code = code.replace(f'"{asked.replace("_", "/")}"', repr(path))
    assert "path/to" not in code
    capsys.readouterr()
    exec(compile(code, str(card), "exec"), {})
    return capsys.readouterr().out.rstrip("\n")


KINDS = {
    "a decoder": (decoder, "path_to_the_base_model"),
    "an encoder-decoder": (encoder_decoder, "path_to_the_base_model"),
    "the demo base": (demo, None),
    "a GGUF file": (gguf, "path_to_the_base_model.gguf"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_an_adapter(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, asked = KINDS[kind]
    base = make(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    paths = {"path_to_this_adapter": str(adapter), **({asked: base} if asked else {})}
    out = printed(adapter / "README.md", capsys, **paths)
    model, tokenizer = load_base(base)
    expected = translate(PeftModel.from_pretrained(model, str(adapter)), tokenizer, ["..."], "en-de")
    assert out == str(expected)
    text = (adapter / "README.md").read_text(encoding="utf-8")
    assert "| Versions | peft " in text and "Prompt: `" in text and "licence" in text


def test_a_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = gguf(tmp_path / "base")
    first, _ = load_base(base)
    monkeypatch.setattr("peft_landermt.demo.base.load_gguf", lambda *_: pytest.fail("converted again"))
    second, tokenizer = load_base(base)
    assert first.name_or_path == second.name_or_path == base
    assert all(value.equal(second.state_dict()[key]) for key, value in first.state_dict().items())
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


PROMPTS = {
    "the usual one": (byte_tokenizer, None),
    "pieces of words": (piece_tokenizer, None),
    "no first token": (lambda: byte_tokenizer(first=False), "{source_language}: {source}\n{target_language}:"),
    "a last token": (lambda: byte_tokenizer(last=True), "»{source}« {{in}} {target_language}\n{target}"),
    "a chat": (lambda: _chatting("ChatML (Qwen, Tower, EuroLLM)"), "chat"),
    "a chat that begins with a token": (lambda: _chatting("Llama 3"), "chat"),
}


def _chatting(name: str) -> PreTrainedTokenizerFast:
    tokens, template, *_ = CHATS[name]
    tokenizer = byte_tokenizer(added=tokens)
    tokenizer.chat_template = template
    return tokenizer


with_every_prompt = pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind in ("the usual one", "a chat") else pytest.mark.slow) for kind in PROMPTS],
)


@with_every_prompt
def test_the_code_of_a_merged_model(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It translates as this package does, by transformers alone; so does the chat template that it is given."""
    make, template = PROMPTS[kind]
    tokenizer = make()
    base = decoder(tmp_path / "base", tokenizer)
    if template == "chat":
        from peft_landermt import chat_prompt

        template = chat_prompt(tokenizer)
    adapter = adapter_of(base, tmp_path / "adapter", prompt=template)
    merged = tmp_path / "merged"
    command = ["merge", "--model", base, "--adapter", str(adapter), "--pair", "en-de", "--device", "cpu"]
    assert main([*command, "--dtype", "float32", "--output", str(merged)]) == 0
    out = printed(merged / "README.md", capsys, path_to_this_model=str(merged))
    model, own = load_base(str(merged))
    (expected,) = translate(model, make(), [ANSWER], "en-de", template=template, max_new_tokens=200)
    assert out == expected
    settings = model.generation_config
    assert tokenizer.eos_token_id in settings.eos_token_id and not settings.do_sample
    if template is None:
        ids = own.apply_chat_template([{"role": "user", "content": ANSWER}], return_tensors="pt", return_dict=True)
        told = model.generate(ids["input_ids"], max_new_tokens=200)[0, ids["input_ids"].shape[1] :]
        assert own.decode(told, skip_special_tokens=True).strip().partition("\n")[0] == expected
    metadata = yaml.safe_load((merged / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert metadata["language"] == ["de", "en"] and metadata["pipeline_tag"] == "translation"


def test_the_code_of_a_merged_encoder_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = encoder_decoder(tmp_path / "base")
    adapter, merged = adapter_of(base, tmp_path / "adapter"), tmp_path / "merged"
    assert main(["merge", "--model", base, "--adapter", str(adapter), "--output", str(merged), "--device", "cpu"]) == 0
    out = printed(merged / "README.md", capsys, path_to_this_model=str(merged))
    model, tokenizer = load_base(str(merged))
    assert [out.strip()] == translate(model, tokenizer, [ANSWER], "en-de", max_new_tokens=200)


def exported(base: str, folder: Path, prompt: str | None = None) -> tuple[Path, Any]:
    """The folder of a LoRA adapter, and the model that it was made of."""
    adapter = adapter_of(base, folder / "adapter", prompt=prompt, general_rank=4, specific_rank=2)
    command = ["export", "--model", base, "--adapter", str(adapter), "--output", str(folder / "lora")]
    assert main([*command, "--device", "cpu"]) == 0
    return folder / "lora", PeftModel.from_pretrained(load_base(base)[0], str(adapter))


@with_every_prompt
def test_the_code_of_an_exported_adapter(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It translates as this package does, by PEFT alone; another pair's card takes its place, the owner's text not."""
    make, template = PROMPTS[kind]
    tokenizer = make()
    if template == "chat":
        from peft_landermt import chat_prompt

        template = chat_prompt(tokenizer)
    base = decoder(tmp_path / "base", tokenizer)
    folder, model = exported(base, tmp_path, template)
    out = printed(folder / "README.md", capsys, path_to_the_base_model=base, path_to_this_adapter=str(folder))
    assert [out] == translate(model, make(), [ANSWER], "en-de", max_new_tokens=200)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---\n")[1])["tags"] == ["lora", "translation"]
    (folder / "README.md").write_text(f"{card}\nBy hand.\n", encoding="utf-8")
    again = ["export", "--model", base, "--adapter", str(tmp_path / "adapter"), "--output", str(folder)]
    assert main([*again, "--device", "cpu", "--overwrite"]) == 0
    assert (folder / "README.md").read_text(encoding="utf-8").count("By hand.") == 1


def test_the_code_of_an_exported_encoder_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = encoder_decoder(tmp_path / "base")
    folder, model = exported(base, tmp_path)
    out = printed(folder / "README.md", capsys, path_to_the_base_model=base, path_to_this_adapter=str(folder))
    assert [out.strip()] == translate(model, load_base(base)[1], [ANSWER], "en-de", max_new_tokens=200)
