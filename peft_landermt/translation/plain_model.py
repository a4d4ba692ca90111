"""What a merged model tells programs that know nothing of this package: its prompt, and where a translation ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from ..escaping import is_hub_id, markdown, published_name
from ..language_pair import TRANSLATION_PROMPT, LanguagePair, languages_of, parse_pair
from ..outputs import write_text
from ..prompt import Prompt, first_tokens
from ..seq2seq import generation_start, is_encoder_decoder, language_code, source_text

_SOURCE = "{source}"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")

_CARD = """---
library_name: transformers
pipeline_tag: translation
language: {languages}
tags: [lander, translation]{base_model}
---
# {pair}: {base}, adapted

A plain model: the weights of the base with a [LANDeRMT](https://aclanthology.org/2024.acl-long.656) adapter for {pair}
written into them. The licence of the base holds.

{what}

```python
from transformers import {kind}, AutoTokenizer

model = {kind}.from_pretrained("path/to/this/model")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/model")
{code}
```
"""

_DECODER = """The prompt is the `prompt` below, with the source in place of `{source}`. The translation ends with
one of the tokens in `generation_config.json`{line_end}; decoding is greedy. {chat}"""

_DECODER_CODE = """prompt = {prompt}.replace("{{source}}", "Good morning.")
ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
output = model.generate(ids, max_new_tokens=200)[0, ids.shape[1] :]
print(tokenizer.decode(output, skip_special_tokens=True).strip().partition("\\n")[0])"""

_ENCODER_CODE = """text = {prompt}.replace("{{source}}", "Good morning.")
ids = tokenizer(text, return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=200)[0], skip_special_tokens=True))"""


def save_plain_model(model: nn.Module, tokenizer: Any, folder: Path, language_pair: str, template: str | None) -> None:
    """Save a model that holds one direction, its tokenizer, and what others need to use them as this package does.

    The generation config stops where a translation ends and does not sample. A tokenizer without a chat template gets
    one, which takes a message for the source and gives the prompt; one with language codes speaks those of the pair.
    A card, `README.md`, has the prompt and code.

    Args:
        model: The merged model.
        tokenizer: Its tokenizer; altered as told.
        folder: Where to.
        language_pair: Direction, such as `"en-de"`.
        template: The prompt template that the adapter was trained with; None for the usual one.

    Raises:
        CorpusError: The template does not fit the tokenizer.
        LanguagePairError: The pair is malformed, or has a language that the tokenizer does not know.
    """
    pair = parse_pair(language_pair)
    settings: Any = model.generation_config
    settings.do_sample = False
    for name in _SAMPLING:
        setattr(settings, name, None)
    if is_encoder_decoder(model):
        prompt = source_text(tokenizer, _SOURCE, pair, template)
        settings.update(**generation_start(tokenizer, pair))
        if isinstance(getattr(tokenizer, "src_lang", None), str):
            tokenizer.src_lang, tokenizer.tgt_lang = (language_code(tokenizer, each) for each in pair)
        what, code = "The tokenizer and `generation_config.json` know the languages.", _ENCODER_CODE
    else:
        read = Prompt.parse(template or TRANSLATION_PROMPT)
        prompt = _begun(tokenizer, read.fill(_SOURCE, pair) + read.separator.rstrip(" "))
        ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        settings.eos_token_id = list(
            dict.fromkeys([read.end_token(tokenizer), *(end for end in ends if end is not None)])
        )
        chat = "The chat template stays that of the base."
        if not getattr(tokenizer, "chat_template", None):
            tokenizer.chat_template = _chat_template(prompt)
            chat = "The chat template makes it of a message that holds the source."
        line_end = "" if read.end else ", and at the latest at the end of its line"
        what, code = _DECODER.replace("{line_end}", line_end).replace("{chat}", chat), _DECODER_CODE
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    write_text(
        folder / "README.md", _card(model, pair, what, code.format(prompt=json.dumps(prompt, ensure_ascii=False)))
    )


def _begun(tokenizer: Any, prompt: str) -> str:
    """Put before a prompt what the tokenizer begins a text with, unless it is there."""
    begin = "".join(tokenizer.convert_ids_to_tokens(first_tokens(tokenizer)))
    return prompt if begin and prompt.startswith(begin) else begin + prompt


def _chat_template(prompt: str) -> str:
    """Make a Jinja template that gives a prompt, with the last message in place of `{source}`."""
    parts = [json.dumps(part, ensure_ascii=False) for part in prompt.split(_SOURCE)]
    return "{{ " + " + messages[-1]['content'] + ".join(parts) + " }}"


def _card(model: nn.Module, pair: LanguagePair, what: str, code: str) -> str:
    base = str(getattr(model, "name_or_path", "") or "")
    return _CARD.format(
        languages=json.dumps(sorted({language.split("_")[0] for language in languages_of([pair])})),
        base_model=f"\nbase_model: {json.dumps(base)}" if is_hub_id(base) else "",
        pair=markdown(str(pair)),
        base=markdown(published_name(base)) or "the base model",
        what=what,
        kind="AutoModelForSeq2SeqLM" if is_encoder_decoder(model) else "AutoModelForCausalLM",
        code=code,
    )
