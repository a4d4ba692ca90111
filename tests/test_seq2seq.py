"""How tokenizers of encoder-decoders are told the languages: the real classes, with tiny vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import M2M100Tokenizer, MarianTokenizer, PreTrainedTokenizerFast

from peft_landermt.errors import CorpusError, LanguagePairError
from peft_landermt.language_pair import LanguagePair
from peft_landermt.padding import IGNORED
from peft_landermt.seq2seq import encode_labels, encode_source, encode_target, generation_start, language_code

from .conftest import SENTENCES
from .seq2seq_tokenizers import nllb_tokenizer, unigram_tokenizer

EN_DE = LanguagePair("en", "de")
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
_LETTERS = [*_SPECIAL, "▁", *"abcdefghijklmnopqrstuvwxyz<>2"]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small SentencePiece model."""
    folder = tmp_path_factory.mktemp("pieces")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for texts in SENTENCES.values() for text in texts] * 4),
        model_prefix=str(folder / "spm"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder


def vocabulary(pieces: Path, *tokens: str) -> str:
    """A vocabulary file with every piece and the given tokens."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "spm.model"))
    known = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    entries = [*_SPECIAL, *(piece for piece in known if piece not in _SPECIAL), *tokens]
    path = pieces / f"vocab-{'-'.join(token.strip('<>') for token in tokens)}.json"
    path.write_text(json.dumps({token: index for index, token in enumerate(entries)}), encoding="utf-8")
    return str(path)


def nllb() -> Any:
    return nllb_tokenizer(_LETTERS)


def mbart(kind: str) -> Any:
    return unigram_tokenizer(kind, _LETTERS)


def test_nllb() -> None:
    """Language code first on both sides; the decoder is forced to begin with the target's."""
    tokenizer = nllb()
    code = tokenizer.convert_tokens_to_ids
    assert encode_source(tokenizer, "ab", EN_DE) == [code("eng_Latn"), *code(["▁", "a", "b", "</s>"])]
    assert encode_target(tokenizer, "ab", EN_DE) == [code("deu_Latn"), *code(["▁", "a", "b", "</s>"])]
    assert generation_start(tokenizer, EN_DE) == {"forced_bos_token_id": code("deu_Latn")}
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("eng_Latn", None)
    assert tokenizer("ab")["input_ids"][0] == code("eng_Latn")
    traditional = LanguagePair("eng_Latn", "zho_Hant")
    assert generation_start(tokenizer, traditional) == {"forced_bos_token_id": code("zho_Hant")}
    assert encode_target(tokenizer, "abcd", EN_DE, max_length=4) == [code("deu_Latn"), *code(["▁", "a", "</s>"])]


def test_mbart() -> None:
    """Language code last; the decoder starts from it."""
    tokenizer = mbart("MBartTokenizer")
    code = tokenizer.convert_tokens_to_ids
    assert encode_source(tokenizer, "ab", EN_DE)[-2:] == code(["</s>", "en_XX"])
    assert encode_target(tokenizer, "ab", EN_DE)[-2:] == code(["</s>", "de_DE"])
    assert generation_start(tokenizer, EN_DE) == {"decoder_start_token_id": code("de_DE")}
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("en_XX", None)


def test_mbart_50() -> None:
    tokenizer = mbart("MBart50Tokenizer")
    code = tokenizer.convert_tokens_to_ids
    assert encode_target(tokenizer, "ab", EN_DE)[0] == code("de_DE")
    assert generation_start(tokenizer, EN_DE) == {"forced_bos_token_id": code("de_DE")}


def test_m2m_100(pieces: Path) -> None:
    tokenizer = M2M100Tokenizer(vocabulary(pieces), str(pieces / "spm.model"))
    assert encode_source(tokenizer, "tea", EN_DE)[0] == tokenizer.get_lang_id("en")
    assert encode_target(tokenizer, "Tee", EN_DE)[0] == tokenizer.get_lang_id("de")
    assert generation_start(tokenizer, EN_DE) == {"forced_bos_token_id": tokenizer.get_lang_id("de")}
    assert tokenizer.src_lang == "en"


@pytest.mark.parametrize(("token", "target"), [(">>deu<<", "de"), (">>fra<<", "fr")])
def test_marian_with_several_targets(pieces: Path, token: str, target: str) -> None:
    spm = str(pieces / "spm.model")
    tokenizer = MarianTokenizer(spm, spm, vocabulary(pieces, ">>deu<<", ">>fra<<"))
    pair = LanguagePair("en", target)
    assert encode_source(tokenizer, "tea", pair)[0] == tokenizer.convert_tokens_to_ids(token)
    assert encode_target(tokenizer, "Tee", pair) == tokenizer(text_target="Tee")["input_ids"]
    assert generation_start(tokenizer, pair) == {}


def test_marian_with_one_target_needs_nothing(pieces: Path) -> None:
    spm = str(pieces / "spm.model")
    tokenizer = MarianTokenizer(spm, spm, vocabulary(pieces))
    assert encode_source(tokenizer, "tea", EN_DE) == tokenizer("tea")["input_ids"]


def test_madlad_and_t5() -> None:
    madlad = unigram_tokenizer("T5Tokenizer", [*_LETTERS, "<2de>"])
    assert encode_source(madlad, "ab", EN_DE) == madlad("<2de> ab")["input_ids"]
    t5 = mbart("T5Tokenizer")
    assert encode_source(t5, "ab", EN_DE) == t5("translate English to German: ab")["input_ids"]
    assert encode_source(t5, "ab", EN_DE, template="{source}") == t5("ab")["input_ids"]
    assert generation_start(t5, EN_DE) == {}


@pytest.mark.parametrize(
    ("make", "language", "code"),
    [
        (nllb, "de", "deu_Latn"),
        (nllb, "zho_Hant", "zho_Hant"),
        (nllb, "ace_Arab", "ace_Arab"),
        (nllb, "ace", "ace_Latn"),
        (lambda: mbart("MBartTokenizer"), "zh", "zh_CN"),
        (lambda: mbart("MBartTokenizer"), "deu_Latn", "de_DE"),
    ],
)
def test_language_code(make: Any, language: str, code: str) -> None:
    assert language_code(make(), language) == code


@pytest.mark.parametrize(
    ("make", "language"),
    [(nllb, "xx"), (nllb, "zh_TW"), (lambda: mbart("MBartTokenizer"), "zh_TW")],
)
def test_no_such_code(make: Any, language: str) -> None:
    tokenizer = make()
    before = tokenizer.src_lang
    with pytest.raises(LanguagePairError, match=f"language_pair='{language}': the tokenizer has .* own codes"):
        encode_source(tokenizer, "ab", LanguagePair("en", language))
    assert tokenizer.src_lang == before


OPUS = [">>cmn_Hans<<", ">>cmn_Hant<<", ">>srp_Latn<<", ">>srp_Cyrl<<", ">>ara<<", ">>fas<<", ">>nor<<"]


@pytest.mark.parametrize(
    ("target", "token"),
    [
        *(
            ("zh", ">>cmn_Hans<<"),
            ("zh_Hans", ">>cmn_Hans<<"),
            ("zh_Hant", ">>cmn_Hant<<"),
            ("zho_Hant", ">>cmn_Hant<<"),
        ),
        *(("sr", ">>srp_Cyrl<<"), ("sr_Latn", ">>srp_Latn<<"), ("srp_Latn", ">>srp_Latn<<")),
        *(("ar", ">>ara<<"), ("arb_Arab", ">>ara<<"), ("fa", ">>fas<<"), ("pes", ">>fas<<"), ("no", ">>nor<<")),
    ],
)
def test_target_tokens_of_marian(pieces: Path, target: str, token: str) -> None:
    spm = str(pieces / "spm.model")
    tokenizer = MarianTokenizer(spm, spm, vocabulary(pieces, *OPUS))
    source = encode_source(tokenizer, "tea", LanguagePair("en", target))
    assert tokenizer.convert_ids_to_tokens(source)[0] == token


@pytest.mark.parametrize("target", ["fr", "zh_TW", "nn", "hr"])
def test_a_target_that_marian_does_not_have(pieces: Path, target: str) -> None:
    spm = str(pieces / "spm.model")
    tokenizer = MarianTokenizer(spm, spm, vocabulary(pieces, *OPUS))
    listed = "ara, cmn_Hans, cmn_Hant, fas, nor, srp_Cyrl, srp_Latn"
    with pytest.raises(
        LanguagePairError, match=f"no one target token for {target}; it translates into these: {listed}"
    ):
        encode_source(tokenizer, "tea", LanguagePair("en", target))


@pytest.mark.parametrize("target", ["de", "zh", "he", "tl", "fr", "zh_Hant", "sr_Latn"])
def test_target_tokens_of_madlad(target: str) -> None:
    tokens = {"de": "<2de>", "zh": "<2zh>", "he": "<2iw>", "tl": "<2fil>"}
    madlad = unigram_tokenizer("T5Tokenizer", [*_LETTERS, *tokens.values(), "<2sr>"])
    pair = LanguagePair("en", target)
    if target in tokens:
        assert encode_source(madlad, "ab", pair) == madlad(f"{tokens[target]} ab")["input_ids"]
    else:
        with pytest.raises(LanguagePairError, match=f"no one target token for {target}; .*: de, fil, iw, sr, zh"):
            encode_source(madlad, "ab", pair)


def test_target_tokens_that_are_added_later() -> None:
    madlad = unigram_tokenizer("T5Tokenizer", [*_LETTERS, "<2de>"])
    with pytest.raises(LanguagePairError):
        encode_source(madlad, "ab", LanguagePair("de", "fr"))
    madlad.add_tokens(["<2fr>"])
    assert encode_source(madlad, "ab", LanguagePair("de", "fr")) == madlad("<2fr> ab")["input_ids"]


@pytest.mark.parametrize("kind", ["nllb", "mbart", "mbart50", "t5"])
def test_a_text_that_was_cut_does_not_teach_its_end(kind: str) -> None:
    """Labels are the text alone then; the decoder still gets a language code where it starts from one."""
    makers = {"nllb": nllb, "mbart": lambda: mbart("MBartTokenizer"), "mbart50": lambda: mbart("MBart50Tokenizer")}
    tokenizer = makers.get(kind, lambda: mbart("T5Tokenizer"))()
    whole = encode_target(tokenizer, "abcdef", EN_DE)
    assert (
        encode_labels(tokenizer, "abcdef", EN_DE)
        == encode_labels(tokenizer, "abcdef", EN_DE, len(whole))
        == (whole, whole)
    )
    ids, labels = encode_labels(tokenizer, "abcdef", EN_DE, len(whole) - 2)
    assert ids == encode_target(tokenizer, "abcd", EN_DE)
    end = ids.index(tokenizer.eos_token_id)
    assert labels == ids[:end] + [IGNORED] * (len(ids) - end)
    assert (ids[-1] == tokenizer.convert_tokens_to_ids("de_DE")) == (kind == "mbart")


@pytest.mark.parametrize("template", ["{source}{target}", "{source}: {target}</s>"])
def test_an_encoder_does_not_read_the_translation(template: str) -> None:
    with pytest.raises(CorpusError, match="an encoder reads the source alone"):
        encode_source(mbart("T5Tokenizer"), "ab", EN_DE, template=template)


def test_a_plain_tokenizer_gets_an_instruction(tokenizer: PreTrainedTokenizerFast) -> None:
    expected = tokenizer("translate English to German: tea")["input_ids"]
    assert encode_source(tokenizer, "tea", EN_DE) == expected
