"""The code blocks of docs/shards.md read what ShardReader reads."""

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.shards import ShardReader
from tests.support.sealed import sealed_sample, write_sealed

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "shards.md").read_text(), re.DOTALL)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    shards = {"a-000000000000": [sealed_sample(0), sealed_sample(1)], "b-000000000000": [sealed_sample(2)]}
    return write_sealed(tmp_path / "data", shards)


@pytest.mark.parametrize("block", BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
def test_each_way_of_reading_gives_the_same_values(
    block: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for shard in (data / "shards").glob("*.tar"):
        with tarfile.open(shard) as tar:
            tar.extractall(tmp_path / "folder", filter="data")
    names: dict[str, Any] = {"DATA": str(data), "FOLDER": str(tmp_path / "folder")}
    exec(block, names)
    samples, reader = names["samples"], ShardReader(data)
    assert sorted(samples) == sorted(reader)
    for key in reader:
        for member, wanted in (("latents.npy", reader[key].latents), ("embeddings.npy", reader[key].embeddings)):
            found = samples[key][member]
            assert np.asarray(found).shape == wanted.shape
            np.testing.assert_array_equal(np.asarray(found, np.float64), wanted.astype(np.float64))
        if "json" in samples[key]:
            meta = samples[key]["json"]
            meta = json.loads(meta) if isinstance(meta, bytes | str) else meta
            assert meta["song_id"] == reader[key].meta["song_id"]
            assert meta["splits"][0]["source_text"] == "bass"


def test_the_page_shows_every_reader() -> None:
    text = "\n".join(BLOCKS)
    for name in ("wds.WebDataset", "tarfile_to_samples", "streaming=True", 'load_dataset("webdataset"', "ShardReader"):
        assert name in text
    assert len(BLOCKS) == 6
