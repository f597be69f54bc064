"""Finding an embedder: the one shipped with the package, a folder, or a repository of the Hugging Face hub."""

import copy
import json
from functools import lru_cache
from pathlib import Path

from mgeldm.embedder import clap
from mgeldm.embedder.clap import ClapEmbedder
from mgeldm.embedder.dual import CONFIG_FILE, DualEncoder
from mgeldm.model_folder import Stamp, find_folder, stamp

DEFAULT_EMBEDDER = "default"
_SHIPPED = Path(__file__).parent / "labels-16k"


def load_embedder(name: str = DEFAULT_EMBEDDER) -> DualEncoder | ClapEmbedder:
    """The embedder ``name``: "default" (shipped), a folder of ours or of a CLAP model, or a hub id OWNER/NAME.

    Only a hub id that is no folder here is ever fetched. An embedder is read once, and again where its folder changed;
    each caller gets a module of its own, on the CPU, to move and to change.

    Raises:
        CheckpointError: there is no such embedder, or it is damaged or of another make.
    """
    folder = embedder_folder(name)
    return copy.deepcopy(_read(folder.absolute(), stamp(folder)))


def embedder_folder(name: str) -> Path:
    """The folder that ``name`` stands for. Raises CheckpointError for a hub id that cannot be fetched."""
    if name == DEFAULT_EMBEDDER:
        return _SHIPPED
    return find_folder(name, "embedder", clap.SMALL_FILES, clap.WEIGHTS_PATTERNS)


@lru_cache(maxsize=2)
def _read(folder: Path, _: Stamp) -> DualEncoder | ClapEmbedder:
    """What copies are made of; nobody else gets it."""
    # Whatever is wrong with a configuration, the reader of our own folders says it.
    return ClapEmbedder.load(folder) if _model_type(folder) == clap.MODEL_TYPE else DualEncoder.load(folder)


def _model_type(folder: Path) -> str | None:
    try:
        raw = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return raw.get("model_type") if isinstance(raw, dict) else None
