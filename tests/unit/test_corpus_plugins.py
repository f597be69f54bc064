"""Corpora of other packages: a distribution on the path, as an installer leaves it, that announces entry points."""

import json
import textwrap
from pathlib import Path

import pytest

from manifests.corpora import corpus_names, get_corpus
from mgeldm.cli import main
from pipelines.scan import list_units
from tests.support.corpora import write_layout
from tests.support.listings import refused, touch

MODULE = '''
"""Theirs: drawn here.

    ROOT/<song>.d/<label>.wav
"""

from functools import partial
from pathlib import Path

from manifests.corpora import SongListing, StemListing
from manifests.corpora.layout import FolderLayout


class Theirs:
    """A corpus by code."""

    name = "theirs"
    license = "CC0-1.0"
    citation = "Them, 2026"

    def songs(self, root):
        for folder in sorted(root.glob("*.d")):
            names = sorted(path.name for path in folder.iterdir())
            stems = [StemListing(stem_id=n, path=f"{folder.name}/{n}", label=n[:-4]) for n in names]
            yield SongListing(song=folder.name[:-2], subset="test", stems=tuple(stems), license=self.license)


their_layout = partial(FolderLayout.load, Path(__file__).with_name("their_layout.yaml"))


def broken():
    raise RuntimeError("no\\nlicence key")
'''
ENTRY_POINTS = """
[mgeldm.corpora]
theirs = their_package:Theirs
their-layout = their_package:their_layout
broken = their_package:broken
nowhere = no_such_package:Corpus
slakh2100 = their_package:Theirs

[console_scripts]
other = their_package:main
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place on the path with a package and its metadata."""
    place = tmp_path / "site"
    metadata = place / "their_package-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (place / "their_package.py").write_text(textwrap.dedent(MODULE))
    write_layout(place / "their_layout.yaml", name="their-layout")
    monkeypatch.syspath_prepend(place)
    return place


def test_an_installed_package_adds_corpora(installed: Path, tmp_path: Path) -> None:
    assert {"theirs", "their-layout", "broken", "nowhere"} < set(corpus_names())
    root = touch(tmp_path / "root", "a.d/drums.wav", "a.d/oud.wav", "notes/x.wav")
    (song,) = list_units([("theirs", root)])
    assert (song.song_id, song.corpus, song.subset, song.license) == ("theirs/a", "theirs", "test", "CC0-1.0")
    assert [stem.instrument for stem in song.stems] == ["drums", "oud"]
    assert get_corpus("their-layout").name == "their-layout"
    assert [song.song_id for song in list_units([("their-layout", root)])] == ["their-layout/a.d", "their-layout/notes"]


def test_a_name_of_ours_stays_ours(installed: Path) -> None:
    assert get_corpus("slakh2100").name == "slakh2100"
    assert corpus_names().count("slakh2100") == 1


def test_a_package_that_cannot_be_loaded_is_one_line(installed: Path) -> None:
    refused(
        lambda: get_corpus("broken"), "broken: its entry point 'their_package:broken'", "RuntimeError: no licence key"
    )
    refused(lambda: get_corpus("nowhere"), "nowhere: its entry point 'no_such_package:Corpus'", "ModuleNotFoundError")


def test_the_commands_know_it(installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["theirs"] == "CC0-1.0; Them, 2026"
    assert found["broken"].startswith("cannot be used: broken: its entry point")
    assert main(["corpus", "show", "theirs"]) == 0
    assert "ROOT/<song>.d/<label>.wav" in capsys.readouterr().out
    root = touch(tmp_path / "root", "a.d/drums.wav", "a.d/k.flac", "notes/x.wav", "notes/y.txt")
    assert main(["corpus", "check", "theirs", str(root), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["subsets"] == {"test": 1}
    assert [(each["why"], each["example"]) for each in checked["leftover"]] == [
        ("audio that no song lists", "notes/x.wav"),
        ("no audio", "notes/y.txt"),
    ]
    assert main(["corpus", "show", "broken"]) == 2
