"""Trees that mean harm, made by hypothesis, through the whole scan."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.errors import MGELDMError
from manifests.problems import Effect, effect
from manifests.songs import Song, read_songs, songs_metadata, write_songs
from pipelines.scan import scan
from tests.support.broken import make_outside
from tests.support.corpora import write_layout
from tests.support.hostile import SUFFIXES, TREES
from tests.support.scans import LOCAL
from tests.support.watching import opened


def check_stems(song: Song) -> None:
    """Each stem was measured, or it is said why not; and what is said is of a stem that is there."""
    problems = {problem.stem_id for problem in song.problems if effect(problem.code) is not Effect.NOTE}
    for stem in song.stems:
        measured = stem.frames is not None and stem.fingerprint and stem.sample_rate
        assert measured or stem.stem_id in problems
        assert stem.frames != 0 or stem.stem_id in problems
        assert len(stem.active()) == -(-(stem.frames or 0) * 10 // (stem.sample_rate or 1))
    assert len({stem.stem_id for stem in song.stems}) == len(song.stems)
    assert {problem.stem_id for problem in song.problems} <= {None, *(stem.stem_id for stem in song.stems)}
    assert all(problem.detail and "\n" not in problem.detail for problem in song.problems)
    assert len(song.usable_stems) != 1


@pytest.mark.parametrize("name", TREES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_any_tree_is_scanned_or_refused(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        root = place / "root"
        root.mkdir()
        outside = make_outside(place / "outside")
        data.draw(TREES[name](root, outside))
        changes = {"song": "{subset}/{song}", "stems": [f"{{label}}{suffix}" for suffix in SUFFIXES], "subsets": {}}
        corpus = str(write_layout(place / "layout.yaml", **changes)) if name == "layout" else name
        out, again = place / "songs.parquet", place / "again.parquet"
        with opened(outside) as names:
            try:
                scan([(corpus, root)], out, runner=LOCAL)
            except MGELDMError as error:
                assert "\n" not in str(error)  # noqa: PT017
                return
        assert names == []
        songs = read_songs(out)
        assert songs
        for song in songs:
            check_stems(song)
        if name == "layout":
            # No file is passed over: it is a stem, or named as left over.
            for song in songs:
                files = len(song.stems) + len(song.extra.get("leftover", ()))
                entry = next((p for p in root.glob("*/*") if song.song_id.endswith(f"/{p.parent.name}/{p.name}")), None)
                assert entry is None or song.problems or files == len(os.listdir(entry))
        write_songs(again, songs, {"config": songs_metadata(out)["config"]})
        assert again.read_bytes() == out.read_bytes()
        again.unlink()
        scan([(corpus, root)], again, runner=LOCAL)
        assert again.read_bytes() == out.read_bytes()
        scan([(corpus, root)], out, runner=LOCAL)
        assert again.read_bytes() == out.read_bytes()
