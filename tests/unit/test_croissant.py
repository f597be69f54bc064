import hashlib
import json
import re
import tarfile
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.shards import ShardReader, read_card
from pipelines.combine import select
from pipelines.croissant import CROISSANT_FILE, croissant
from tests.support.sealed import sealed_sample, write_sealed


@pytest.fixture
def data(tmp_path: Path) -> Path:
    shards = {"a-000000000000": [sealed_sample(0), sealed_sample(2)], "b-000000000000": [sealed_sample(4)]}
    return write_sealed(tmp_path / "data", shards)


def described(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data / CROISSANT_FILE).read_text())
    return found


def test_the_required_properties_are_there(data: Path) -> None:
    found = described(data)
    assert found["@type"] == "sc:Dataset"
    assert found["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    assert found.keys() >= {"@context", "name", "description", "citeAs", "license", "url", "version", "distribution"}
    assert "2505.23305" in found["citeAs"]
    assert found["license"] == [
        "https://creativecommons.org/publicdomain/zero/1.0/",
        "https://spdx.org/licenses/MIT.html",
    ]
    for part in found["distribution"]:
        if part["@type"] == "cr:FileObject":
            assert part.keys() >= {"@id", "name", "contentUrl", "encodingFormat"}
            assert part["sha256"] == hashlib.sha256((data / part["contentUrl"]).read_bytes()).hexdigest()
    ids = [part["@id"] for part in found["distribution"]]
    assert len(set(ids)) == len(ids) == 5


def test_files_and_patterns_lead_to_every_key(data: Path) -> None:
    found = described(data)
    parts = {part["@id"]: part for part in found["distribution"]}
    for records in found["recordSet"]:
        key, content = records["field"]
        assert records["key"]["@id"] == key["@id"]
        assert content["source"]["fileSet"] == key["source"]["fileSet"]
        files = parts[key["source"]["fileSet"]["@id"]]
        names = []
        for shard in files["containedIn"]:
            with tarfile.open(data / parts[shard["@id"]]["contentUrl"]) as tar:
                names += [name for name in tar.getnames() if fnmatch(name, files["includes"])]
        keys = [match[1] for name in names if (match := re.search(key["source"]["transform"]["regex"], name))]
        assert sorted(keys) == sorted(ShardReader(data))
    assert [records["name"] for records in found["recordSet"]] == ["samples", "latents", "embeddings"]


def test_bytes_are_of_the_data_set_alone(data: Path, tmp_path: Path) -> None:
    shards = {"a-000000000000": [sealed_sample(0), sealed_sample(2)], "b-000000000000": [sealed_sample(4)]}
    again = write_sealed(tmp_path / "again", shards)
    assert (again / CROISSANT_FILE).read_bytes() == (data / CROISSANT_FILE).read_bytes()
    other = write_sealed(tmp_path / "other", {"a-000000000000": [sealed_sample(0, seed=1)]})
    assert described(other)["version"] != described(data)["version"]


def test_a_selection_names_the_shards_where_they_lie(data: Path, tmp_path: Path) -> None:
    select(data, "key = 'toy-0004'", tmp_path / "some")
    files = [part for part in described(tmp_path / "some")["distribution"] if part["@type"] == "cr:FileObject"]
    assert [part["contentUrl"] for part in files] == [str(data / "shards/b-000000000000.tar")]


def test_an_unknown_licence_is_said(data: Path) -> None:
    found = croissant(replace(read_card(data), licenses={"": 1, "My own": 1}), {})
    assert found["license"] == ["unknown", "My own"]


def test_the_reference_reader_accepts_it_and_reads_the_records(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    monkeypatch.chdir(data)
    dataset, reader = mlcroissant.Dataset(jsonld=str(data / CROISSANT_FILE)), ShardReader(data)
    records = {record["latents/key"].decode(): record["latents/latents"] for record in dataset.records("latents")}
    assert sorted(records) == sorted(reader)
    for key, content in records.items():
        wanted = reader[key].latents
        np.testing.assert_array_equal(np.frombuffer(content[-wanted.nbytes :], np.float16), wanted.ravel())
