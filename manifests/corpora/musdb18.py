"""MUSDB18: 150 songs, the mixture and four stems of each as the audio streams of one file (Rafii et al., 2017).

    ROOT/{train,test}/<Artist> - <Title>.stem.mp4       stereo AAC, 44.1 kHz; 7 s each in the previews

Subsets: the folders, and the 14 validation songs of the authors' loader out of train. MUSDB18-HQ, the same songs as
WAV, is a layout, whose file holds those and the errata of both.
Defects: the mixture is coded on its own, so that the stems sum to it within 15 to 31 dB only, and nothing is left above
16 kHz; errata are notes of the songs; 46 songs are in MedleyDB, 100 in DSD100: works are named.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from manifests.corpora.base import SongListing, read_mapping
from manifests.corpora.layout import FolderLayout

_HERE = Path(__file__).parent


class Musdb18:
    """The compressed version and its previews of 7 s. The mixture is a file's first audio stream."""

    name = "musdb18"
    license = "LicenseRef-MUSDB18"
    citation = "Rafii et al., The MUSDB18 corpus for music separation, 2017, doi:10.5281/zenodo.1117372"

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List songs in the order of their paths. Raises CorpusError when no .stem.mp4 is in the two folders."""
        layout = FolderLayout(
            name=self.name,
            license=self.license,
            song="{subset}/{song}.stem.mp4",
            streams={1: "drums", 2: "bass", 3: "other", 4: "vocals"},
            mixture="{song}.stem.mp4",
            mixture_stream=0,
            subsets=musdb18hq().subsets,
            notes=musdb18hq().notes,
            residual_db=-10.0,
            works=musdb18hq().works,
        )
        twins = {name: twin for twin, name in in_medleydb().items()}
        for listing in layout.songs(root):
            twin = twins.get(listing.song.rsplit("/", 1)[-1])
            yield replace(listing, extra=listing.extra | ({"medleydb": twin} if twin else {}))


@cache
def musdb18hq() -> FolderLayout:
    """The layout of MUSDB18-HQ."""
    return FolderLayout.load(_HERE / "layouts" / "musdb18hq.yaml")


@cache
def in_medleydb() -> dict[str, str]:
    """The songs that are in MedleyDB too: id in MedleyDB -> name in MUSDB18."""
    return {str(key): str(name) for key, name in read_mapping(_HERE / "musdb18_medleydb.yaml").items()}
