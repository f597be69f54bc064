import csv
import json
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from manifests.corpora import SongListing, get_corpus
from manifests.roots import locate
from mgeldm import audio
from pipelines.scan import list_units, preview
from pipelines.song_signals import decode_song
from tests.support.datasets import RATE, STEMS, encoded, hf_dataset, hf_rows, write_hf, write_hf_layout
from tests.support.listings import codes, listed, refused
from tests.support.remote import upload, without_state
from tests.support.scans import codes as song_codes
from tests.support.scans import scanned
from tests.support.sounds import sound
from training.waveforms import read_stem

SONGS = {"train": ("a", "b", "c"), "test": ("d",)}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    return {split: hf_rows(songs) for split, songs in SONGS.items()}


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, list[dict[str, Any]]]) -> Path:
    return write_hf(tmp_path_factory.mktemp("hf") / "parquet", rows)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, list[dict[str, Any]]]) -> Path:
    root = tmp_path_factory.mktemp("hf") / "saved"
    datasets.DatasetDict({split: hf_dataset(part) for split, part in rows.items()}).save_to_disk(str(root))
    return root


@pytest.fixture(scope="module")
def audiofolder(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, list[dict[str, Any]]]) -> Path:
    """Files and their metadata, as JSON lines in one split and as CSV in the other."""
    root = tmp_path_factory.mktemp("hf") / "folder"
    for split, part in rows.items():
        (root / split / "audio").mkdir(parents=True)
        lines = []
        for row in part:
            line = {"track": row["track"], "title": row["title"]}
            for column in ("mix", *STEMS):
                name = f"audio/{row['track']}-{column}.flac"
                (root / split / name).write_bytes(row[column]["bytes"])
                line[f"{column}_file_name"] = name
            lines.append(line)
        if split == "train":
            (root / split / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            with open(root / split / "metadata.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, lines[0])
                writer.writeheader()
                writer.writerows(lines)
    return root


@pytest.fixture
def layout(tmp_path: Path) -> str:
    return str(write_hf_layout(tmp_path / "hf.yaml"))


def paths(listing: SongListing) -> list[str]:
    return [stem.path for stem in listing.stems]


def test_rows_are_songs(parquet: Path, layout: str) -> None:
    songs = listed(layout, parquet)
    assert {name: song.subset for name, song in songs.items()} == {
        "a": "train",
        "b": "train",
        "c": "train",
        "d": "test",
    }
    table = "data/train-00000-of-00001.parquet"
    song = songs["b"]
    assert paths(song) == [f"{table}#1/{column}" for column in STEMS]
    assert {stem.stem_id: stem.label for stem in song.stems} == STEMS
    assert song.mixture == f"{table}#1/mix"
    assert song.extra == {"title": "Title of b"}
    assert song.license == "CC0-1.0"
    assert not song.problems


def test_all_forms_of_a_data_set_give_the_same_audio(
    parquet: Path, saved: Path, audiofolder: Path, layout: str, tmp_path: Path, rows: dict[str, list[dict[str, Any]]]
) -> None:
    first = scanned(layout, parquet, tmp_path / "parquet.parquet")
    for root in (parquet, saved, audiofolder):
        songs = scanned(layout, root, tmp_path / f"{root.name}.parquet")
        assert list(songs) == ["a", "b", "c", "d"]
        for name, song in songs.items():
            assert not song.problems
            assert song.mixture
            assert [stem.fingerprint for stem in song.stems] == [stem.fingerprint for stem in first[name].stems]
            assert [stem.instrument for stem in song.stems] == ["vocals", "drums", "bass"]
            assert song.duration_s == 2.0
    song = first["b"]
    assert song.stems[0].size == (parquet / "data/train-00000-of-00001.parquet").stat().st_size
    wave = sound("hf", "b", "kit", seconds=2.0, rate=RATE)
    signals, errors = decode_song(song, ["kit"], {RATE: 1})
    assert not errors
    np.testing.assert_allclose(signals.pieces[0].waves[RATE]["kit"], wave, atol=1e-4)
    np.testing.assert_allclose(read_stem(song, song.stems[1], 0.5, 8_000, RATE), wave[:, 8_000:16_000], atol=1e-4)


def test_an_unchanged_data_set_is_not_read_again(
    parquet: Path, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(parquet, tmp_path / "copy")
    before = scanned(layout, root)
    monkeypatch.setattr("pipelines.scan.measure_song", None)
    assert scanned(layout, root) == before
    monkeypatch.undo()
    write_hf(root, {"test": hf_rows(["d"], seconds=3.0)})
    assert scanned(layout, root)["d"].duration_s == 3.0


def test_a_dry_run_counts_each_table_once(parquet: Path, layout: str) -> None:
    sizes = sum(path.stat().st_size for path in parquet.rglob("*.parquet"))
    assert preview([(layout, parquet)]) == {"songs": 4, "stems": 12, "bytes": sizes, "problems": {}}


def test_a_data_set_may_be_remote(parquet: Path, audiofolder: Path, layout: str, tmp_path: Path) -> None:
    for root in (parquet, audiofolder):
        url = upload(root, f"memory://hub/{root.name}")
        far = scanned(layout, url, tmp_path / "far.parquet")
        near = scanned(layout, root, tmp_path / "near.parquet")
        assert {name: without_state(song) for name, song in far.items()} == {
            name: without_state(song) for name, song in near.items()
        }
        assert far["a"].root == url
        assert not any(song.problems for song in far.values())


def test_arrow_files_from_afar_are_refused(saved: Path, layout: str) -> None:
    url = upload(saved, "memory://hub/saved")
    refused(lambda: list_units([(layout, url)]), url, "save it as Parquet")


def test_without_an_id_a_song_is_called_by_its_content(tmp_path: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    layout = str(write_hf_layout(tmp_path / "hf.yaml", id=None))
    forwards = listed(layout, write_hf(tmp_path / "one", {"train": rows["train"]}))
    backwards = listed(layout, write_hf(tmp_path / "two", {"train": rows["train"][::-1]}))
    assert len(forwards) == 3
    titles = {name: song.extra["title"] for name, song in forwards.items()}
    assert titles == {name: song.extra["title"] for name, song in backwards.items()}
    assert all(len(name) == 32 for name in titles)


def test_rows_that_share_an_id_are_told_apart_by_content(
    tmp_path: Path, layout: str, rows: dict[str, list[dict[str, Any]]]
) -> None:
    a, b, c = rows["train"]
    same = {**b, "track": "a"}
    nameless = {**c, "track": None}
    names = set(listed(layout, write_hf(tmp_path / "one", {"train": [a, same, b, nameless]})))
    assert names == set(listed(layout, write_hf(tmp_path / "two", {"train": [nameless, b, same, a]})))
    assert len(names) == 4
    assert "b" in names
    assert sum(name.startswith("a~") for name in names) == 2
    # The same audio in two subsets stays two songs, for the leak to be seen.
    leak = listed(layout, write_hf(tmp_path / "three", {"train": [a, a], "test": [a]}))
    stem = next(iter(leak)).partition("~")[0]
    assert {name.removeprefix(stem).split("~", 2)[2]: song.subset for name, song in leak.items()} == {
        "train": "train",
        "train-2": "train",
        "test": "test",
    }


def test_what_may_be_left_of_the_mixture_is_handed_on(parquet: Path, tmp_path: Path) -> None:
    layout = write_hf_layout(tmp_path / "hf.yaml", residual_db=-20)
    assert {song.residual_db for song in listed(str(layout), parquet).values()} == {-20}


def test_numbers_are_ids_too(tmp_path: Path, layout: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    root = write_hf(tmp_path / "x", {"train": [{**row, "track": number} for number, row in enumerate(rows["train"])]})
    assert list(listed(layout, root)) == ["0", "1", "2"]


def test_subsets_come_from_a_column_or_the_splits(tmp_path: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    def subsets(layout: Path, root: Path) -> dict[str, tuple[str, list[Any]]]:
        return {name: (song.subset, codes(song)) for name, song in listed(str(layout), root).items()}

    folds = [{**row, "fold": fold} for row, fold in zip(rows["train"], (1, 2, None), strict=True)]
    root = write_hf(tmp_path / "x", {"train": folds})
    by_column = write_hf_layout(tmp_path / "a.yaml", subset="fold", subsets={1: "validation", "2": "test"})
    unknown = ("train", [("unknown_subset", None)])
    assert subsets(by_column, root) == {"a": ("validation", []), "b": ("test", []), "c": unknown}
    root = write_hf(tmp_path / "y", {"train": rows["train"][:1], "validation": rows["train"][1:2]})
    (root / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files:\n  - {split: odd, path: data/train*}\n"
        "- config_name: two\n  data_files:\n  - {split: dev, path: data/val*}\n---\n"
    )
    assert subsets(write_hf_layout(tmp_path / "b.yaml", config="one"), root) == {"a": unknown}
    assert subsets(write_hf_layout(tmp_path / "c.yaml", config="two"), root) == {"b": ("validation", [])}
    mapped = write_hf_layout(tmp_path / "d.yaml", config="one", subsets={"odd": "test"})
    assert subsets(mapped, root) == {"a": ("test", [])}
    refused(lambda: subsets(write_hf_layout(tmp_path / "e.yaml"), root), str(root), "one", "two")


def test_a_row_without_a_stem_is_a_song_without_it(
    tmp_path: Path, layout: str, rows: dict[str, list[dict[str, Any]]]
) -> None:
    a, b, c = rows["train"]
    root = write_hf(tmp_path / "x", {"train": [a, {**b, "kit": None, "mix": None}, c]})
    song = listed(layout, root)["b"]
    assert [stem.stem_id for stem in song.stems] == ["vocals", "low"]
    assert song.mixture is None
    assert song.problems[0].code == "no_audio"
    assert "kit" in song.problems[0].detail


def test_cells_that_only_name_a_file_lead_to_it_below_the_root_only(
    tmp_path: Path, layout: str, rows: dict[str, list[dict[str, Any]]]
) -> None:
    root = tmp_path / "x"
    for path in (root / "audio/v.flac", root / "audio/k.flac", tmp_path / "secret.flac"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(sound(path.name, seconds=2, rate=RATE)))

    def named(path: object) -> dict[str, Any]:
        return {"bytes": None, "path": str(path)}

    row = {
        **rows["train"][0],
        "vocals": named(root / "audio/v.flac"),
        "kit": named("audio/k.flac"),
        "low": named(tmp_path / "secret.flac"),
        "mix": named("../secret.flac"),
    }
    # `datasets` itself would read these files and write what is in them.
    pq.write_table(pa.Table.from_pylist([row, rows["train"][1]]), root / "train.parquet")
    song = scanned(layout, root)["a"]
    assert [stem.path for stem in song.stems] == ["audio/v.flac", "audio/k.flac", str(tmp_path / "secret.flac")]
    assert [stem.frames for stem in song.stems] == [2 * RATE, 2 * RATE, None]
    assert ("outside_root", "low") in song_codes(song)
    assert song.mixture is None


def test_broken_cells_and_files_are_problems_of_songs(
    tmp_path: Path, layout: str, rows: dict[str, list[dict[str, Any]]]
) -> None:
    a, b, c = rows["train"]
    broken = {**b, "kit": {"bytes": b"no audio", "path": None}, "low": {"bytes": b"", "path": None}}
    root = write_hf(tmp_path / "x", {"train": [a, broken, c], "test": rows["test"]})
    (root / "data/test-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    songs = scanned(layout, root)
    assert song_codes(songs["b"])[:2] == [("unreadable", "kit"), ("empty", "low")]
    assert not songs["a"].problems
    (name,) = songs.keys() - {"a", "b", "c"}
    assert name == "data/test-00000-of-00001.parquet"
    assert songs[name].problems[0].code == "metadata"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, ("unknown key colour",)),
        ({"stems": None}, ("stems missing",)),
        ({"stems": ["a"]}, ("stems is a mapping",)),
        ({"id": ["a"]}, ("id is a text",)),
        ({"extra": "title"}, ("extra is a list",)),
        ({"residual_db": "low"}, ("residual_db is a number",)),
        ({"subsets": {"a": "dev"}}, ("'dev'", "train, validation, test")),
    ],
)
def test_a_wrong_layout_is_refused(tmp_path: Path, changes: Mapping[str, object], words: tuple[str, ...]) -> None:
    path = write_hf_layout(tmp_path / "hf.yaml", **changes)
    refused(lambda: get_corpus(str(path)), str(path), *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": "nosuch"}, ("no column nosuch", "vocals")),
        ({"stems": {"title": "vocals", "kit": "drums"}}, ()),
        ({"stems": {"number": "vocals"}}, ("column number", "holds int, no audio")),
    ],
)
def test_columns_must_be_there_and_hold_audio(
    tmp_path: Path, rows: dict[str, list[dict[str, Any]]], changes: Mapping[str, object], words: tuple[str, ...]
) -> None:
    root = write_hf(tmp_path / "x", {"train": [{**row, "number": 1} for row in rows["train"]]})
    path = str(write_hf_layout(tmp_path / "hf.yaml", **changes))
    if words:
        refused(lambda: listed(path, root), str(root), *words)
    else:
        # A text is the name of a file.
        assert paths(listed(path, root)["a"])[0] == "Title of a"


@pytest.mark.parametrize("make", [lambda root: None, lambda root: (root / "a.bin").write_bytes(b"1")])
def test_a_folder_without_a_data_set_is_refused(tmp_path: Path, layout: str, make: Any) -> None:
    root = tmp_path / "x"
    root.mkdir()
    make(root)
    refused(lambda: listed(layout, root), str(root))


@pytest.mark.parametrize(
    "path", ["https://host.invalid/x.parquet", "hf://datasets/a/b/x.parquet", "../secret/*.parquet", "/etc/*"]
)
def test_a_card_that_leads_elsewhere_is_refused(
    tmp_path: Path, layout: str, rows: dict[str, list[dict[str, Any]]], path: str
) -> None:
    write_hf(tmp_path / "secret", {"train": rows["train"]})
    root = write_hf(tmp_path / "x", rows)
    card = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": [path]}]}]}
    (root / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# A data set\n")
    refused(lambda: listed(layout, root), str(root), "README.md", path)


def test_a_saved_data_set_may_be_one_split_and_names_files_below_the_root_only(
    tmp_path: Path, layout: str, rows: dict[str, list[dict[str, Any]]]
) -> None:
    root = tmp_path / "x"
    hf_dataset(rows["train"]).save_to_disk(str(root))
    assert {name: song.subset for name, song in listed(layout, root).items()} == dict.fromkeys("abc", "train")
    shutil.copy(root / "data-00000-of-00001.arrow", tmp_path / "secret.arrow")
    state = json.loads((root / "state.json").read_text())
    (root / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": "../secret.arrow"}]}))
    (song,) = listed(layout, root).values()
    assert "leaves the root" in song.problems[0].detail
    (root / "state.json").write_text("{}")
    refused(lambda: listed(layout, root), str(root), "_data_files")


def test_a_link_to_a_table_elsewhere_is_not_followed(
    tmp_path: Path, layout: str, rows: dict[str, list[dict[str, Any]]]
) -> None:
    secret = write_hf(tmp_path / "secret", {"test": rows["test"]})
    root = write_hf(tmp_path / "x", {"train": rows["train"]})
    (root / "data/test-00000-of-00001.parquet").symlink_to(secret / "data/test-00000-of-00001.parquet")
    songs = listed(layout, root)
    assert "d" not in songs
    (problem,) = songs["data/test-00000-of-00001.parquet"].problems
    assert problem.code == "metadata"
    assert "leaves the root" in problem.detail


def test_listing_writes_nothing_below_the_root(parquet: Path, audiofolder: Path, saved: Path, layout: str) -> None:
    for root in (parquet, audiofolder, saved):
        before = sorted(root.rglob("*"))
        listed(layout, root)
        assert sorted(root.rglob("*")) == before


def test_a_cell_is_decoded_in_place(parquet: Path, layout: str) -> None:
    (path, *_) = paths(listed(layout, parquet)["c"])
    place = locate(parquet, path)
    assert place is not None
    np.testing.assert_allclose(audio.read(place), sound("hf", "c", "vocals", seconds=2.0, rate=RATE), atol=1e-4)
