"""Keep of a base's vocabulary only the tokens of the training corpora, so that experiments take less time.

    python benchmarks/trim_vocabulary.py --data DIR --output base        # then: run.py --model base

Gemma 3 270M spends two thirds of its arithmetic on an output layer of 262,144 tokens, most of them of languages that
no experiment looks at. What is kept are the tokens that occur in the training sentences (never those of a test set)
and in the prompt templates, those that lead to them by the tokenizer's merges, single characters of ASCII and bytes.
Every text whose tokens are all kept is tokenized as before, and logits of kept tokens are what they were; the script
compares both. Words with a token that is not kept become more and shorter tokens.
"""

from __future__ import annotations

import argparse
import json
import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from common import languages_of, read_cells, read_flores
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from peft_landermt.demo import load_base
from peft_landermt.translation import TEMPLATES, build_prompt


def corpora(data: Path) -> dict[str, Path]:
    """Training corpora, by pair."""
    return {path.name.partition(".")[0]: path for path in sorted((data / "train").glob("*.tsv.gz"))}


def read_sentences(data: Path) -> list[str]:
    """Prompts of all directions, and all training sentences, at the start of a text and after a blank."""
    sentences = []
    for pair, path in corpora(data).items():
        for direction in (pair, "-".join(reversed(pair.split("-")))):
            sentences += [build_prompt("", direction, template) for template in TEMPLATES]
        for row in read_cells(path):
            for sentence in row[:2]:
                sentences += [sentence, f" {sentence}"]
    return sentences


def used_tokens(tokenizer: Any, sentences: list[str], batch: int = 10_000) -> Counter[int]:
    """How often each token occurs."""
    found: Counter[int] = Counter()
    for start in range(0, len(sentences), batch):
        for encoding in tokenizer.backend_tokenizer.encode_batch_fast(sentences[start : start + batch]):
            found.update(encoding.ids)
    return found


def with_ancestors(tokens: Iterable[str], merges: list[list[str]]) -> set[str]:
    """Tokens, and all that byte-pair encoding makes on the way to them from single characters."""
    ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
    found: set[str] = set()
    for token in tokens:
        pieces = list(token)
        found.update(pieces)
        while len(pieces) > 1:
            best = min(range(len(pieces) - 1), key=lambda i: ranks.get((pieces[i], pieces[i + 1]), len(ranks)))
            if (pieces[best], pieces[best + 1]) not in ranks:
                break  # not made by merges: a special token or a byte
            pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
            found.add(pieces[best])
    return found.union(tokens)


def trim_tokenizer(tokenizer: Any, sentences: list[str]) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """The smaller tokenizer, and the old id of each of its tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    vocabulary: dict[str, int] = model["vocab"]
    used = tokenizer.convert_ids_to_tokens(sorted(used_tokens(tokenizer, sentences)))
    kept = with_ancestors(used, model["merges"])
    kept |= {*tokenizer.all_special_tokens, *string.printable, *(f"<0x{byte:02X}>" for byte in range(256))}
    old_ids = sorted(vocabulary[token] for token in kept if token in vocabulary)
    new_ids = {old: new for new, old in enumerate(old_ids)}
    model["vocab"] = {token: new_ids[old] for token, old in vocabulary.items() if old in new_ids}
    model["merges"] = [
        [left, right] for left, right in model["merges"] if {left, right, left + right} <= model["vocab"].keys()
    ]
    state["added_tokens"] = [
        {**token, "id": new_ids[token["id"]]} for token in state["added_tokens"] if token["id"] in new_ids
    ]
    for token in (state["post_processor"] or {}).get("special_tokens", {}).values():
        token["ids"] = [new_ids[old] for old in token["ids"]]
    smaller = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), **tokenizer.special_tokens_map
    )
    return smaller, old_ids


def trim_model(model: Any, old_ids: list[int]) -> Any:
    """Change a model in place: only these tokens are left."""
    index = torch.tensor(old_ids, device=model.device)
    for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
        layer.weight = torch.nn.Parameter(layer.weight.detach()[index].clone())
    model.tie_weights()
    model.resize_token_embeddings(len(old_ids))  # the sizes that config and layers note
    for config in (model.config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
            if isinstance(old := getattr(config, name, None), int):
                setattr(config, name, old_ids.index(old))
    return model


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and flores200/")
    parser.add_argument("--model", default="demo", help="'demo', a GGUF file, a folder or a Hub id")
    parser.add_argument("--output", type=Path, required=True, help="folder for the smaller base")
    args = parser.parse_args()

    model, tokenizer = load_base(args.model)
    sentences = read_sentences(args.data)
    smaller, old_ids = trim_tokenizer(tokenizer, sentences)
    before = [tokenizer(text)["input_ids"] for text in sentences[-2000:]]
    logits = model(input_ids=torch.tensor(before[:1])).logits[..., old_ids]
    unseen = read_flores(args.data, 1, 200, languages_of(corpora(args.data)))
    met = used_tokens(tokenizer, [text for texts in unseen.values() for text in texts])
    covered = sum(met[token] for token in old_ids) / met.total()
    sizes = (len(tokenizer), sum(p.numel() for p in model.parameters()))
    trim_model(model, old_ids).save_pretrained(args.output)
    smaller.save_pretrained(args.output)

    model, smaller = AutoModelForCausalLM.from_pretrained(args.output), AutoTokenizer.from_pretrained(args.output)
    after = [smaller(text)["input_ids"] for text in sentences[-2000:]]
    if [[old_ids[token] for token in ids] for ids in after] != before:
        raise RuntimeError("the smaller tokenizer does not tokenize the training corpora as the base's does.")
    change = float((model(input_ids=torch.tensor(after[:1])).logits - logits).abs().max())
    print(f"tokens {sizes[0]} -> {len(smaller)}, parameters {sizes[1]} -> {model.num_parameters()}")
    print(f"{covered:.1%} of the tokens of FLORES lines 1 to 200 are kept")
    print(f"2000 sentences tokenized as before; largest change of a logit {change:g}")


if __name__ == "__main__":
    main()
