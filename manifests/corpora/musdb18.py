"""MUSDB18: 150 songs, the mixture and four stems of each as the audio streams of one file (Rafii et al., 2017).

    ROOT/{train,test}/<Artist> - <Title>.stem.mp4

Stereo AAC of 44.1 kHz. The mixture is coded on its own, so that the stems do not sum to it exactly. MUSDB18-HQ, the
same songs as WAV, is a layout; its file holds the validation songs and the errata of both.
"""

import logging
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from manifests.corpora.base import SongListing, StemListing, leaves, read_mapping
from manifests.corpora.layout import FolderLayout
from manifests.errors import CorpusError

_SUFFIX = ".stem.mp4"
_STREAMS = {"drums": 1, "bass": 2, "other": 3, "vocals": 4}
_HERE = Path(__file__).parent

logger = logging.getLogger(__name__)


class Musdb18:
    """The compressed version and its previews of 7 s. The mixture is a file's first audio stream."""

    name = "musdb18"
    license = "LicenseRef-MUSDB18"
    citation = "Rafii et al., The MUSDB18 corpus for music separation, 2017, doi:10.5281/zenodo.1117372"

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List songs in the order of their paths. Raises CorpusError when no .stem.mp4 is in the two folders."""
        paths = [f"{folder}/{name}" for folder in ("test", "train") for name in _names(root, root / folder)]
        songs = [path for path in paths if path.endswith(_SUFFIX)]
        if not songs:
            raise CorpusError(f"{root}: no MUSDB18 here; expected train|test/<Artist> - <Title>{_SUFFIX}")
        if len(songs) < len(paths):
            other = next(path for path in paths if not path.endswith(_SUFFIX))
            logger.warning("%s: %d files are no %s, such as %r", root, len(paths) - len(songs), _SUFFIX, other)
        yield from map(self._song, songs)

    def _song(self, path: str) -> SongListing:
        song = path.removesuffix(_SUFFIX)
        folder, name = song.split("/", 1)
        extra: dict[str, str | int] = {"mixture_stream": 0}
        if note := musdb18hq().notes.get(name):
            extra["notes"] = note
        if twin := {name: twin for twin, name in in_medleydb().items()}.get(name):
            extra["medleydb"] = twin
        return SongListing(
            song=song,
            subset=musdb18hq().subsets.get(name, folder),
            stems=tuple(
                StemListing(stem_id=label, path=path, label=label, stream=stream) for label, stream in _STREAMS.items()
            ),
            mixture=path,
            license=self.license,
            extra=extra,
        )


@cache
def musdb18hq() -> FolderLayout:
    """The layout of MUSDB18-HQ."""
    return FolderLayout.load(_HERE / "layouts" / "musdb18hq.yaml")


@cache
def in_medleydb() -> dict[str, str]:
    """The songs that are in MedleyDB too: id in MedleyDB -> name in MUSDB18."""
    return {str(key): str(name) for key, name in read_mapping(_HERE / "musdb18_medleydb.yaml").items()}


def _names(root: Path, folder: Path) -> list[str]:
    if leaves(root, folder):
        raise CorpusError(f"{folder}: cannot be listed (a link that leaves the root)")
    try:
        return sorted(name for name in os.listdir(folder) if name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be listed ({error.strerror})") from None
