"""Small Hugging Face data sets, written by `datasets` itself; audio undecoded."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile
import yaml

from mgeldm.audio import Wave
from tests.support.sounds import sound

RATE = 16_000
STEMS = {"vocals": "vocals", "kit": "drums", "low": "bass"}
HUGGINGFACE = {
    "kind": "huggingface",
    "name": "hf",
    "license": {"id": "CC0-1.0"},
    "id": "track",
    "stems": STEMS,
    "mixture": "mix",
    "extra": ["title"],
}


def write_hf_layout(path: Path, **changes: object) -> Path:
    """`HUGGINGFACE` with ``changes``, keys of which None are left out."""
    layout = {key: value for key, value in (HUGGINGFACE | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(layout, sort_keys=False))
    return path


def encoded(wave: Wave, kind: str = "FLAC") -> bytes:
    """An audio file as bytes."""
    file = io.BytesIO()
    soundfile.write(file, wave.T, RATE, format=kind)
    return file.getvalue()


def hf_rows(songs: Sequence[str], seconds: float = 2.0) -> list[dict[str, Any]]:
    """One row a song: its stems, their sum, its name."""
    rows = []
    for song in songs:
        waves = {column: sound("hf", song, column, seconds=seconds, rate=RATE) for column in STEMS}
        waves["mix"] = sum(list(waves.values())[1:], next(iter(waves.values())))
        audio = {column: {"bytes": encoded(wave), "path": f"{song}.flac"} for column, wave in waves.items()}
        rows.append({"track": song, "title": f"Title of {song}"} | audio)
    return rows


def hf_dataset(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a data set with audio columns."""
    import datasets

    made = datasets.Dataset.from_list([dict(row) for row in rows])
    for column in ("mix", *STEMS):
        if column in made.column_names:
            made = made.cast_column(column, datasets.Audio(decode=False))
    return made


def write_hf(root: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """A folder of Parquet files as it lies on the hub. Returns the root."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        hf_dataset(rows).to_parquet(str(root / f"data/{split}-00000-of-00001.parquet"))
    return root
