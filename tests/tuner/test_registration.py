"""LANDER as a member of PEFT's closed enumeration and of its registry."""

from __future__ import annotations

import copy
import importlib
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

import peft_landermt
from peft_landermt import LanderConfig, LanderModel, NeuronMap
from peft_landermt.errors import RegistrationError
from peft_landermt.routed.registration import (
    add_peft_type,
    check_peft_version,
    register,
    warn_of_newer_peft,
)

from ..conftest import build_model
from .helpers import adapt, make_config

one_architecture = pytest.mark.parametrize("architecture", ["llama"], indirect=True)


def assert_registered_once() -> None:
    assert [member.name for member in PeftType].count("LANDER") == 1
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LANDER] is LanderConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LANDER] is LanderModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.LANDER] == "lander_"
    assert len(PEFT_TYPE_TO_CONFIG_MAPPING) == len(set(map(str, PEFT_TYPE_TO_CONFIG_MAPPING)))


def test_member_behaves_like_a_native_one() -> None:
    member = PeftType("LANDER")
    assert isinstance(member, PeftType)
    assert member is PeftType["LANDER"] is PeftType.LANDER is add_peft_type("LANDER")
    assert (member.name, member.value) == ("LANDER", "LANDER")
    assert member == "LANDER" and hash(member) == hash("LANDER")
    assert (repr(member), str(member)) == ("<PeftType.LANDER: 'LANDER'>", "PeftType.LANDER")
    assert member in PeftType and list(PeftType)[-1] is member
    assert len(list(PeftType)) == len(PeftType.__members__) == len({member.value for member in PeftType})
    assert_registered_once()


def test_other_members_are_as_they_were() -> None:
    assert PeftType("LORA") is PeftType.LORA
    with pytest.raises(ValueError, match="LANDERMT"):
        PeftType("LANDERMT")


def test_found_under_member_and_string() -> None:
    assert PEFT_TYPE_TO_CONFIG_MAPPING["LANDER"] is LanderConfig  # transformers looks types up by string
    assert {PeftType.LANDER: 1}["LANDER"] == 1


def test_member_survives_copies_and_json() -> None:
    member = PeftType("LANDER")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(member, protocol)) is member
    assert copy.deepcopy(member) is member and copy.copy(member) is member
    assert json.dumps({"peft_type": member}) == '{"peft_type": "LANDER"}'


@one_architecture
@pytest.mark.parametrize("with_map", [True, False])
def test_config_survives_copies(neuron_map: NeuronMap, with_map: bool) -> None:
    config = make_config(neuron_map if with_map else None, ["en-de"] if with_map else None, general_rank=4)
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config and twin is not config
        assert twin.peft_type is PeftType.LANDER
        assert (twin.neuron_map is not None) == with_map
        if with_map:
            assert twin.neuron_map.signature == neuron_map.signature
            assert twin.neuron_map.general(0).equal(neuron_map.general(0))
    assert json.loads(json.dumps(config.to_dict()))["peft_type"] == "LANDER"


def test_register_again_and_reload_are_harmless() -> None:
    register(LanderConfig, LanderModel)
    assert_registered_once()
    importlib.reload(peft_landermt)
    assert_registered_once()
    assert isinstance(peft.get_peft_model(build_model("llama"), LanderConfig()).base_model, LanderModel)


@pytest.mark.parametrize("version", ["0.1", "0.10.0", "0.17.1", "0.17.2.dev0"])
def test_older_peft_versions_are_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(peft, "__version__", version)
    with pytest.raises(RegistrationError, match=rf"peft=={version}: .*pip install -U 'peft>=0\.18'"):
        check_peft_version()
    with pytest.raises(ImportError):
        register(LanderConfig, LanderModel)


@pytest.mark.parametrize("version", ["0.18.0", "0.18.1", "0.20.0.dev0", "0.21.9", "0.21.2.dev0", "0.21.2+cpu"])
def test_supported_peft_versions(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(peft, "__version__", version)
    check_peft_version()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_newer_peft()
    register(LanderConfig, LanderModel)
    assert_registered_once()


SLOW = [pytest.param(version, marks=pytest.mark.slow) for version in ("0.22.0.dev0", "1.0")]


@pytest.mark.parametrize("version", ["0.22.0", *SLOW])
def test_newer_peft_versions_are_told_once(version: str) -> None:
    """By the import, in one warning that names whoever imports the package, and with the way back."""
    script = (
        "import warnings, peft\n"
        f"peft.__version__ = {version!r}\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        "    import peft_landermt, importlib\n"
        "    importlib.reload(peft_landermt)\n"
        "ours = [each for each in told if 'peft_landermt' in str(each.message)]\n"
        "print(*(f'{each.filename}: {each.message}' for each in ours), sep='\\n')\n"
    )
    root = str(Path(peft_landermt.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"<string>: peft=={version} is newer than any that peft_landermt was tested with (0.21); "
        "if something fails, try: pip install 'peft==0.21.*'"
    ]


def test_foreign_owner_of_the_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = type("LanderConfig", (), {"__module__": "other_package.config"})
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.LANDER, foreign)
    with pytest.raises(RegistrationError, match=r"LANDER belongs to other_package\.config; uninstall"):
        register(LanderConfig, LanderModel)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LANDER] is foreign


SCRIPT = """
import pickle, sys
from peft import PeftConfig
assert "peft_landermt" not in sys.modules
try:
    PeftConfig.from_pretrained(sys.argv[1])
except KeyError as error:
    print("not imported:", error)
config = pickle.load(open(sys.argv[2], "rb"))  # names its class, so it imports the package
print("unpickled:", type(config).__name__, config.peft_type.value)
print("imported:", type(PeftConfig.from_pretrained(sys.argv[1])).__name__)
"""


def test_process_that_does_not_import_the_package(tmp_path: Path) -> None:
    """PEFT alone knows no LANDER and says so with a bare KeyError, as README and model card tell; importing the
    package is all it takes."""
    model = adapt(build_model("llama"))
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "config.pkl").write_bytes(pickle.dumps(model.peft_config["default"]))
    root = str(Path(peft_landermt.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "adapter"), str(tmp_path / "config.pkl")]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "not imported: 'LANDER'",
        "unpickled: LanderConfig LANDER",
        "imported: LanderConfig",
    ]
    for text in (Path(__file__).parents[2] / "README.md", tmp_path / "adapter" / "README.md"):
        assert "`KeyError: 'LANDER'`" in text.read_text(encoding="utf-8")
