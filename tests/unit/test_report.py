"""The report page: what it says, that it stands alone, and what it makes of missing or broken things."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from manifests.errors import ManifestError, MGELDMError
from manifests.songs import Problem, Song, Stem, write_songs
from manifests.splits import Plan, Split, Window, write_splits
from mgeldm import audio
from pipelines import report_plots as plots
from pipelines.report import report

RATE = 16000


class Page(HTMLParser):
    """Texts, attributes and table rows of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())
        if self.rows and self.tags[-1] in ("td", "th") and data.strip():
            self.rows[-1][-1] = self.rows[-1][-1] or data.strip()

    def values(self, tag: str, name: str) -> list[str]:
        return [value for found, key, value in self.attributes if (found, key) == (tag, name)]


def sine(hz: float, amplitude: float, seconds: float = 1.0, rate: int = RATE) -> audio.Wave:
    time = np.arange(int(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * hz * time)).astype(np.float32)[None]


def results(folder: Path, **result: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"model": "run/final", "results": [result]}))
    return folder


def stem(name: str, instrument: str, lufs: float | None, active: list[int]) -> Stem:
    return Stem(
        stem_id=name,
        path=f"{name}.wav",
        label=name,
        instrument=instrument,
        family=instrument,
        sample_rate=RATE,
        channels=1,
        frames=len(active) * RATE // 10,
        lufs=lufs,
        activity=np.packbits(np.array(active, np.uint8)).tobytes(),
    )


def song(name: str, subset: str, *problems: Problem) -> Song:
    stems = (stem("a", "drums", -20.0, [1, 1, 1, 0]), stem("b", '<bass> & "co" $x_1$', None, [0, 1, 0, 0]))
    return Song(song_id=f"toy/{name}", corpus="toy", root="r", subset=subset, duration_s=1800, stems=stems,
                problems=problems)  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("thing") / "demo"
    root.mkdir()
    summary = {
        "title": "Demo <1> & more",
        "seconds": {"scan": 1.5, "train": 4.5},
        "counts": {"songs": 3, "windows": 1234, "problems": {"silent": 2, "truncated": 1}},
        "look": [{"path": "songs.parquet", "how": 'python -c "print(1 < 2)"'}],
    }
    (root / "summary.json").write_text(json.dumps(summary))
    broken = (Problem(code="silent", stem_id="b"), Problem(code="unequal_length"))
    write_songs(root / "songs.parquet", [song("1", "train"), song("2", "train", *broken), song("3", "test")])
    split = Split(source=("a",), submix=("b",), source_text="drums", submix_text="bass")
    window = Window(window_id="w", song_id="toy/1", start_s=0.0, duration_s=36.0, splits=(split, split))
    write_splits(root / "splits.parquet", Plan(windows=(window,), config={"seed": 0}, passed_over={"not active": 41}))
    (root / "run").mkdir()
    lines = [{"step": step, "loss": 10.0 / step, "rate": 0.5} for step in range(1, 101)]
    lines += [{"step": 50, "val_loss": 0.25}, {"step": 100, "val_loss": 0.125}]
    (root / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
    given, outputs, figures = {"mix": "mix.wav"}, {"source": 'so"<urce>.wav'}, {"log-mel L1": 1.23456}
    folder = results(root / "out", task="extract", prompt='a "quoted" <b>', input=None, given=given, outputs=outputs,
                     figures=figures, steps=50, guidance=2.0, seed=123456, seconds=3.25)  # fmt: skip
    audio.save(folder / "mix.wav", sine(1000, 0.5), RATE)
    audio.save(folder / 'so"<urce>.wav', np.repeat(sine(440, 0.25, 2.0), 2, axis=0), RATE)
    return root


@pytest.fixture(scope="module")
def page(demo: Path) -> Page:
    out = demo.parent / "new" / "page.html"
    assert report(demo, out) == out
    return Page(out)


def test_stands_alone(page: Page) -> None:
    assert "http" not in page.source
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    links = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "@import" not in page.source
    assert "prefers-color-scheme: dark" in page.source


def test_references_inside_figures_resolve_and_ids_are_unique(page: Page) -> None:
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert page.values("use", "href")
    assert all(link.startswith("data:image/png;base64,") for link in page.values("image", "href"))
    assert len(page.values("image", "href")) == 2
    wanted = {link[1:] for link in page.values("use", "href") + page.values("a", "href")}
    wanted |= {value.removeprefix("url(#").removesuffix(")") for _, key, value in page.attributes if key == "clip-path"}
    assert wanted
    assert wanted <= set(ids)


def test_summary_shows_stages_total_counts_and_commands(page: Page) -> None:
    assert ["scan", "1.5", "25.0%"] in page.rows
    assert ["train", "4.5", "75.0%"] in page.rows
    assert ["total", "6.0", ""] in page.rows
    assert ["silent", "no 100 ms frame is active", "stem", "2"] in page.rows
    assert ["songs.parquet", 'python -c "print(1 < 2)"'] in page.rows
    assert "1,234" in page.texts


def test_songs_by_subset_and_problems(page: Page) -> None:
    # Song 2 keeps one usable stem, song hours are half an hour each.
    assert ["toy", "test", "1", "1", "2", "0.50"] in page.rows
    assert ["toy", "train", "2", "2", "4", "1.00"] in page.rows
    assert ["total", "", "3", "3", "6", "1.50"] in page.rows
    assert ["silent", "no 100 ms frame is active", "stem", "1"] in page.rows
    assert "50.0%" in page.texts  # (3 + 1) of 8 frames of each song
    assert "75%" in page.texts
    assert "25%" in page.texts
    assert "Loudness of stems (3 silent, short or unread)" in page.texts
    assert ["16,000", "6"] in page.rows
    assert ["1", "6"] in page.rows
    assert ["none given", "3", "1.50"] in page.rows
    for name in ("stems per family", "stems per instrument"):
        assert f"bar chart: {name}" in page.values("svg", "aria-label")
    assert "histogram: integrated loudness (LUFS)" in page.values("svg", "aria-label")


def test_a_histogram_of_many_bins_joins_them() -> None:
    picture = plots.columns({-90: 1, 0: 2, 10: 3}, "level", "stems")
    # Four bins of 1 dB each become one.
    assert picture.count("<path") < 60
    assert "histogram: level" in picture


def test_splits_and_reasons(page: Page) -> None:
    assert ["not active", "41"] in page.rows
    assert ["seed", "0"] in page.rows
    assert "0.01" in page.texts  # 36 s in hours


def test_curves_and_torn_line(page: Page) -> None:
    assert ["loss", "10", "0.1", "0.1", "100"] in page.rows
    assert ["val_loss", "0.25", "0.125", "0.125", "100"] in page.rows
    assert "Lines that could not be read, as after a run that was cut off: 1." in page.texts
    assert "curve of loss over steps" in page.values("svg", "aria-label")
    assert "curve of val_loss over steps" not in page.values("svg", "aria-label")  # drawn with loss


def test_card_plays_what_the_files_hold(page: Page, demo: Path) -> None:
    players = page.values("audio", "src")
    assert len(players) == 2
    for player, name in zip(players, ("mix.wav", 'so"<urce>.wav'), strict=True):
        kind, data = player.split(",", 1)
        assert kind == "data:audio/flac;base64"
        played, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32", always_2d=True)
        assert rate == RATE
        np.testing.assert_allclose(played.T, audio.read(demo / "out" / name), atol=1 / 32768)
    levels = [text.replace("\N{NO-BREAK SPACE}", " ") for text in page.texts]
    assert "peak −6.0 dBFS · RMS −9.0 dBFS · 1.0 s · 16 kHz mono" in levels  # noqa: RUF001
    assert "peak −12.0 dBFS · RMS −15.1 dBFS · 2.0 s · 16 kHz stereo" in levels  # noqa: RUF001
    assert "1.235" in page.texts
    assert "123456" in page.texts


def test_everything_is_escaped(page: Page) -> None:
    assert 'a "quoted" <b>' in page.texts
    assert "Demo <1> & more" in page.texts
    assert '<bass> & "co" $x_1$' in page.texts  # in a figure, not read as mathematics
    assert not {"bass", "1", "urce"} & set(page.tags)


def test_same_input_same_bytes_in_another_process(demo: Path, tmp_path: Path) -> None:
    here = report(demo, tmp_path / "here.html").read_bytes()
    code = "import sys; from pathlib import Path; from pipelines.report import report; report(*map(Path, sys.argv[1:]))"
    there = tmp_path / "there.html"
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", code, demo, there], check=True, cwd=tmp_path, env=environment)
    assert there.read_bytes() == here
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.html", "there.html"]


def spoil(path: Path, how: str) -> None:
    """Put a file that cannot be played at ``path``."""
    if how == "0 bytes":
        path.write_bytes(b"")
    elif how == "not decodable":
        path.write_text("this is text")
    elif how == "no samples":
        audio.save(path, np.zeros((1, 0), np.float32), RATE)
    elif how == "decoding stopped":
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 3 * RATE)).astype(np.float32)
        audio.save(path.with_suffix(".flac"), noise, RATE)
        path.with_suffix(".flac").rename(path)
        path.write_bytes(path.read_bytes()[:40000])


@pytest.mark.parametrize("how", ["no such file", "0 bytes", "not decodable", "no samples", "decoding stopped"])
def test_broken_audio_is_a_note(tmp_path: Path, how: str) -> None:
    root = results(tmp_path / "thing", task="impute", given={"submix": "<a>.wav"}, outputs={"source": "fine.wav"})
    audio.save(root / "fine.wav", sine(100, 0.5), RATE)
    spoil(root / "<a>.wav", how)
    page = Page(report(root, tmp_path / "page.html"))
    notes = [text for text in page.texts if text.startswith("Cannot be played: ")]
    assert len(notes) == 1
    assert notes[0].startswith("Cannot be played: <a>.wav: ")
    assert how in notes[0]
    assert len(page.values("audio", "src")) == 1


@pytest.mark.parametrize("path", ["../elsewhere.wav", "ABSOLUTE", "link.wav"])
def test_audio_outside_the_folder_is_not_embedded(tmp_path: Path, path: str) -> None:
    audio.save(tmp_path / "elsewhere.wav", sine(100, 0.5), RATE)
    named = str(tmp_path / "elsewhere.wav") if path == "ABSOLUTE" else path
    root = results(tmp_path / "thing", task="extract", outputs={"source": named})
    (root / "link.wav").symlink_to(tmp_path / "elsewhere.wav")
    page = Page(report(root, tmp_path / "page.html"))
    assert f"Cannot be played: {named}: lies outside the folder that is reported on" in page.texts
    assert "audio" not in page.tags


def test_odd_samples_are_said_and_survived(tmp_path: Path) -> None:
    wave = sine(100, 2.0, 61.0)
    wave[0, 5] = np.nan
    outputs = {"hot": "hot.wav", "silence": "silence.wav", "short": "short.wav", "wide": "wide.wav"}
    root = results(tmp_path / "thing", task="generate", prompt="", given=None, outputs=outputs)
    audio.save(root / "hot.wav", wave, RATE)
    audio.save(root / "silence.wav", np.zeros((1, 800), np.float32), RATE)
    audio.save(root / "short.wav", np.full((1, 1), 0.5, np.float32), RATE)
    audio.save(root / "wide.wav", np.repeat(sine(100, 0.5), 3, axis=0), 44100)
    page = Page(report(root, tmp_path / "page.html"))
    assert (
        "First 60 s of 61.0 s. 1 samples are NaN or infinite and are shown as zeros. "
        "Peaks above full scale are clipped in the player." in page.texts
    )
    assert "3 channels are played as their mean." in page.texts
    assert "RMS −∞ dBFS" in "\n".join(page.texts).replace("\N{NO-BREAK SPACE}", " ")  # noqa: RUF001
    lengths = [soundfile.info(io.BytesIO(base64.b64decode(uri.split(",")[1]))).frames
               for uri in page.values("audio", "src")]  # fmt: skip
    assert lengths == [60 * RATE, 800, 1, RATE]


def test_nothing_to_report_on_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("x")
    for thing in (tmp_path, tmp_path / "other.txt", tmp_path / "absent"):
        with pytest.raises(MGELDMError, match=r"summary\.json, songs\.parquet, splits\.parquet") as caught:
            report(thing, tmp_path / "page.html")
        assert str(thing) in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_never_writes_over_an_artefact(demo: Path) -> None:
    before = (demo / "songs.parquet").read_bytes()
    with pytest.raises(MGELDMError, match=r"ends with \.html"):
        report(demo / "songs.parquet", demo / "songs.parquet")
    assert (demo / "songs.parquet").read_bytes() == before


def test_single_file(demo: Path, tmp_path: Path) -> None:
    titles = {"songs.parquet": "Songs", "splits.parquet": "Splits", "run/metrics.jsonl": "Training",
              "out/results.json": "Results"}  # fmt: skip
    for name, title in titles.items():
        page = Page(report(demo / name, tmp_path / "page.html"))
        assert title in page.texts
        assert page.tags.count("section") == 1


def test_unreadable_artefact_is_a_note_among_others_and_an_error_alone(demo: Path, tmp_path: Path) -> None:
    demo = shutil.copytree(demo, tmp_path / "demo")
    (demo / "songs.parquet").write_bytes(b"PAR1 no more")
    (demo / "summary.json").write_text('{"seconds": {"scan": "long"}}')
    page = Page(report(demo, tmp_path / "page.html"))
    assert page.texts.count("Not readable") == 4  # heading and link, each twice
    assert "not a readable Parquet file" in "\n".join(page.texts)
    assert '"seconds" must be an object of numbers' in "\n".join(page.texts)
    with pytest.raises(ManifestError, match="not a readable Parquet file"):
        report(demo / "songs.parquet", tmp_path / "page2.html")


@pytest.mark.parametrize("text", ["[]", '{"results": 3}', '{"results": [3]}', "{"])
def test_results_of_another_shape(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(MGELDMError, match=r"results\.json"):
        report(tmp_path, tmp_path / "page.html")


def test_resumed_and_spoilt_metrics(tmp_path: Path) -> None:
    lines = ['{"step": 1, "loss": 5.0}', '{"step": 2, "loss": 9.0}', '{"step": 2, "loss": 4.0}',
             '{"step": 3, "loss": NaN}', '{"val_x": 1}', "[]", '{"step": 3, "val_x": 7, "word": "x"}']  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    page = Page(report(tmp_path, tmp_path / "page.html"))
    assert ["loss", "5", "4", "4", "2"] in page.rows
    assert ["val_x", "7", "7", "7", "3"] in page.rows
    assert "loss: 1 values are NaN or infinite." in page.texts
    assert "Lines that could not be read, as after a run that was cut off: 2." in page.texts
    assert page.values("svg", "aria-label") == ["curve of loss over steps", "curve of val_x over steps"]


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
def test_spectrogram_places_a_sine_in_frequency_level_and_time(rate: int) -> None:
    wave = sine(1000, 0.5, 2.0, rate)
    wave[:, rate:] = 0
    shown = plots.analyse(wave, rate, rate / 2)
    centres = plots.from_mel(np.linspace(plots.to_mel(30.0), plots.to_mel(rate / 2), plots.MEL_BANDS + 2))[1:-1]
    middle = shown.decibels[:, shown.decibels.shape[1] // 4]
    assert abs(centres[middle.argmax()] - 1000) < 40
    assert middle.max() == pytest.approx(-6.0, abs=2.5)
    assert shown.decibels[:, -5:].max() < -150
    assert np.isfinite(shown.decibels).all()
    assert shown.seconds == 2.0


def test_spectrogram_is_blank_above_the_nyquist_frequency() -> None:
    shown = plots.analyse(sine(1000, 0.5), RATE, 16000.0)
    centres = plots.from_mel(np.linspace(plots.to_mel(30.0), plots.to_mel(16000.0), plots.MEL_BANDS + 2))[1:-1]
    np.testing.assert_array_equal(np.isnan(shown.decibels).all(axis=1), centres > 8000)
    assert np.isfinite(shown.decibels[centres < 8000]).all()


def brightest(clip: plots.Clip) -> float:
    png = base64.b64decode(clip.picture.split("data:image/png;base64,")[1].split('"')[0])
    return float(imread(io.BytesIO(png))[..., :3].sum(axis=2).max())


def test_clips_share_the_colours_of_the_loudest() -> None:
    loud = plots.Recording("given", "loud", sine(1000, 1.0), RATE, "", "")
    quiet = plots.Recording("output", "quiet", sine(1000, 0.01), RATE, "", "")
    lost = plots.Clip(role="output", name="lost", note="why")
    clips, top_db = plots.clips([loud, lost, quiet])
    assert [clip.name for clip in clips] == ["loud", "lost", "quiet"]
    assert clips[1] == lost
    assert top_db in (0.0, 5.0)
    alone, alone_db = plots.clips([quiet])
    assert alone_db == top_db - 40
    assert brightest(alone[0]) == pytest.approx(brightest(clips[0]), abs=0.01)
    assert brightest(clips[2]) < 0.7 * brightest(clips[0])
    assert plots.clips([]) == ([], 0.0)


def test_smoothing_and_axis_choice() -> None:
    noisy = np.where(np.arange(200) % 2, 3.0, 1.0)
    smooth = plots.smoothed(noisy)
    assert smooth.shape == noisy.shape
    np.testing.assert_allclose(smooth[10:-10], 2.0, atol=0.11)
    ramp = np.linspace(0, 1, 200)
    assert plots.smoothed(ramp) is ramp
    assert plots.spans_decades(list(np.geomspace(1e-3, 10, 50)))
    assert not plots.spans_decades(list(np.linspace(1, 10, 50)))
    assert not plots.spans_decades([-1.0, 1.0, 100.0])


def test_long_curves_stay_small_and_keep_their_spikes() -> None:
    values = {step: 1.0 + 0.1 * (step % 2) for step in range(50_000)}
    flat = plots.curve("loss", values, {})
    spiked = plots.curve("loss", values | {31_234: 9.0}, {})
    assert len(spiked) < 100_000
    assert ">8<" in spiked
    assert ">8<" not in flat


def test_many_names_are_gathered(tmp_path: Path) -> None:
    stems = tuple(stem(f"s{k}", f"kind {k:02d}", -20.0, [1, 0]) for k in range(30))
    write_songs(tmp_path / "songs.parquet", [Song(song_id="t/1", corpus="t", root="r", subset="train", stems=stems)])
    page = Page(report(tmp_path, tmp_path / "page.html"))
    assert "6 others" in page.texts
    assert "kind 23" in page.texts
    assert "kind 24" not in page.texts
