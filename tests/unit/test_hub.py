"""Checkpoint folders with their parts, and the hub, which is replaced at its boundary."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.errors import CheckpointError
from mgeldm import MGELDM
from mgeldm.checkpoint import CheckpointConfig, load_checkpoint, save_checkpoint
from mgeldm.codec import load_codec
from mgeldm.embedder import load_embedder
from mgeldm.model import JointConfig, JointTransformer
from mgeldm.sampling import SamplingConfig
from tests.support.models import write_codec

ONCE = SamplingConfig(steps=1)
SHAPE = JointConfig(width_per_track=32, depth=1, heads=3, timestep_features=8, latent_channels=8, embedding_dim=16)
TRAINING = {
    "steps": 1200,
    "data": [{"share": 0.75, "samples": {"slakh2100": 90, "mine": 10}}, {"share": 0.25, "samples": {"moisesdb": 5}}],
}


@pytest.fixture(scope="module")
def bare(tiny_models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder without codec and embedder in it."""
    codec, embedder = (str(path) for path in tiny_models)
    config = CheckpointConfig(
        model=SHAPE,
        codec={"identity": load_codec(codec).identity},
        embedder={"identity": load_embedder(embedder).identity},
        prompt_template="the sound of {}",
        crop_frames=8,
        latent_mean=(0.0,) * 8,
        latent_std=(1.0,) * 8,
        silence_latent=(0.0,) * 8,
        training=TRAINING,
    )
    folder = tmp_path_factory.mktemp("hub") / "bare"
    save_checkpoint(folder, config, JointTransformer(SHAPE, seed=0).state_dict())
    return folder


@pytest.fixture
def model(bare: Path, tiny_models: tuple[Path, Path]) -> MGELDM:
    codec, embedder = (str(path) for path in tiny_models)
    return MGELDM.from_pretrained(bare, codec=codec, embedder=embedder, device="cpu")


class TestSaved:
    def test_a_folder_with_its_parts_needs_no_options(self, model: MGELDM, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path / "whole", with_codec=True, with_embedder=True)
        again = MGELDM.from_pretrained(tmp_path / "whole", device="cpu")
        mix = np.random.default_rng(0).normal(0, 0.1, (1, 3000)).astype(np.float32)
        np.testing.assert_array_equal(
            again.extract(mix, "drums", ONCE)["source"], model.extract(mix, "drums", ONCE)["source"]
        )
        assert again.identity == model.identity
        assert again.config.training == TRAINING

    def test_parts_stay_away_unless_asked_for(self, model: MGELDM, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path / "bare")
        assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == ["config.json", "model.safetensors"]
        load_checkpoint(tmp_path / "bare")
        with pytest.raises(CheckpointError, match=r"trained with codec .* --codec FOLDER"):
            MGELDM.from_pretrained(tmp_path / "bare", device="cpu")

    def test_a_named_codec_goes_before_that_in_the_folder(self, model: MGELDM, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path / "whole", with_codec=True, with_embedder=True)
        other = write_codec(tmp_path / "other", sample_rate=8_000)
        with pytest.raises(CheckpointError, match="other' is "):
            MGELDM.from_pretrained(tmp_path / "whole", codec=str(other), device="cpu")

    def test_a_part_that_was_made_by_hand_cannot_be_copied(self, model: MGELDM, tmp_path: Path) -> None:
        made = MGELDM(model.config, model.model, model.codec, model.embedder, model.device)
        with pytest.raises(CheckpointError, match="codec was not loaded by name"):
            made.save_pretrained(tmp_path / "x", with_codec=True)
        assert not (tmp_path / "x" / "config.json").exists()

    def test_half_a_checkpoint_is_refused(self, model: MGELDM, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path / "half", with_codec=True, with_embedder=True)
        weights = tmp_path / "half" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match="not a readable checkpoint") as caught:
            MGELDM.from_pretrained(tmp_path / "half", device="cpu")
        assert "\n" not in str(caught.value)

    def test_identity_is_that_of_weights_and_settings(self, model: MGELDM) -> None:
        parts = (model.codec, model.embedder, model.device)
        trained = MGELDM(replace(model.config, training={}), model.model, *parts)
        assert trained.identity == model.identity
        assert MGELDM(model.config, JointTransformer(SHAPE, seed=1), *parts).identity != model.identity
        crop = MGELDM(replace(model.config, crop_frames=9), model.model, *parts)
        assert crop.identity != model.identity


class FakeHub:
    """What `HfApi` is for us; keeps what is uploaded."""

    repositories: dict[str, dict[str, bytes]] = {}  # noqa: RUF012
    calls: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
        if repo_id.startswith("locked/"):
            raise ConnectionError("403 Forbidden:\n not yours")
        self.calls.append({"repo_id": repo_id, "private": private, "exist_ok": exist_ok, "token": self.token})
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        root = Path(folder_path)
        files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        self.repositories[repo_id] = files


class TestPushed:
    @pytest.fixture(autouse=True)
    def hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeHub]:
        monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
        monkeypatch.setattr(FakeHub, "repositories", {})
        monkeypatch.setattr(FakeHub, "calls", [])

        def fetched(repo_id: str, allow_patterns: list[str]) -> str:
            for name, data in FakeHub.repositories[repo_id].items():
                (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "cache" / name).write_bytes(data)
            assert {"config.json", "model.safetensors", "codec/*", "embedder/*"} <= set(allow_patterns)
            return str(tmp_path / "cache")

        monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
        return FakeHub

    def test_what_is_pushed_can_be_loaded_by_its_id(self, model: MGELDM, hub: type[FakeHub]) -> None:
        options = {"license": "cc-by-4.0", "with_codec": True, "with_embedder": True}
        url = model.push_to_hub("me/joint-tiny", private=True, token="t", **options)  # type: ignore[arg-type]
        assert url == "https://huggingface.co/me/joint-tiny"
        assert hub.calls == [{"repo_id": "me/joint-tiny", "private": True, "exist_ok": True, "token": "t"}]
        assert {"README.md", "config.json", "model.safetensors", "codec/config.json", "embedder/config.json"} <= set(
            hub.repositories["me/joint-tiny"]
        )
        assert MGELDM.from_pretrained("me/joint-tiny", device="cpu").identity == model.identity

    def test_the_card(self, model: MGELDM, hub: type[FakeHub]) -> None:
        model.push_to_hub("me/tiny", license="cc-by-nc-4.0", metrics={"log-mel L1, drums": 1.23456})
        files = hub.repositories["me/tiny"]
        card = files["README.md"].decode()
        assert card.startswith("---\nlicense: cc-by-nc-4.0\n")
        for words in (
            'MGELDM.from_pretrained("me/tiny", codec="CODEC", embedder="EMBEDDER")',
            "--model me/tiny --codec CODEC --embedder EMBEDDER",
            f"| codec | `{model.codec.identity[:12]}`, not in this repository |",
            "| audio | 16,000 Hz, 1 channel |",
            "1,200 steps.",
            "| slakh2100 | 90 | 0.75 |",
            "| moisesdb | 5 | 0.25 |",
            "| log-mel L1, drums | 1.235 |",
        ):
            assert words in card, words
        assert not any(name.startswith(("codec/", "embedder/")) for name in files)

    def test_a_hub_that_refuses_is_one_line(self, model: MGELDM) -> None:
        with pytest.raises(CheckpointError, match=r"locked/x: the hub did not take the model \(403") as caught:
            model.push_to_hub("locked/x", license="mit")
        assert "\n" not in str(caught.value)
