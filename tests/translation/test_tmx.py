"""Translation memories: which variants are the source and the target, and what is refused."""

from __future__ import annotations

import gzip
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from peft_landermt.errors import CorpusError
from peft_landermt.translation import TranslationExample, read_corpus, read_tmx

PAIR = "en-de"
EXAMPLES = [
    TranslationExample("The house is old.", "Das Haus ist alt.", PAIR),
    TranslationExample("We drink tea.", "Wir trinken Tee.", PAIR),
]


def write(path: Path, content: bytes | str) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def refused(path: Path, *remedies: str, pair: str = PAIR) -> None:
    with pytest.raises(CorpusError) as caught:
        read_tmx(path, pair)
    assert (caught.value.field, caught.value.value) == ("path", str(path))
    for remedy in remedies:
        assert remedy in str(caught.value)


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en"/><body>
<tu><note>ours</note><tuv xml:lang="de-DE"><seg>Das Haus ist alt.</seg></tuv>
<tuv xml:lang="EN-us"><prop type="x">y</prop>
<seg>The <bpt i="1">&lt;b&gt;</bpt>house<ept i="1">&lt;/b&gt;</ept> is old.</seg></tuv></tu>
<tu><tuv lang="en"><seg>We <hi>drink</hi> tea.<ph>&lt;br/&gt;</ph></seg></tuv>
<tuv lang="de"><seg>Wir trinken Tee.</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>Good morning.</seg></tuv><tuv xml:lang="fr"><seg>Bonjour.</seg></tuv></tu>
</body></tmx>
"""


@pytest.mark.parametrize("name", ["memory.tmx", "memory.tmx.gz"])
def test_tmx(tmp_path: Path, name: str) -> None:
    """Codes of regions, of either case, attributes of TMX 1.1, inline codes left out and marked text kept."""
    path = write(tmp_path / name, TMX)
    for corpus in (read_tmx(path, PAIR), read_corpus(path, PAIR)):
        assert corpus.examples == EXAMPLES
        assert corpus.skipped == {"missing column": 1}
    assert [example.target for example in read_tmx(path, "en-fr")] == ["Bonjour."]


def memory(*units: list[str]) -> str:
    """Units whose variants say their own codes."""
    variants = [[f"<tuv xml:lang='{code}'><seg>{code}</seg></tuv>" for code in codes] for codes in units]
    return "<tmx version='1.4'><body>" + "".join(f"<tu>{''.join(unit)}</tu>" for unit in variants) + "</body></tmx>"


# pair, the codes of a unit's variants, and those that are taken; None where the unit has to be left out
CHOSEN = [
    # scripts
    ("en-zh_Hant", "en zh-CN zh-TW", "en zh-TW"),
    ("en-zh_Hans", "en zh-TW zh-CN", "en zh-CN"),
    ("zh_Hans-zh_Hant", "en zh-CN zh-TW", "zh-CN zh-TW"),
    ("zh_Hant-zh_Hans", "zh-Hans zh-HK", "zh-HK zh-Hans"),
    ("en-zh_Hant", "en zh-CN", None),
    ("en-zh_Hant", "en zh", None),
    ("en-zh_Hans", "en zh", "en zh"),
    ("en-zho_Hans", "en-GB zh-SG", "en-GB zh-SG"),
    ("eng_Latn-zho_Hant", "en zh-Hant-HK", "en zh-Hant-HK"),
    ("en-zh_Hant", "en ZH-hant-tw", "en ZH-hant-tw"),
    ("en-zh_Hant", "en zh_TW", "en zh_TW"),
    ("en-zh_Hant", "en zh-CHS zh-CHT", "en zh-CHT"),
    ("en-zh_Hans", "en zh-cmn-Hans-CN", "en zh-cmn-Hans-CN"),
    ("en-cmn_Hans", "en zh-CN", "en zh-CN"),
    ("en-sr_Latn", "en sr-Cyrl-RS sr-Latn-RS", "en sr-Latn-RS"),
    ("en-sr_Cyrl", "en sr-Latn sr-RS", "en sr-RS"),
    ("en-sr_Latn", "en sr", None),
    ("en-sr_Latn", "en sr-ME", "en sr-ME"),
    ("sr_Cyrl-sr_Latn", "sr-Latn sr", "sr sr-Latn"),
    ("sr_Cyrl-sr_Latn", "sr", None),
    ("en-uz_Cyrl", "en uz-Latn-UZ", None),
    ("en-uzn_Latn", "en uz-Cyrl uz", "en uz"),
    ("en-pan_Guru", "en pa-PK pa-IN", "en pa-IN"),
    ("en-kor_Hang", "en ko-KR", "en ko-KR"),
    ("eng_Latn-deu_Latn", "en-US de-AT", "en-US de-AT"),
    # regions
    ("en-pt_BR", "en pt-PT pt-BR", "en pt-BR"),
    ("en-pt_PT", "en pt-BR", None),
    ("en-pt_PT", "en pt", None),
    ("pt_BR-pt_PT", "pt-PT pt-BR", "pt-BR pt-PT"),
    ("pt_BR-pt_PT", "pt-BR pt", None),
    ("en_GB-fr_CA", "fr-FR fr-CA en-US en-GB", "en-GB fr-CA"),
    ("en-es_419", "en es-ES es-419", "en es-419"),
    ("en-zh_TW", "en zh-HK zh-Hant-TW", "en zh-Hant-TW"),
    ("en-zh_TW", "en zh-Hans-TW", None),
    ("en_XX-de_XX", "en-US de", "en-US de"),
    # neither
    ("en-pt", "en pt-PT pt-BR", "en pt-PT"),
    ("en-pt", "en pt-BR pt", "en pt"),
    ("en-zh", "en zh-TW zh-CN", "en zh-CN"),
    ("en-sr", "en sr-Latn sr-Cyrl", "en sr-Cyrl"),
    ("pt-pt_BR", "pt-BR pt-PT", "pt-PT pt-BR"),
    ("zh-zh_Hant", "zh-TW", None),
    ("de-en", "en-US de-CH-1996", "de-CH-1996 en-US"),
    ("en-ca", "en ca-valencia", "en ca-valencia"),
    # other forms of a code, and languages that only look alike
    ("eng-deu", "en de-DE", "en de-DE"),
    ("en-de", "eng ger", "eng ger"),
    ("en-ar", "en arb ar-EG", "en arb"),
    ("en-he", "en iw", "en iw"),
    ("en-no", "en nb-NO", "en nb-NO"),
    ("en-nb", "en no nb", "en nb"),
    ("en-nb", "en nn", None),
    ("en-fil", "en tl-PH", "en tl-PH"),
    ("en-zh", "en yue zh-yue", None),
    ("en-yue", "en zh-yue-HK", "en zh-yue-HK"),
    ("en-fa", "en prs", None),
    ("en-ar", "en arz", None),
    ("en-de", "en german", None),
    ("en-de", "en x-de", None),
    ("en-de", "en", None),
]


@pytest.mark.parametrize(("pair", "codes", "chosen"), CHOSEN)
def test_which_variants_are_taken(tmp_path: Path, pair: str, codes: str, chosen: str | None) -> None:
    sure = ["en", "de", "zh-Hans", "zh-Hant", "sr-Cyrl", "sr-Latn", "pt-BR", "pt-PT"]
    path = write(tmp_path / "memory.tmx", memory(codes.split(), sure if chosen is None else codes.split()))
    if chosen is not None:
        corpus = read_tmx(path, pair)
        assert [(example.source, example.target) for example in corpus] == [tuple(chosen.split())] * 2
        assert corpus.skipped == Counter()
    else:
        try:
            corpus = read_tmx(path, pair)
        except CorpusError as error:
            assert "no usable row" in str(error) and f"It has {codes.split()[0]}" in str(error)
        else:
            assert len(corpus) == sum(corpus.skipped.values()) == 1


def test_why_a_unit_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "memory.tmx", memory(["en", "pt-BR"], ["en", "fr"], ["en", "pt-PT"], ["pt-BR", "pt-AO"]))
    assert read_tmx(path, "en-pt_PT").skipped == {"other script or region": 1, "missing column": 2}
    assert read_tmx(path, "pt_BR-pt").skipped == {"other script or region": 2, "missing column": 1}
    refused(path, "other script or region 2", "It has en, pt-BR, fr, pt-PT, pt-AO.", pair="en-pt_MZ")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "iso-8859-1"])
def test_encodings_of_xml(tmp_path: Path, encoding: str) -> None:
    """By mark or declaration, as XML has it; UTF-16 without a mark is told from the first bytes."""
    declared = "utf-8" if encoding == "utf-8-sig" else encoding.removesuffix("-le").removesuffix("-be")
    text = TMX.replace('encoding="UTF-8"', f'encoding="{declared}"').replace("Tee", "Käse")
    path = write(tmp_path / "memory.tmx", text.encode(encoding))
    assert [example.target for example in read_tmx(path, PAIR)] == ["Das Haus ist alt.", "Wir trinken Käse."]


BOMB = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "lol"}">' for n in range(12))
BAD = {
    "entities": (f"<!DOCTYPE tmx [{BOMB}]><tmx><body>&a11;</body></tmx>", "declares entities"),
    "an external entity": ('<!DOCTYPE tmx [<!ENTITY a SYSTEM "/etc/passwd">]><tmx>&a;</tmx>', "declares entities"),
    "depth": ("<tmx>" + "<a>" * 200_000, "nested deeper than 100"),
    "depth of inline codes": ("<tmx><tu><tuv><seg>" + "<hi>" * 10_000, "nested deeper than 100"),
    "a long segment": ("<tmx><tu><tuv xml:lang='en'><seg>" + "x" * 5_000_000, "unit of more than 4 MiB"),
    "many variants": ("<tmx><tu>" + "<tuv xml:lang='en'><seg>x</seg></tuv>" * 50_000, "unit of more than 4 MiB"),
    "a long tag": ("<tmx " + "a" * 5_000_000, "tag or comment of more than 4 MiB"),
    "a long attribute": ("<tmx><tu a='" + "x" * 5_000_000, "tag or comment of more than 4 MiB"),
    "a long comment": ("<tmx><!--" + "x" * 5_000_000, "tag or comment of more than 4 MiB"),
    "no XML": ("en\tde\n", "not well-formed XML"),
    "NUL": ("<tmx>\0</tmx>", "not well-formed XML"),
    "an unknown encoding": ('<?xml version="1.0" encoding="klingon"?><tmx/>', "not well-formed XML"),
    "an encoding of several bytes": ('<?xml version="1.0" encoding="shift-jis"?><tmx/>', "not well-formed XML"),
    "an unknown entity": ("<tmx><tu><tuv><seg>&nbsp;</seg></tuv></tu></tmx>", "not well-formed XML"),
    "an empty file": ("", "not well-formed XML"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    content, remedy = BAD[name]
    refused(write(tmp_path / "memory.tmx", content), remedy)


def test_units_inside_others_and_segments_out_of_place(tmp_path: Path) -> None:
    inner = "<tuv xml:lang='en'><seg>a</seg></tuv><tuv xml:lang='de'><seg>b</seg></tuv>"
    strange = "<tu><tuv xml:lang='en'><seg>x<tu><tuv><seg>y</seg></tuv></tu>z</seg></tuv></tu><seg>w</seg><tuv/>"
    path = write(tmp_path / "memory.tmx", f"<tmx><tu><tu>{inner}</tu></tu>{strange}<tu>{inner}</tu></tmx>")
    corpus = read_tmx(path, PAIR)
    assert corpus.examples == [TranslationExample("a", "b", PAIR)] * 2


def test_a_large_memory_is_read_as_a_stream(tmp_path: Path) -> None:
    unit = "<tu><tuv xml:lang='en'><seg>tea</seg></tuv><tuv xml:lang='de'><seg>Tee</seg></tuv></tu>"
    path = write(tmp_path / "memory.tmx", f"<tmx><body>{unit * 5_000}</body></tmx>")
    tracemalloc.start()
    corpus = read_tmx(path, PAIR)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(corpus) == 5_000
    assert peak < 5_000 * 500  # the rows themselves; a tree of the file takes five times as much


def test_damaged_tmx(tmp_path: Path) -> None:
    path = write(tmp_path / "memory.tmx", TMX[: TMX.index("</body>")])
    refused(path, "not well-formed XML", "line 10")
    refused(tmp_path / "none.tmx", "no such file")
    refused(write(tmp_path / "empty.tmx", "<tmx><body/></tmx>"), "no usable row")
