"""What parameters can name: language models on this machine, and the data sets that come with sae-probes."""

import csv
import importlib.util
import re
from functools import cache
from pathlib import Path

import zstandard

from husai_lib.files import REPOSITORY

HEADER_BYTES = 2**26  # of a GGUF file: enough for the metadata, whose size depends on the vocabulary
HUSAI16 = [
    "100_news_fake", "105_click_bait", "106_hate_hate", "107_hate_offensive", "110_aimade_humangpt3", "113_movie_sent",
    "114_nyc_borough_Manhattan", "115_nyc_borough_Brooklyn", "116_nyc_borough_Bronx", "117_us_state_FL",
    "118_us_state_CA", "119_us_state_TX", "120_us_timezone_Chicago", "121_us_timezone_New_York",
    "122_us_timezone_Los_Angeles", "123_world_country_United_Kingdom",
]  # fmt: skip
"""The probing data sets of earlier cycles."""


def local_path(source: str) -> Path | None:
    """The path that a model's name gives on this machine; None for a hub name."""
    if source.startswith("package:"):
        return package_path(source)
    if source.endswith(".gguf") or source.startswith((".", "/", "~")):
        return REPOSITORY / Path(source).expanduser()
    return None


def layer_count(path: Path) -> int | None:
    """The number of layers of a GGUF file or a Hugging Face folder; None for anything else."""
    return _number_in(path, "num_hidden_layers|n_layers?|num_layers", b"block_count")


def hidden_size(path: Path) -> int | None:
    """The dimensions of the residual stream of the same."""
    return _number_in(path, "hidden_size|n_embd|d_model", b"embedding_length")


def _number_in(path: Path, config_key: str, gguf_key: bytes) -> int | None:
    try:
        if path.is_dir():
            text = (path / "config.json").read_text(encoding="utf-8")
            found = re.search(rf'"(?:{config_key})": *(\d+)', text)
            return int(found[1]) if found else None
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)  # searched for the key, as the reader of the package gguf takes seconds
        # the type of these values is uint32, whose number is 4
        number = re.search(rb"\." + gguf_key + rb"\x04\0\0\0(.{4})", header, re.DOTALL)
        return int.from_bytes(number[1], "little") if number and header.startswith(b"GGUF") else None
    except (OSError, UnicodeDecodeError):
        return None


def package_path(source: str) -> Path:
    """The file or folder that `package:<package>/<path>` names; ValueError if it is not installed."""
    package, _, inner = source.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package {package!r} is not installed; 'make setup' installs the one of the quickstart")
    return Path(spec.submodule_search_locations[0]) / inner


@cache
def probe_data_folder() -> Path:
    """The folder of sae-probes that holds its data sets, found without importing the package."""
    return package_path("package:sae_probes/data")


@cache
def data_set_names() -> tuple[str, ...]:
    """The binary probing data sets of sae-probes, such as `100_news_fake`, by its index."""
    with zstandard.open(probe_data_folder() / "probing_datasets_MASTER.csv.zst", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    binary = {Path(row["Dataset save name"]).stem for row in rows if row["Data type"] == "Binary Classification"}
    return tuple(name for name in text_set_names() if name in binary)


def text_set_names() -> tuple[str, ...]:
    """All data sets of sae-probes as sources of text, those with many classes or a continuous target included."""
    return _names_in("cleaned_data", ".csv.zst")


def shifted_data_set_names() -> tuple[str, ...]:
    """The data sets of sae-probes that also have a shifted set."""
    return _names_in("OOD data", "_OOD.csv.zst")


@cache
def _names_in(folder: str, ending: str) -> tuple[str, ...]:
    return tuple(sorted(p.name.removesuffix(ending) for p in (probe_data_folder() / folder).glob(f"*{ending}")))
