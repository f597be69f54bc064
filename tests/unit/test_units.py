import itertools
import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.atomic import TEMPORARY_PREFIX
from manifests.errors import ManifestError, ShardError
from manifests.shards import SHARDS_FOLDER, IndexRow
from manifests.songs import Song
from manifests.splits import Split, StemGain, Window
from manifests.units import (
    Failure,
    Sidecar,
    Unit,
    assign_units,
    parse_sidecar,
    plan_hash,
    read_failures,
    read_sidecars,
    read_units,
    sidecar_name,
    unit_name,
    write_failures,
    write_sidecar,
    write_units,
)
from tests.support.songs import made_song, made_stem

SPLIT = Split(source=("drums",), submix=("bass", "piano"), source_text="drums", submix_text="bass and piano")
STEMS = tuple(made_stem(name) for name in ("drums", "bass", "piano", "guitar"))
UNIT = Unit(corpus="c", subset="train", songs=("c/1", "c/2"))
ROW = IndexRow(
    shard="u.tar",
    offset=0,
    size=2048,
    key="k",
    corpus="c",
    subset="train",
    song_id="c/1",
    splits=1,
    instruments=("drums",),
    latents_offset=512,
    embeddings_offset=1024,
    json_offset=1536,
    json_size=20,
    checksum="00",
)
FAILURE = Failure(unit="u", song_id="c/2", window_id="w", stage="decode", code="missing", message="no such file ü")
SIDECAR = Sidecar(
    shard="u.tar",
    sha256="ab",
    size=5,
    plan="p",
    encoder="e",
    rows=(ROW, replace(ROW, key="l", offset=2048)),
    failures=(FAILURE,),
    latent_count=7,
    latent_sum=(0.1, 1 / 3),
    latent_squares=(1e-17, 2.0),
    seconds=20.48,
    songs=("c/1",),
)


def windows_of(song: str, count: int = 1) -> tuple[Window, ...]:
    return tuple(
        Window(window_id=f"{song}-{n}", song_id=song, start_s=10.0 * n, duration_s=10.0, splits=(SPLIT,))
        for n in range(count)
    )


corpora = st.dictionaries(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["train", "test"]), st.integers(0, 30)), st.integers(1, 9)
)


def library(found: dict[tuple[str, str, int], int]) -> tuple[dict[str, Song], dict[str, tuple[Window, ...]]]:
    songs = {}
    for corpus, subset, number in found:
        song = f"{corpus}/{subset}{number}"
        songs[song] = made_song(song, STEMS, subset=subset)
    windows = {name: windows_of(name, count) for name, count in zip(songs, found.values(), strict=True)}
    return songs, windows


@given(corpora, st.integers(1, 12))
def test_every_song_stands_in_one_unit_of_its_corpus_and_subset(
    found: dict[tuple[str, str, int], int], limit: int
) -> None:
    songs, windows = library(found)
    units = assign_units([], windows, songs, limit)
    assert sorted(song for unit in units for song in unit.songs) == sorted(songs)
    for unit in units:
        assert {(songs[name].corpus, songs[name].subset) for name in unit.songs} == {(unit.corpus, unit.subset)}
        count = sum(len(windows[name]) for name in unit.songs)
        assert count <= limit or len(unit.songs) == 1
    # No two neighbours would have fitted into one.
    for one, two in itertools.pairwise(units):
        if (one.corpus, one.subset) == (two.corpus, two.subset):
            assert sum(len(windows[name]) for name in (*one.songs, two.songs[0])) > limit


@given(corpora, corpora, st.integers(1, 12), st.randoms(use_true_random=False))
def test_units_only_grow_and_do_not_depend_on_the_order_of_songs(
    first: dict[tuple[str, str, int], int], second: dict[tuple[str, str, int], int], limit: int, shuffle: Random
) -> None:
    songs, windows = library(first)
    units = assign_units([], windows, songs, limit)
    names = list(windows)
    shuffle.shuffle(names)
    assert assign_units([], {name: windows[name] for name in names}, songs, limit) == units
    assert assign_units(units, windows, songs, limit + 5) == units
    more_songs, more_windows = library(second | first)
    grown = assign_units(units, more_windows, more_songs, limit)
    assert grown[: len(units)] == units
    assert sorted(song for unit in grown for song in unit.songs) == sorted(more_songs)


def test_a_song_that_moved_to_another_subset_gets_a_new_place() -> None:
    songs = {name: made_song(name, STEMS) for name in ("c/1", "c/2")}
    windows = {name: windows_of(name) for name in songs}
    moved = songs | {"c/2": replace(songs["c/2"], subset="test")}
    assert assign_units([UNIT], windows, moved, 10) == [UNIT, Unit(corpus="c", subset="test", songs=("c/2",))]
    assert assign_units([UNIT], {"c/1": windows["c/1"]}, moved, 10) == [UNIT]


def test_a_shard_is_named_after_all_that_goes_into_it() -> None:
    songs = {"c/1": made_song("c/1", STEMS)}
    window = windows_of("c/1")[0]

    def name(window: Window = window, songs: dict[str, Song] = songs, encoder: str = "e", unit: Unit = UNIT) -> str:
        return unit_name(unit, plan_hash([window], songs), encoder)

    def with_stem(number: int, **change: object) -> dict[str, Song]:
        stems = list(STEMS)
        stems[number] = replace(stems[number], **change)  # type: ignore[arg-type]
        return {"c/1": replace(songs["c/1"], stems=tuple(stems))}

    kept = name()
    assert kept.startswith("c-train-")
    assert len(kept) == len("c-train-") + 12
    changed = [
        name(replace(window, start_s=0.128)),
        name(replace(window, duration_s=9.0)),
        name(replace(window, splits=(replace(SPLIT, source_text="kit"),))),
        name(replace(window, splits=(SPLIT, SPLIT))),
        name(replace(window, gains=(StemGain(stem_id="bass", gain_db=1.5),))),
        name(encoder="f"),
        name(unit=replace(UNIT, subset="test")),
        name(songs=with_stem(0, fingerprint="00")),
        name(songs=with_stem(1, offset_frames=5)),
        name(songs=with_stem(2, instrument="organ")),
        name(songs={"c/1": replace(songs["c/1"], license="MIT")}),
    ]
    assert len({kept, *changed}) == len(changed) + 1
    # What no sample holds does not matter: where the corpus lies, stems that the plan does not use, times of files.
    assert name(songs=with_stem(3, fingerprint="00")) == kept
    assert name(songs=with_stem(0, mtime_ns=5, path="elsewhere.wav")) == kept
    assert name(songs={"c/1": replace(songs["c/1"], root="/moved")}) == kept


def test_units_and_failures_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert read_units(tmp_path) == []
    units = [Unit(corpus="z", subset="test", songs=("z/ü",)), UNIT]
    write_units(tmp_path, units)
    assert read_units(tmp_path) == units
    other = replace(FAILURE, window_id="a")
    write_failures(tmp_path, [FAILURE, other])
    assert read_failures(tmp_path) == [other, FAILURE]
    write_failures(tmp_path, [])
    assert read_failures(tmp_path) == []
    (tmp_path / "units.parquet").write_bytes(b"PAR1")
    with pytest.raises(ManifestError, match=r"units.parquet: not a readable Parquet file"):
        read_units(tmp_path)


def test_a_sidecar_comes_back_while_its_shard_is_whole(tmp_path: Path) -> None:
    shard = tmp_path / SHARDS_FOLDER / "u.tar"
    write_sidecar(tmp_path, "u", SIDECAR)
    assert parse_sidecar(tmp_path, "u") == SIDECAR
    assert read_sidecars(tmp_path, ["u"])["u"] is None
    shard.write_bytes(b"12345")
    assert read_sidecars(tmp_path, ["u"])["u"] == SIDECAR
    shard.write_bytes(b"1234")
    assert read_sidecars(tmp_path, ["u"])["u"] is None
    assert not list(tmp_path.rglob(f"{TEMPORARY_PREFIX}*"))


def test_a_sidecar_that_is_none_marks_nothing_complete(tmp_path: Path) -> None:
    (tmp_path / SHARDS_FOLDER).mkdir()
    (tmp_path / SHARDS_FOLDER / "u.tar").write_bytes(b"12345")
    path = tmp_path / sidecar_name("u")
    write_sidecar(tmp_path, "u", SIDECAR)
    raw = json.loads(path.read_text())
    damages = [
        "",
        "null",
        "[1]",
        "{}",
        '"text"',
        path.read_text()[:-10],
        json.dumps(raw | {"more": 1}),
        json.dumps(raw | {"rows": [{}]}),
        json.dumps(raw | {"rows": None}),
        json.dumps({key: value for key, value in raw.items() if key != "sha256"}),
    ]
    for damage in damages:
        path.write_text(damage)
        assert read_sidecars(tmp_path, ["u"])["u"] is None
        with pytest.raises(ShardError, match=r"u.json: not a readable sidecar"):
            parse_sidecar(tmp_path, "u")
    path.unlink()
    assert read_sidecars(tmp_path, ["u"])["u"] is None
