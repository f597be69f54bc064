"""Names of codecs and embedders: folders first, the hub only for a hub id, and what is fetched from it."""

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import nn

from manifests.errors import CheckpointError
from mgeldm.codec import AutoencoderCodec, load_codec
from mgeldm.embedder import ClapEmbedder, DualEncoder, load_embedder
from mgeldm.model_folder import find_folder, stamp
from tests.support.clap import write_clap
from tests.support.models import write_codec, write_embedder


class Hub:
    """Repositories that are folders here; notes what was asked for."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.asked: list[list[str]] = []

    def __call__(self, name: str, *, allow_patterns: list[str]) -> str:
        self.asked.append(allow_patterns)
        snapshot = self.home / f"snapshot-{name.replace('/', '--')}"
        for path in (self.home / name).iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                snapshot.mkdir(exist_ok=True)
                shutil.copy2(path, snapshot / path.name)
        return str(snapshot)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return made


def write_released(folder: Path) -> Path:
    """A codec as releases of stable-audio-tools lie on the hub, with files beside it that nobody needs."""
    write_codec(folder)
    (folder / "config.json").rename(folder / "model_config.json")
    (folder / "model.ckpt").write_bytes(b"the same once more")
    (folder / "README.md").write_text("card")
    return folder


class TestHub:
    def test_codec(self, hub: Hub, tmp_path: Path) -> None:
        released = write_released(hub.home / "owner" / "name-1.0")
        codec = load_codec("owner/name-1.0")
        assert codec.identity == load_codec(str(write_codec(tmp_path / "local"))).identity
        assert hub.asked == [["model_config.json", "config.json", "model.safetensors"]]
        assert released.exists()

    def test_codec_of_an_old_kind(self, hub: Hub) -> None:
        folder = write_released(hub.home / "owner" / "name")
        (folder / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"model\.ckpt: not a checkpoint of plain tensors"):
            load_codec("owner/name")
        assert [patterns[-1] for patterns in hub.asked] == ["model.safetensors", "model.ckpt"]

    def test_embedder(self, hub: Hub) -> None:
        folder = write_clap(hub.home / "owner" / "clap")
        (folder / "pytorch_model.bin").write_bytes(b"the same once more")
        found = load_embedder("owner/clap")
        assert isinstance(found, ClapEmbedder)
        assert found.identity == load_embedder(str(folder)).identity
        assert len(hub.asked) == 1
        fetched = {path.name for path in (hub.home / "snapshot-owner--clap").iterdir()}
        assert "model.safetensors" in fetched
        assert "pytorch_model.bin" not in fetched

    def test_a_repository_without_weights(self, hub: Hub) -> None:
        folder = write_released(hub.home / "owner" / "name")
        (folder / "model.safetensors").unlink()
        (folder / "model.ckpt").unlink()
        with pytest.raises(CheckpointError, match=r"no weights that we read \(model.safetensors, model.ckpt\)"):
            load_codec("owner/name")

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (lambda response: RepositoryNotFoundError("404\nNot Found", response=response), "no such repository"),
            (lambda response: GatedRepoError("403", response=response), "hf auth login"),
            (lambda _: LocalEntryNotFoundError("no internet\nat all"), r"cannot be reached \(no internet at all\)"),
            (lambda _: OSError("network is unreachable"), "network is unreachable"),
        ],
    )
    @pytest.mark.parametrize(("load", "kind"), [(load_codec, "codec"), (load_embedder, "embedder")])
    def test_errors_say_what_to_do(
        self,
        hub: Hub,
        monkeypatch: pytest.MonkeyPatch,
        error: Callable[[Any], Exception],
        words: str,
        load: Callable[[str], object],
        kind: str,
    ) -> None:
        class Response:
            headers: dict[str, str] = {}  # noqa: RUF012
            request = None

        def fail(*_: Any, **__: Any) -> None:
            raise error(Response())

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(CheckpointError, match=words) as caught:
            load("owner/name")
        assert str(caught.value).startswith(f"{kind} 'owner/name': ")
        assert "\n" not in str(caught.value)


class TestLocal:
    @pytest.mark.parametrize(
        "name",
        ["codec", "./owner/name", "../owner/name", "a/b/c", "/owner/name", "owner/.hidden", "out/codec", "a b/c"],
    )
    def test_other_names_are_never_fetched(self, hub: Hub, name: str) -> None:
        """Nor is what lies below a folder that is here: that is a path with a mistake in it."""
        Path("out").mkdir()
        assert find_folder(name, "codec", (), [["*"]]) == Path(name)
        for load in (load_codec, load_embedder):
            with pytest.raises(CheckpointError, match="missing"):
                load(name)
        assert hub.asked == []

    def test_a_folder_goes_before_the_hub(self, hub: Hub) -> None:
        write_codec(Path("owner/codec"))
        write_embedder(Path("owner/embedder"))
        assert load_codec("owner/codec").spec.hop == 256
        assert load_embedder("owner/embedder").spec.dim == 16
        assert load_codec().spec.hop == 2048
        assert hub.asked == []

    def test_one_relative_name_in_two_places(self, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        write_codec(Path("codec"))
        first = load_codec("codec")
        write_codec(tmp_path / "there" / "codec", sample_rate=8_000)
        monkeypatch.chdir(tmp_path / "there")
        assert load_codec("codec").spec.sample_rate == 8_000
        assert first.spec.sample_rate == 16_000

    def test_stamp_changes_with_the_files(self, tmp_path: Path) -> None:
        assert stamp(tmp_path / "nothing") == ()
        folder = write_codec(tmp_path / "codec")
        before = stamp(folder)
        assert [name for name, *_ in before] == ["config.json", "model.safetensors"]
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | {"sample_rate": 8_000}))
        assert stamp(folder) != before


@pytest.mark.parametrize(
    ("write", "load", "kind"),
    [
        (write_codec, load_codec, AutoencoderCodec),
        (write_embedder, load_embedder, DualEncoder),
        (write_clap, load_embedder, ClapEmbedder),
    ],
)
class TestEachCallerHasItsOwn:
    """A module that one caller moves or changes is not another's."""

    def test_one_that_moves_leaves_the_other(
        self, write: Callable[[Path], Path], load: Callable[[str], nn.Module], kind: type, tmp_path: Path
    ) -> None:
        folder = str(write(tmp_path / "folder"))
        first, second = load(folder), load(folder)
        assert type(first) is type(second) is kind
        first.to("meta")
        third = load(folder)
        for other in (second, third):
            assert {value.device.type for value in other.state_dict().values()} == {"cpu"}

    def test_one_that_changes_leaves_the_other(
        self, write: Callable[[Path], Path], load: Callable[[str], nn.Module], kind: type, tmp_path: Path
    ) -> None:
        folder = str(write(tmp_path / "folder"))
        first, second = load(folder), load(folder)
        with torch.no_grad():
            for value in first.state_dict().values():
                value.zero_()
        third = load(folder)
        weights = second.state_dict()
        assert any(value.any() for value in weights.values())
        for name, value in third.state_dict().items():
            assert torch.equal(value, weights[name])

    def test_the_folder_is_read_once(
        self,
        write: Callable[[Path], Path],
        load: Callable[[str], nn.Module],
        kind: type,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder, reads = str(write(tmp_path / "folder")), list[Path]()
        read = kind.load  # type: ignore[attr-defined]
        monkeypatch.setattr(kind, "load", lambda place: reads.append(place) or read(place))
        load(folder)
        load(folder)
        assert reads == [Path(folder)]
