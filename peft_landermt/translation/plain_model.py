"""What merged models and exported LoRA adapters tell programs that know nothing of this package: the prompt, and where
a translation ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from ..escaping import code_span, is_hub_id, markdown, published_name
from ..language_pair import TRANSLATION_PROMPT, LanguagePair, languages_of, parse_pair
from ..outputs import write_text
from ..prompt import Prompt, first_tokens
from ..routed.card import renew_card
from ..seq2seq import generation_start, is_encoder_decoder, language_code, source_text

_SOURCE = "{source}"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")

_METADATA = """---
library_name: transformers
pipeline_tag: translation
language: {languages}
tags: [lander, translation]{base_model}
---
"""

_BODY = """# {pair}: {base}, adapted

{made} The licence of the base holds.

{what}

```python
{load}
{code}
```
"""

_MERGED = """A plain model: the weights of the base with a [LANDeRMT](https://aclanthology.org/2024.acl-long.656)
adapter for {pair} written into them."""

_LORA = """A plain LoRA adapter for {pair}, of an adapter that was made with peft_landermt; PEFT alone loads it."""

_LOAD_MERGED = """from transformers import {kind}, AutoTokenizer

model = {kind}.from_pretrained("path/to/this/model")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/model")"""

_LOAD_LORA = """from peft import PeftModel
from transformers import {kind}, AutoTokenizer

base = {kind}.from_pretrained({base})
tokenizer = AutoTokenizer.from_pretrained({base})
model = PeftModel.from_pretrained(base, "path/to/this/adapter").eval()"""

_DECODER = """The prompt is the `prompt` below, with the source in place of `{{source}}`. The translation ends with
one of the tokens {ends}{line_end}; decoding is greedy.{begin}"""

_BEGIN = """ Programs that begin every text with {begin} themselves, as llama.cpp and vLLM do with prompts, take
the prompt without it."""

_DECODER_CODE = """prompt = {prompt}.replace("{{source}}", "Good morning.")
ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
output = model.generate(input_ids=ids, max_new_tokens=200{options})[0, ids.shape[1] :]
print(tokenizer.decode(output, skip_special_tokens=True).strip().partition("\\n")[0])"""

_ENCODER_CODE = """text = {prompt}.replace("{{source}}", "Good morning.")
ids = tokenizer(text, return_tensors="pt").input_ids
output = model.generate(input_ids=ids, max_new_tokens=200{options})[0]
print(tokenizer.decode(output, skip_special_tokens=True))"""


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
        settings.update(**generation_start(tokenizer, pair))
        if isinstance(getattr(tokenizer, "src_lang", None), str):
            tokenizer.src_lang, tokenizer.tgt_lang = (language_code(tokenizer, each) for each in pair)
        what = "The tokenizer and `generation_config.json` know the languages."
        code = _ENCODER_CODE.format(prompt=_quoted(source_text(tokenizer, _SOURCE, pair, template)), options="")
    else:
        prompt, ends = _prompt_and_ends(model, tokenizer, pair, template)
        settings.eos_token_id = ends
        chat = " The chat template stays that of the base."
        if not getattr(tokenizer, "chat_template", None):
            tokenizer.chat_template = _chat_template(prompt)
            chat = " The chat template makes it of a message that holds the source."
        what = _told(tokenizer, template, "in `generation_config.json`") + chat
        code = _DECODER_CODE.format(prompt=_quoted(prompt), options="")
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    base = _hub_id(model)
    metadata = _METADATA.format(
        languages=json.dumps(_languages(pair)), base_model=f"\nbase_model: {json.dumps(base)}" if base else ""
    )
    write_text(folder / "README.md", metadata + _body(model, pair, _MERGED, what, _LOAD_MERGED, code))


def save_lora_card(model: nn.Module, tokenizer: Any, folder: Path, language_pair: str, template: str | None) -> None:
    """Write a card, `README.md`, into the folder of a plain LoRA adapter: the prompt, and code that needs PEFT alone.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
        folder: The folder of the LoRA adapter.
        language_pair: Direction, such as `"en-de"`.
        template: The prompt template that the adapter was trained with; None for the usual one.

    Raises:
        CorpusError: The template does not fit the tokenizer.
        LanguagePairError: The pair is malformed, or has a language that the tokenizer does not know.
    """
    pair, load = parse_pair(language_pair), _LOAD_LORA
    if is_encoder_decoder(model):
        start: dict[str, Any] = {**generation_start(tokenizer, pair)}
        if isinstance(getattr(tokenizer, "src_lang", None), str):
            load += f"\ntokenizer.src_lang = {_quoted(language_code(tokenizer, pair.source))}"
        what = "Decoding is greedy; the code below has what the model must know of the languages."
        code, prompt = _ENCODER_CODE, source_text(tokenizer, _SOURCE, pair, template)
    else:
        prompt, ends = _prompt_and_ends(model, tokenizer, pair, template)
        start, what, code = {"eos_token_id": ends}, _told(tokenizer, template, f"{ends}"), _DECODER_CODE
    options = "".join(f", {name}={value}" for name, value in {**start, "do_sample": False}.items())
    code = code.format(prompt=_quoted(prompt), options=options)

    def add_metadata(card: Any) -> None:
        card.data.library_name, card.data.pipeline_tag, card.data.tags = "peft", "translation", ["lora", "translation"]
        card.data.language, card.data.base_model = _languages(pair), _hub_id(model)

    renew_card(folder / "README.md", _body(model, pair, _LORA, what, load, code), add_metadata)


def _prompt_and_ends(
    model: nn.Module, tokenizer: Any, pair: LanguagePair, template: str | None
) -> tuple[str, list[int]]:
    """Return the prompt of a decoder, begun as its tokenizer begins texts, and the tokens that end a translation."""
    read = Prompt.parse(template or TRANSLATION_PROMPT)
    prompt = read.fill(_SOURCE, pair) + read.separator.rstrip(" ")
    begin = _begin(tokenizer)
    configured: Any = model.generation_config.eos_token_id  # type: ignore[union-attr]
    ends = [read.end_token(tokenizer), *(configured if isinstance(configured, list) else [configured])]
    known = [end for end in dict.fromkeys(ends) if end is not None]
    return prompt if begin and prompt.startswith(begin) else begin + prompt, known


def _begin(tokenizer: Any) -> str:
    """Tell what the tokenizer puts before every text, as text."""
    return "".join(tokenizer.convert_ids_to_tokens(first_tokens(tokenizer)))


def _told(tokenizer: Any, template: str | None, ends: str) -> str:
    """Tell how a decoder is used; `ends` says where the tokens are that end a translation."""
    begin = _begin(tokenizer)
    line_end = "" if Prompt.parse(template or TRANSLATION_PROMPT).end else ", and at the latest at the end of its line"
    return _DECODER.format(ends=ends, line_end=line_end, begin=_BEGIN.format(begin=code_span(begin)) if begin else "")


def _quoted(text: str) -> str:
    """Write text as a string of Python, or of Jinja."""
    return json.dumps(text, ensure_ascii=False)


def _chat_template(prompt: str) -> str:
    """Make a Jinja template that gives a prompt, with the last message in place of `{source}`."""
    return "{{ " + " + messages[-1]['content'] + ".join(map(_quoted, prompt.split(_SOURCE))) + " }}"


def _body(model: nn.Module, pair: LanguagePair, made: str, what: str, load: str, code: str) -> str:
    """Fill the text of a card."""
    base = str(getattr(model, "name_or_path", "") or "")
    kind = "AutoModelForSeq2SeqLM" if is_encoder_decoder(model) else "AutoModelForCausalLM"
    return _BODY.format(
        pair=markdown(str(pair)),
        base=markdown(published_name(base)) or "the base model",
        made=made.format(pair=markdown(str(pair))),
        load=load.format(kind=kind, base=_quoted(_hub_id(model) or "path/to/the/base/model")),
        what=what,
        code=code,
    )


def _hub_id(model: nn.Module) -> str | None:
    name = str(getattr(model, "name_or_path", "") or "")
    return name if is_hub_id(name) else None


def _languages(pair: LanguagePair) -> list[str]:
    return sorted({language.split("_")[0] for language in languages_of([pair])})
