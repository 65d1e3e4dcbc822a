"""Where a model's ``config.json`` comes from: a file, the configs shipped here, or those of aiconfigurator-core.

``NAME or path -> ModelFile``. Nothing is downloaded.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferencegym_jax.models import shown
from inferencegym_jax.table import TableError, data_path

PACKAGE = "aiconfigurator_core"
SAME_LAYERS = {"MistralForCausalLM": "LlamaForCausalLM"}  # of architectures that the package does not name


@dataclass(frozen=True)
class ModelFile:
    """A model's config.

    Attributes:
        name: as on Hugging Face, or the path that was given.
        config: content of ``config.json``; a separate ``hf_quant_config.json`` is in it as ``quantization_config``.
        engine_path: what aiconfigurator-core is asked for: the name where it knows it, else a folder.
    """

    name: str
    config: Mapping[str, Any]
    engine_path: str


def package_folder() -> Path | None:
    """Folder of the installed aiconfigurator-core; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


@functools.cache
def known_configs() -> dict[str, Path]:
    """Hugging Face name -> config file, of the package and of ``data/model_configs``; the latter alone without it."""
    folder = package_folder()
    configs: dict[str, Path] = {}
    if folder is not None:
        for file in sorted((folder / "model_configs").glob("*_config.json")):
            if not file.name.endswith("_hf_quant_config.json"):
                configs[file.name.removesuffix("_config.json").replace("--", "/")] = file
    for file in sorted(data_path("model_configs").glob("*.json")):
        configs[file.stem.replace("--", "/")] = file
    return configs


def plain_name(name: str) -> str:
    """What names of one model have in common: no owner, no ``Meta-``, no ``-Instruct``, ``-hf``, ``-chat``, ``-it``."""
    plain = name.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    for end in ("-hf", "-instruct", "-chat", "-it", "-base"):
        plain = plain.removesuffix(end)
    return plain


def is_path(model: str) -> bool:
    """Whether a model is given by its ``config.json`` (or the folder of it), not by its name."""
    return Path(model).suffix == ".json" or Path(model).is_dir()


def nearest_names(model: str, most: int = 4) -> list[str]:
    """Names that are known and near to one that is not: those that hold it, then those that are written alike; none
    where nothing is alike."""
    known, plain = list(known_configs()), plain_name(model)
    near = difflib.get_close_matches(plain, [plain_name(one) for one in known], most, 0.5)
    alike = sorted((one for one in known if plain_name(one) in near), key=lambda one: near.index(plain_name(one)))
    holding = [one for one in known if len(plain) >= 3 and plain in one.lower()]
    return list(dict.fromkeys([*holding, *alike]))[:most]


def model_file(model: str) -> ModelFile:
    """The config of a name or of a path to ``config.json`` (or its folder).

    Raises:
        TableError: no such file, not JSON, or a name that is unknown; the message lists the nearest ones.
    """
    path = Path(model)
    if is_path(model):
        file = path / "config.json" if path.is_dir() else path
        config = _read(file)
        return ModelFile(str(model), config, _folder(config))
    known = known_configs()
    name = next((one for one in known if one.lower() == model.lower()), None)
    name = name or next((one for one in known if plain_name(one) == plain_name(model)), None)
    if name is None:
        installed = "" if package_folder() else f"; {MISSING}"
        near, some = nearest_names(model), list(known)[:4]
        listed = f"near it are {', '.join(near)}" if near else f"{len(known)} are, such as {', '.join(some)}"
        raise TableError(
            f"model = {shown(model)}: not known; {listed}. Any other model: give the path of its config.json{installed}"
        )
    file = known[name]
    quant = file.with_name(file.name.replace("_config.json", "_hf_quant_config.json"))
    config = _read(file)
    inside = file.is_relative_to(package_folder() or Path("/nowhere"))
    own = name if inside and name in _served_by_name() else _folder(config)
    if quant != file and quant.is_file():
        stated = _read(quant).get("quantization", {})
        config = {**config, "quantization_config": {"quant_method": "modelopt", **stated}}
    return ModelFile(name, config, own)


MISSING = (
    "the measured kernels are not installed: pip install 'inferencegym-jax[tables]' (aiconfigurator-core 0.12.0 with"
    " pandas and scipy, 620 MB)"
)


@functools.cache
def _served_by_name() -> frozenset[str]:
    """Names that the package resolves itself; it looks for others on the network."""
    from aiconfigurator_core.sdk.common import DefaultHFModels  # pyright: ignore[reportMissingImports]

    return frozenset(DefaultHFModels)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise TableError(f"model = {str(file)!r}: cannot be read as a config.json: {error}") from None
    if not isinstance(content, dict):
        raise TableError(f"model = {str(file)!r}: must hold one JSON object")
    return content


def _folder(config: Mapping[str, Any]) -> str:
    """A folder with this config as its ``config.json``: the package takes a model of its own only so."""
    names = config.get("architectures")
    if isinstance(names, list) and names:
        config = {**config, "architectures": [SAME_LAYERS.get(str(names[0]), names[0])]}
    text = json.dumps(config, sort_keys=True)
    folder = Path(tempfile.gettempdir()) / f"inferencegym-config-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    folder.mkdir(exist_ok=True)
    file = folder / "config.json"
    if not file.is_file() or file.read_text() != text:
        file.write_text(text)
    return str(folder)
