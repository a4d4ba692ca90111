"""Names from files on terminals, in Markdown and in what is published."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from peft_landermt.errors import LanderError
from peft_landermt.escaping import code_span, is_hub_id, markdown, printable, published_name

HOSTILE = {
    "an escape sequence": "\x1b[2J\x1b]0;title\x07",
    "a line end": "a\n# heading",
    "a carriage return": "good\rbad",
    "a backspace": "good\b\b\b\bevil",
    "right to left": "abc\u202egpj.exe",
    "of no width": "a\u200bb\ufeff",
    "a line separator": "a\u2028b\u2029c\x85d",
    "half of a surrogate pair": "a\ud800b",
    "C1 controls": "\x9b31m",
    "a null": "a\x00b",
    "HTML": '<img src=x onerror=alert(1)><script>alert("1")</script>',
    "an entity": "&lt;b&gt; &#60;",
    "a comment": "<!-- peft_landermt -->",
    "a link": "[click](https://evil.example)",
    "a picture": "![](https://evil.example/x.png)",
    "an address": "https://evil.example www.evil.example a@evil.example <https://evil.example>",
    "a cell": "a | b || c",
    "code": "`a` ``b`` ```c",
    "a fence": "x\n```\n# Heading of a stranger\n",
    "emphasis": "__init__ *a* _b_ ~~c~~ **d**",
    "backslashes": "\\| \\` \\",
    "mathematics": "$x$ $$y$$ {{ 7 * 7 }} {% x %}",
    "front matter": "---\nlicense: evil\n---",
    "a list": "- a\n1. b",
}
ORDINARY = ("google/gemma-3-270m", "TinyLlama/TinyLlama_v1.1", "модель", "模型", "नमूना", "base model 2", "")


@pytest.mark.parametrize("text", [*HOSTILE.values(), *ORDINARY], ids=[*HOSTILE, *ORDINARY])
def test_a_terminal_gets_one_line_that_moves_nothing(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and len(shown.splitlines()) <= 1
    assert shown == text or not text.isprintable()
    message = str(LanderError("field", text, f"{text} is wrong."))
    assert message.isprintable() and len(message.splitlines()) == 1


def rendered(text: str) -> str:
    """By a parser of GitHub's Markdown: tables, bare addresses, HTML."""
    return MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(text)


@pytest.mark.parametrize("text", [*HOSTILE.values(), *ORDINARY], ids=[*HOSTILE, *ORDINARY])
def test_markdown_shows_every_letter_and_nothing_else(text: str) -> None:
    """In a heading, a paragraph, and a cell of a table, which keeps its two cells."""
    entities = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}
    expected = "".join(entities.get(char, char) for char in printable(text)).strip()
    assert rendered(f"# to {markdown(text)}") == f"<h1>to {expected}</h1>\n".replace("to </h1>", "to</h1>")
    row = rendered(f"| a | b |\n|---|---|\n| name | {markdown(text)} |").partition("<tbody>")[2]
    assert row.count("<td>") == 2 and f"<td>{expected}</td>" in row
    assert rendered(f"is {code_span(text)}.").count("<code>") == bool(printable(text))


@pytest.mark.parametrize(
    ("name", "is_id", "published"),
    [
        ("google/gemma-3-270m", True, "google/gemma-3-270m"),
        ("gpt2", True, "gpt2"),
        ("/home/someone/models/base", False, "base"),
        ("/home/someone/models/base/", False, "base"),
        ("./base", False, "base"),
        ("../secret/base", False, "base"),
        ("~/base", False, "base"),
        ("out/runs/base", False, "base"),
        ("C:\\Users\\someone\\base", False, "base"),
        ("\\\\server\\share\\base\\", False, "base"),
        ("file:///home/someone/base", False, "base"),
        ("организация/модель", False, "модель"),
        ("organisation/base.git", False, "base.git"),
        ("", False, ""),
        ("/", False, ""),
    ],
)
def test_published_names(name: str, is_id: bool, published: str) -> None:
    assert (is_hub_id(name), published_name(name)) == (is_id, published)


def test_a_folder_with_the_form_of_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert published_name("out/base") == "out/base"
    (tmp_path / "out" / "base").mkdir(parents=True)
    assert published_name("out/base") == "base"
