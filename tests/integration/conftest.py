"""Fixtures for tests of the scan."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mgeldm import audio
from tests.support.corpora import write_layout
from tests.support.scans import RATE
from tests.support.sounds import sound, write_sound


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one good song, "good", of two stems."""
    for label in ("drums", "bass"):
        write_sound(tmp_path / "root" / "good" / f"{label}.wav", sound(label, seconds=1), RATE)
    return tmp_path / "root"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout file for it."""
    return write_layout(tmp_path / "layout.yaml")


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose samples were read."""
    names: list[str] = []
    interleaved = audio.interleaved

    def spied(path: Path, *rest: object) -> Iterator[audio.Wave]:
        names.append(f"{path.parent.name}/{path.name}")
        return interleaved(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(audio, "interleaved", spied)
    return names
