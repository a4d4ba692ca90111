"""Limits of new tokens: no translation is cut, whatever the script and the tokenizer; what found no end is told."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from peft_landermt import translate
from peft_landermt.errors import CorpusError
from peft_landermt.language_pair import LanguagePair
from peft_landermt.translation import translate_counted
from peft_landermt.translation.limits import goes_round, longest_limit, usual_limit
from peft_landermt.translation.requests import make_batches, make_requests

from ..conftest import build_model
from ..prompt_tokenizers import byte_tokenizer
from .test_encoder_decoders import build as build_encoder_decoder

HUMAN_RIGHTS = {
    "en": "All human beings are born free and equal in dignity and rights.",
    "am": "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።",
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "bn": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan.",
    "he": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ka": "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "my": "လူတိုင်းသည် တူညီ လွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့် လည်းကောင်း၊ တူညီ လွတ်လပ်သော အခွင့်အရေးများဖြင့် လည်းကောင်း၊ မွေးဖွားလာသူများ ဖြစ်သည်။",
    "ru": "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "ta": "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; அவர்கள் மதிப்பிலும், உரிமைகளிலும் சமமானவர்கள்.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "zh": "人人生而自由，在尊严和权利上一律平等。",
    "zh_Hant": "人人生而自由，在尊嚴和權利上一律平等。",
}  # fmt: skip
"""Article 1 of the Universal Declaration of Human Rights, first sentence (OHCHR's translations)."""
GREETING = {
    "en": "Hi.",
    "de": "Hallo.",
    "my": "မင်္ဂလာပါ။",
    "th": "สวัสดีครับ",
    "ja": "こんにちは。",
    "ru": "Здравствуйте.",
}
WHOLE = [
    *((source, target, HUMAN_RIGHTS) for source in HUMAN_RIGHTS for target in HUMAN_RIGHTS if source != target),
    *((source, target, GREETING) for source in GREETING for target in GREETING if source != target),
]


def tokens_needed(text: str) -> int:
    """A byte each, as many as any tokenizer takes, and the end."""
    return len(text.encode()) + 1


@pytest.mark.parametrize(("source", "target", "texts"), WHOLE)
def test_room_for_a_translation_of_one_byte_a_token(source: str, target: str, texts: dict[str, str]) -> None:
    """And for one that is half as long again."""
    limit = longest_limit(byte_tokenizer(), texts[source], LanguagePair(source, target))
    assert limit >= 1.5 * tokens_needed(" " + texts[target])


@pytest.mark.parametrize(
    ("by_name", "by_another"),
    [("my", "mya"), ("my", "mya_Mymr"), ("zh", "zho_Hans"), ("de", "deu_Latn"), ("sr", "sr_Cyrl"), ("ko", "kor_Hang")],
)
def test_codes_that_mean_the_same_have_the_same_limit(by_name: str, by_another: str) -> None:
    tokenizer, text = byte_tokenizer(), "Good morning, my friends."
    limits = {longest_limit(tokenizer, text, LanguagePair("en", code)) for code in (by_name, by_another)}
    assert len(limits) == 1
    assert longest_limit(tokenizer, text, LanguagePair("en", "sr_Latn")) < longest_limit(
        tokenizer, text, LanguagePair("en", "sr_Cyrl")
    )
    tibetan = longest_limit(tokenizer, text, LanguagePair("en", "bo"))
    assert tibetan >= max(limits), "the most, for a script that is not listed"


# What the model says


class Dictated(LogitsProcessor):
    """Makes the model say texts, whatever it has read, and `</s>` behind them."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self.ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], 2] for text in texts]
        self.start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.start = input_ids.shape[1] if self.start is None else self.start
        wanted = torch.full_like(scores, -1e9)
        for row, ids in enumerate(self.ids):
            wanted[row, ids[min(input_ids.shape[1] - self.start, len(ids) - 1)]] = 0
        return wanted


def dictate(texts: list[str], sources: list[str], pair: str, **options: Any) -> Any:
    tokenizer = byte_tokenizer()
    model = build_model("llama", vocab_size=260, max_position_embeddings=4096)
    processors = LogitsProcessorList([Dictated(tokenizer, texts)])
    return translate_counted(model, tokenizer, sources, pair, logits_processor=processors, **options)


@pytest.mark.parametrize("target", [language for language in HUMAN_RIGHTS if language != "en"])
def test_a_whole_translation(target: str) -> None:
    found = dictate([" " + HUMAN_RIGHTS[target]], [HUMAN_RIGHTS["en"]], f"en-{target}")
    assert found.texts == [HUMAN_RIGHTS[target]]
    assert (found.cut, found.num_runaway) == ((), 0)


def test_which_translations_were_cut() -> None:
    """One that ends, one that says one thing again and again, one that is longer than any translation."""
    sources = ["Where are you?", "Where is she?!", "Where are they?"]
    rambling = " ".join(str(number * 7919) for number in range(1000))
    found = dictate(["Wo bist du?", "Wo ist sie? " * 100, rambling], sources, "en-de")
    assert found.texts[0] == "Wo bist du?"
    assert (found.cut, found.num_runaway) == ((1, 2), 2)
    usual, longest = (
        usual_limit(byte_tokenizer(), sources[1]),
        longest_limit(byte_tokenizer(), sources[2], LanguagePair("en", "de")),
    )
    assert usual <= len(found.texts[1]) + 1 <= usual + 12, "at the first round beyond the usual length"
    assert found.texts[2] == rambling[:longest].strip()


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_a_round_is_no_end_where_the_end_pads(pad: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = pad
    model = build_model("llama", vocab_size=260, max_position_embeddings=4096)
    long = "Das ist eine sehr lange Antwort mit vielen Worten, die aber doch zu einem Ende kommt, wie man sieht."
    said = LogitsProcessorList([Dictated(tokenizer, ["ha " * 200, long])])
    found = translate_counted(
        model, tokenizer, ["Why?", "Why should they not go there, too, then?"], "en-de", logits_processor=said
    )
    assert found.cut == (0,) and found.texts[1] == long


def test_a_limit_that_is_given_is_kept() -> None:
    found = dictate(["x " * 100], ["Where?"], "en-de", max_new_tokens=50)
    assert found.texts == [("x " * 25).strip()] and found.cut == (0,)
    assert dictate(["x " * 20], ["Where?"], "en-de", max_new_tokens=50).cut == ()


def test_translate_warns_of_what_it_cut() -> None:
    tokenizer, model = byte_tokenizer(), build_model("llama", vocab_size=260)
    said = {"logits_processor": LogitsProcessorList([Dictated(tokenizer, ["a", "x " * 100])])}
    with pytest.warns(UserWarning, match=r"1 of 3 translations found no end and were cut: 2; max_new_tokens"):
        translate(model, tokenizer, ["I?", "", "Where?"], "en-de", max_new_tokens=9, **said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = {"logits_processor": LogitsProcessorList([Dictated(tokenizer, ["a"])])}
        assert translate(model, tokenizer, ["I?"], "en-de", **said) == ["a"]


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ([], False), ([1] * 15, False), ([1] * 16, True), ([1, 2] * 8, True), ([1, 2] * 7, False),
        (list(range(64)) * 3, True), (list(range(64)) * 2, False), ([9, 9, 9, *range(20)], False),
        (list(range(40)), False), ([7, *([1, 2, 3] * 6)], True), ([*([1, 2, 3] * 6), 7], False),
    ],
)  # fmt: skip
def test_rounds_by_hand(tokens: list[int], found: bool) -> None:
    assert goes_round(tokens) is found


# Room in the context


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_no_position_beyond_those_that_the_model_has(architecture: str) -> None:
    tokenizer = byte_tokenizer()
    sizes = {"n_positions": 128} if architecture == "gpt2" else {"max_position_embeddings": 128}
    model = build_model(architecture, vocab_size=260, **sizes)
    found = translate_counted(model, tokenizer, ["Where is it?"], "en-my", template="{source}")
    assert len(found.texts) == 1
    with pytest.raises(
        CorpusError, match=r"number 1 has \d+ tokens with its prompt, and the model reads 128; split it"
    ):
        translate_counted(model, tokenizer, ["a", "b " * 100], "en-de", template="{source}")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_nor_in_a_batch_with_a_longer_prompt(architecture: str) -> None:
    """A short prompt may get a long translation, and a long prompt is padded to its end all the while."""
    tokenizer = byte_tokenizer()
    sizes = {"n_positions": 128} if architecture == "gpt2" else {"max_position_embeddings": 128}
    model = build_model(architecture, vocab_size=260, **sizes)
    sentences = ["Where is it?", "b" * 100]
    together, alone = (
        [translate_counted(model, tokenizer, part, "en-my", template="{source}") for part in parts]
        for parts in ([sentences], [[sentence] for sentence in sentences])
    )
    assert together[0].texts == [found.texts[0] for found in alone]


def test_prompts_of_unlike_length_share_batches() -> None:
    """Although each may be continued to the model's last position."""
    tokenizer = byte_tokenizer()
    model = build_model("gpt2", vocab_size=260, n_positions=512)
    sentences = ["Where is it, and when did you see it" + "?" * number for number in range(16)]
    requests = make_requests(model, tokenizer, sentences, "en-my", None, "{source}", None)
    assert all(len(request.ids) + request.limit <= 512 for request in requests)
    assert len(make_batches(model, requests, 8)) <= 3


def test_no_source_beyond_those_positions() -> None:
    model, tokenizer = build_encoder_decoder("mbart")
    model.config.max_position_embeddings = 16
    with pytest.raises(CorpusError, match=r"number 0 has \d+ tokens with its prompt, and the model reads 16"):
        translate_counted(model, tokenizer, ["tea house " * 10], "en-de")


@pytest.mark.parametrize("sentence", [None, 3, ["tea"]])
def test_sentences_that_are_no_text(sentence: Any) -> None:
    with pytest.raises(CorpusError, match="number 1 is no text"):
        translate(build_model("llama", vocab_size=260), byte_tokenizer(), ["tea", sentence], "en-de")
