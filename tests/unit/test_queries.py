"""Filters in a person's own words."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.duplicates import judged_together
from manifests.errors import ConfigError, ManifestError, StoreError
from manifests.lint import lint_songs
from manifests.queries import COLUMNS, filter_songs, opened
from manifests.song_stats import song_stats
from manifests.songs import SONGS_SCHEMA, Problem, Song, read_songs, songs_metadata, write_songs
from tests.support.songs import made_song, made_stem

SONGS = [
    made_song("medleydb/1", [made_stem("drums"), made_stem("bass")], [Problem(code="narrow_band", detail="x")]),
    made_song("moisesdb/1", [made_stem("drums"), made_stem("piano")], subset="test"),
    made_song("moisesdb/2", [made_stem("guitar"), made_stem("bass", seconds=90)]),
    made_song("moisesdb/it's", [made_stem("drums")], [Problem(code="single_stem")]),
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A name with a quote, as any folder may have one.
    path = tmp_path_factory.mktemp("it's") / "so'ngs.parquet"
    write_songs(path, SONGS, {"config": "abc"})
    return path


def kept(manifest: Path, where: str) -> list[str]:
    out = manifest.parent / "small.parquet"
    summary = filter_songs(manifest, where, out)
    songs = read_songs(out)
    assert songs == [song for song in SONGS if song in songs], "kept as they were, in order"
    assert (summary.songs, summary.of) == (len(songs), len(SONGS))
    assert summary.hours == pytest.approx(sum(song.duration_s for song in songs) / 3600)
    return [song.song_id for song in songs]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("corpus == 'moisesdb' and 'drums' in instruments", ["moisesdb/1", "moisesdb/it's"]),
        ("corpus = 'medleydb' OR subset IN ('test')", ["medleydb/1", "moisesdb/1"]),
        ("has_problem('narrow_band')", ["medleydb/1"]),
        ("not HAS_PROBLEM ( 'narrow_band' ) and usable", ["moisesdb/1", "moisesdb/2"]),
        ("duration_s > 60", ["moisesdb/2"]),
        ("hours > 60 / 3600.0", ["moisesdb/2"]),
        ("stem_count == 1", ["moisesdb/it's"]),
        ("'keys' in families or 'guitar' in labels", ["moisesdb/1", "moisesdb/2"]),
        ("len(problems) > 0", ["medleydb/1", "moisesdb/it's"]),
        ("song_id like 'moisesdb/%' -- and a comment", ["moisesdb/1", "moisesdb/2", "moisesdb/it's"]),
        ("song_id == 'moisesdb/it''s'", ["moisesdb/it's"]),
        ("song_id == 'has_problem(1)'", []),
        ("true", ["medleydb/1", "moisesdb/1", "moisesdb/2", "moisesdb/it's"]),
        ("mixture_audio.lufs > 0", []),
    ],
)
def test_songs_for_which_the_expression_is_true_are_kept(manifest: Path, where: str, expected: list[str]) -> None:
    assert kept(manifest, where) == expected


def test_metadata_schema_and_row_groups_stay(manifest: Path, tmp_path: Path) -> None:
    filter_songs(manifest, "true", tmp_path / "all.parquet")
    assert (tmp_path / "all.parquet").read_bytes() == manifest.read_bytes()
    filter_songs(manifest, "false", tmp_path / "none.parquet")
    assert songs_metadata(tmp_path / "none.parquet") == songs_metadata(manifest)
    assert pq.read_schema(tmp_path / "none.parquet").equals(SONGS_SCHEMA)


def test_what_was_like_songs_that_are_gone_is_judged_anew(tmp_path: Path) -> None:
    note = Problem(code="clipped", stem_id="drums", detail="x")
    songs = judged_together(
        [
            made_song("a/1", [made_stem("drums"), made_stem("bass")], [note]),
            made_song("a/2", [made_stem("drums"), made_stem("bass")]),
            made_song("b/1", [made_stem("bass"), made_stem("drums")], subset="test"),
            made_song("b/2", [made_stem("piano"), made_stem("organ")], subset="test"),
        ]
    )
    assert [problem.code for problem in songs[0].problems] == ["clipped", "duplicate", "leak"]
    write_songs(tmp_path / "songs.parquet", songs)
    for where, chosen in {
        "subset == 'train'": songs[:2],
        "song_id != 'a/2'": [songs[0], *songs[2:]],
        "song_id in ('a/1', 'b/2')": [songs[0], songs[3]],
        "true": songs,
    }.items():
        filter_songs(tmp_path / "songs.parquet", where, tmp_path / "small.parquet")
        assert read_songs(tmp_path / "small.parquet") == judged_together(chosen)
        assert list(lint_songs(tmp_path / "small.parquet")) == []
    write_songs(tmp_path / "stale.parquet", [songs[0], songs[3]])
    assert [(finding.code, finding.song_id) for finding in lint_songs(tmp_path / "stale.parquet")] == [("stale", "a/1")]


def test_a_problem_that_there_is_not_is_refused(manifest: Path) -> None:
    with pytest.raises(ConfigError, match=r"--where: there is no problem 'typo'; known: metadata, .*narrow_band"):
        filter_songs(manifest, "usable and not has_problem( 'typo' )", manifest.parent / "wrong.parquet")
    assert kept(manifest, "has_problem('narrow' || '_band')") == ["medleydb/1"]
    assert kept(manifest, "has_problem('leak')") == []


def test_a_manifest_may_be_filtered_into_itself(tmp_path: Path) -> None:
    write_songs(tmp_path / "songs.parquet", SONGS)
    filter_songs(tmp_path / "songs.parquet", "subset == 'test'", tmp_path / "songs.parquet")
    assert read_songs(tmp_path / "songs.parquet") == [SONGS[1]]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("corpsu == 'moisesdb'", '"corpsu"'),
        ("corpus == ", "syntax error"),
        ("sum(duration_s) > 3", "aggregates"),
        ("nosuch(corpus)", "nosuch"),
        ("duration_s > 'long'", "'long'"),
        ("  ", "is empty"),
        ("true); drop view songs; select (true", "several statements"),
        ("exists(select * from read_text('/etc/passwd'))", "/etc/passwd"),
        ("corpus == 'mois", "unterminated"),
        ("1) or (1=1", "syntax error"),
        ("hours > 9) or (true", "syntax error"),
        ("true, false", "columns"),
        ("true as yes", "syntax error"),
    ],
)
def test_a_wrong_expression_is_one_line_that_lists_the_columns(manifest: Path, where: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        filter_songs(manifest, where, manifest.parent / "wrong.parquet")
    message = str(caught.value)
    assert message.startswith("--where")
    assert words in message
    assert "\n" not in message
    assert "several" in words or all(column in message for column in COLUMNS)
    assert not (manifest.parent / "wrong.parquet").exists()


@pytest.mark.parametrize("name", ["a [mix] of * and ?.parquet", "plain.parquet", "corpus=x.parquet"])
def test_a_manifest_may_have_any_name_and_a_relative_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_songs(name, SONGS)
    assert filter_songs(name, "duration_s > 60", "out.parquet").songs == 1


def test_an_output_that_cannot_be_written_is_not_blamed_on_the_manifest(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"file/out.parquet: cannot be written"):
        filter_songs(manifest, "true", tmp_path / "file" / "out.parquet")


def test_a_manifest_that_is_damaged_within_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "songs.parquet"
    write_songs(path, SONGS)
    whole = bytearray(path.read_bytes())
    whole[4 : len(whole) // 4] = bytes(len(whole) // 4 - 4)
    path.write_bytes(whole)
    for action in (lambda: read_songs(path), lambda: song_stats(path), lambda: list(lint_songs(path))):
        with pytest.raises(ManifestError, match=r"songs.parquet: ") as caught:
            action()
        assert "\n" not in str(caught.value)


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        filter_songs(tmp_path / "songs.parquet", "true", tmp_path / "out.parquet")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts)
def test_any_text_can_be_asked_for_in_quotes(tmp_path: Path, text: str) -> None:
    song: Song = replace(SONGS[0], subset=text, problems=())
    write_songs(tmp_path / "songs.parquet", [song])
    quoted = "'" + text.replace("'", "''") + "'"
    out = tmp_path / "out.parquet"
    assert filter_songs(tmp_path / "songs.parquet", f"subset == {quoted}", out).songs == 1
    assert (
        filter_songs(tmp_path / "songs.parquet", f"subset != {quoted} or has_problem('' || {quoted})", out).songs == 0
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts)
def test_any_expression_filters_or_is_refused_in_one_line(manifest: Path, where: str) -> None:
    message = ""
    try:
        filter_songs(manifest, where, manifest.parent / "any.parquet")
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


def test_nothing_is_printed_while_a_query_takes_long(manifest: Path) -> None:
    with opened(manifest) as connection:
        assert connection.execute("SELECT current_setting('enable_progress_bar')").fetchone() == (False,)
