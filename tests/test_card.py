"""Model cards: names from files are shown, not obeyed; what others wrote is kept; nothing tells of this machine."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from transformers import PreTrainedModel

from peft_landermt import LanderConfig, NeuronMap, write_model_card

from .conftest import build_model
from .test_escaping import HOSTILE
from .tuner.helpers import adapt

OWN = "# My adapter\n\nFilled in by hand, for an hour.\n"
TEMPLATE = "# Model Card for Model ID\n\n<!-- Provide a quick summary of what the model is/does. -->\n"


@pytest.fixture
def architecture() -> str:
    return "llama"


def config(base: str | None = "organisation/base", **options: Any) -> LanderConfig:
    made = LanderConfig(task_type="CAUSAL_LM", language_pairs=["en-de", "en-fr"], **options)
    made.base_model_name_or_path = base
    return made


def card(folder: Path) -> tuple[dict[str, Any], str]:
    _, metadata, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(metadata), text


def code_of(text: str) -> str:
    """The one Python block, as a parser of Markdown sees it."""
    (block,) = [token.content for token in MarkdownIt().parse(text) if token.type == "fence"]
    return block


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_names_are_shown_and_not_obeyed(text: str, tmp_path: Path) -> None:
    """In the names of base, map and scores; headings, links and code stay those of our card."""
    plain, hostile = tmp_path / "plain", tmp_path / "hostile"
    scores = {"en-de": {"BLEU": 1.0}}
    for folder, name in ((plain, "organisation/base"), (hostile, text)):
        folder.mkdir()
        made = config(name)
        made.neuron_map_signature = f"base:{name}" if folder == hostile else "base:base"
        write_model_card(made, folder, {"en-de": {name: 1.0}} if folder == hostile else scores)
    kinds = []
    for folder in (plain, hostile):
        metadata, body = card(folder)
        assert set(metadata) == {"library_name", "pipeline_tag", "tags", "language", "model-index"} | (
            {"base_model"} if folder == plain else set()
        )
        tokens = MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(body)
        kinds.append([(token.type, token.tag) for token in tokens])
        links = [inner for token in tokens for inner in token.children or [] if inner.type in ("link_open", "image")]
        assert len(links) == 1, "to the paper"
        assert not any(inner.type == "html_inline" for token in tokens for inner in token.children or [])
        strings = [node.value for node in ast.walk(ast.parse(code_of(body))) if isinstance(node, ast.Constant)]
        assert set(strings) <= {"organisation/base", "path/to/the/base/model", "path/to/this/adapter", "...", "en-de"}
    assert kinds[0] == kinds[1]


PATHS = ("/home/someone/base", "~/someone/base", "../someone/base", "C:\\Users\\someone\\base", "file:///someone/base")


@pytest.mark.parametrize("path", PATHS)
def test_no_folder_of_this_machine_is_told(path: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        f"---\nbase_model: {path}\ntags: ['base_model:adapter:{path}', mine]\n---\n", encoding="utf-8"
    )  # as PEFT writes it
    write_model_card(config(path), tmp_path)
    metadata, text = card(tmp_path)
    assert "someone" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| Base model | base |" in text and "base_model" not in metadata
    assert metadata["tags"] == ["lander", "mine", "translation"]


def test_a_saved_adapter_tells_no_folder_but_in_its_config(
    base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path
) -> None:
    """PEFT loads the base from there where it is told no other."""
    base.config._name_or_path = base.name_or_path = str(tmp_path / "someone" / "base")
    adapt(base, neuron_map, ["en-de"]).save_pretrained(tmp_path / "adapter")
    told = {path.name for path in (tmp_path / "adapter").iterdir() if b"someone" in path.read_bytes()}
    assert told == {"adapter_config.json"}


@pytest.mark.parametrize(
    ("task", "name"), [("CAUSAL_LM", "AutoModelForCausalLM"), ("SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM")]
)
def test_the_code_loads_the_kind_of_base(task: str, name: str, tmp_path: Path) -> None:
    made = config()
    made.task_type = task  # type: ignore[assignment]
    write_model_card(made, tmp_path)
    assert f"base = {name}.from_pretrained" in code_of(card(tmp_path)[1])


OWNERS: dict[str, str] = {
    "text": f"---\nlicense: mit\n---\n{OWN}",
    "text without metadata": OWN,
    "text below the template's title": f"---\nlicense: mit\n---\n{TEMPLATE}\n{OWN}",
    "text that quotes the template's title": f"{OWN}\nThere was `# Model Card for Model ID` here.\n",
    "one line filled in": TEMPLATE.replace("<!--", "Filled in by hand, for an hour. <!--"),
    "only our end mark": f"{OWN}\n<!-- peft_landermt -->\n",
    "only our first mark": f"<!-- written by peft_landermt; text outside of these marks is kept -->\n{OWN}",
    "marks the other way round": "<!-- peft_landermt -->\n" + OWN
    + "<!-- written by peft_landermt; text outside of these marks is kept -->\n",
    "other line ends": f"---\nlicense: mit\n---\n{OWN}".replace("\n", "\r\n"),
    "in Arabic": f"# بطاقة\n\n{OWN}",
}  # fmt: skip


@pytest.mark.parametrize("way", ["save_pretrained", "the command line", "write_model_card"])
@pytest.mark.parametrize("text", OWNERS.values(), ids=OWNERS)
def test_text_of_the_owner_is_kept(
    base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path, text: str, way: str
) -> None:
    """However an adapter is saved, and however often; our part is there once."""
    readme = tmp_path / "README.md"
    readme.write_bytes(text.encode())
    model = adapt(base, neuron_map, ["en-de"])
    for _ in range(3):
        if way == "save_pretrained":
            model.save_pretrained(tmp_path)
        elif way == "the command line":
            model.save_pretrained(str(tmp_path))
        else:
            write_model_card(model.peft_config["default"], tmp_path)
    found = readme.read_bytes().decode()
    assert found.count("Filled in by hand, for an hour.") == 1
    assert found.count("# LANDeRMT adapter for en-de") == 1
    assert ("license: mit" in text) == ("license: mit" in found)


def test_an_empty_template_is_replaced(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    adapt(base, neuron_map, ["en-de"]).save_pretrained(tmp_path)  # PEFT writes the template before
    assert "Model Card for Model ID" not in card(tmp_path)[1]


def test_metadata_of_the_owner_is_kept(tmp_path: Path) -> None:
    owners = {
        "license": "mit",
        "language": ["de", "gsw"],
        "tags": ["mine"],
        "datasets": ["me/data"],
        "pipeline_tag": "text2text-generation",
        "model-index": [
            {
                "name": "mine",
                "results": [
                    {
                        "task": {"type": "translation"},
                        "dataset": {"type": "flores", "name": "flores"},
                        "metrics": [{"type": "bleu", "value": 3}],
                    }
                ],
            }
        ],
    }
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(owners)}---\n{OWN}", encoding="utf-8")
    write_model_card(config(), tmp_path, {"en-de": {"BLEU": 1.0}})
    write_model_card(config(), tmp_path)
    metadata, _ = card(tmp_path)
    assert {key: metadata[key] for key in ("license", "datasets", "pipeline_tag")} == {
        key: owners[key] for key in ("license", "datasets", "pipeline_tag")
    }
    assert metadata["tags"] == ["lander", "mine", "translation"]
    assert metadata["language"] == ["de", "en", "fr", "gsw"]
    assert metadata["model-index"][0]["name"] == "mine"


def broken(folder: Path, how: str) -> Path:
    path = folder / "README.md"
    if how == "a folder":
        path.mkdir()
    elif how == "a pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(BROKEN[how])
    return path


BROKEN: dict[str, bytes] = {
    "YAML": b"---\na: [\n---\n# My adapter\n",
    "metadata that are a list": b"---\n- a\n---\n# My adapter\n",
    "metadata that are numbers": b"---\n1: 2\n---\n# My adapter\n",
    "a model index that is none": b"---\nmodel-index: 5\n---\n# My adapter\n",
    "languages that are numbers": b"---\nlanguage: 5\n---\n# My adapter\n",
    "YAML that makes objects": b"---\na: !!python/object/apply:os.system ['true']\n---\n",
    "deep YAML": b"---\na: " + b"[" * 5000 + b"\n---\n",
    "Latin-1": "# Für Übersetzer\n".encode("latin-1"),
    "bytes": bytes(range(256)),
    "a folder": b"",
    "a pipe": b"",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_card_is_left_alone(how: str, tmp_path: Path, base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """The adapter is saved all the same."""
    path = broken(tmp_path, how)
    model = adapt(base, neuron_map, ["en-de"])
    with pytest.warns(UserWarning, match=r"README.md was left as it is: it is no model card"):
        model.save_pretrained(str(tmp_path))
    assert (tmp_path / "adapter_model.safetensors").is_file() and (tmp_path / "adapter_config.json").is_file()
    assert not path.is_file() or path.read_bytes() == BROKEN[how]


def test_wrong_scores_are_an_error_and_no_broken_card(tmp_path: Path) -> None:
    write_model_card(config(), tmp_path)
    before = (tmp_path / "README.md").read_bytes()
    with pytest.raises((TypeError, ValueError)):
        write_model_card(config(), tmp_path, {"en-de": {"BLEU": "21.4"}})  # type: ignore[dict-item]
    assert (tmp_path / "README.md").read_bytes() == before


@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_an_adapter_folder_leads_nowhere(tmp_path: Path, there: bool) -> None:
    """A folder of a stranger may have a README that is a link to a file of its reader."""
    folder, outside = tmp_path / "adapter", tmp_path / "notes"
    folder.mkdir()
    if there:
        outside.write_text("mine", encoding="utf-8")
    (folder / "README.md").symlink_to(outside)
    write_model_card(config(), folder)
    assert outside.exists() == there and (not there or outside.read_text(encoding="utf-8") == "mine")
    assert "LANDeRMT adapter" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_model_from_a_folder_of_the_form_of_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build_model("llama").save_pretrained("someone/base")
    write_model_card(config("someone/base"), tmp_path)
    assert "someone" not in (tmp_path / "README.md").read_text(encoding="utf-8")
