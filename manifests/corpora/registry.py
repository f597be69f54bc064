"""Finding a corpus by name or by the path of a YAML layout."""

from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from manifests.corpora.base import Corpus, read_mapping
from manifests.corpora.cocochorales import CocoChorales
from manifests.corpora.huggingface import KIND, HuggingFace
from manifests.corpora.layout import FolderLayout
from manifests.corpora.medleydb import MedleyDB
from manifests.corpora.moisesdb import MoisesDB
from manifests.corpora.mtgjamendo import MTGJamendo
from manifests.corpora.musdb18 import Musdb18
from manifests.corpora.slakh import Slakh2100
from manifests.errors import CorpusError

ENTRY_POINTS = "mgeldm.corpora"
_LAYOUTS = Path(__file__).with_name("layouts")
_ADAPTERS: dict[str, Callable[[], Corpus]] = {
    CocoChorales.name: CocoChorales,
    MedleyDB.name: MedleyDB,
    MoisesDB.name: MoisesDB,
    MTGJamendo.name: MTGJamendo,
    Musdb18.name: Musdb18,
    Slakh2100.name: Slakh2100,
    f"{Slakh2100.name}-redux": partial(Slakh2100, "redux"),
    f"{Slakh2100.name}-splits-v2": partial(Slakh2100, "splits-v2"),
}


def corpus_names() -> list[str]:
    """Names that `get_corpus` knows: adapters, shipped layouts, third parties' entry points."""
    return sorted({*_ADAPTERS, *_layouts(), *(point.name for point in entry_points(group=ENTRY_POINTS))})


def get_corpus(name: str) -> Corpus:
    """The corpus called ``name``, or the layout at the path ``name`` if it ends in .yaml or .yml.

    Raises:
        CorpusError: no such corpus or layout, or the layout is wrong, or another package's corpus cannot be loaded.
    """
    if name in _ADAPTERS:
        return _ADAPTERS[name]()
    if path := layout_path(name):
        return _load(path)
    for point in entry_points(group=ENTRY_POINTS, name=name):
        return _loaded(point)
    raise CorpusError(f"{name}: no such corpus; known: {', '.join(corpus_names())}; or give the path of a layout .yaml")


def layout_path(name: str) -> Path | None:
    """The YAML file of the corpus called ``name``, which may be the path of one; None where there is none."""
    return Path(name) if name.endswith((".yaml", ".yml")) else _layouts().get(name)


def _loaded(point: EntryPoint) -> Corpus:
    try:
        corpus: Corpus = point.load()()
    # Whatever another package does when it is imported, this one goes on.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CorpusError(f"{point.name}: its entry point {point.value!r} cannot be loaded ({reason})") from error
    return corpus


def _layouts() -> dict[str, Path]:
    return {path.stem: path for path in _LAYOUTS.glob("*.yaml")}


def _load(path: Path) -> Corpus:
    """The corpus of a YAML file: its ``kind`` says of which make it is, a folder layout by default."""
    try:
        kind = read_mapping(path).get("kind")
    except ValueError:
        kind = None  # told by the loader
    return HuggingFace.load(path) if kind == KIND else FolderLayout.load(path)
