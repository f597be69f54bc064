"""Fixtures that many tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from pipelines.runner import OBJECT_STORE_BYTES, RunnerConfig
from tests.support.corpora import write_folders, write_slakh

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session")
def slakh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a small corpus in Slakh2100's layout; read only."""
    return write_slakh(tmp_path_factory.mktemp("corpora") / "slakh")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Layout file and root of a small corpus with one folder a song; read only."""
    root = tmp_path_factory.mktemp("corpora") / "folders"
    return write_folders(root), root


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes on one core: as fast here, and to the same last bit everywhere."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def on_ray() -> Iterator[RunnerConfig]:
    """Configuration of a runner on a Ray cluster of two CPUs; gone by the next module, which may want another."""
    import ray

    # Workers import the classes of tests.support by name.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    yield RunnerConfig(runner="ray", workers=2)
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a tiny codec and a tiny embedder with random weights; read only."""
    # stable-audio-tools is slow to import.
    from tests.support.models import write_codec, write_embedder

    folder = tmp_path_factory.mktemp("models")
    return write_codec(folder / "codec"), write_embedder(folder / "embedder")


@pytest.fixture(scope="session")
def whole_model(tiny_models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint folder of a tiny joint model with random weights, codec and embedder in it; read only."""
    from tests.support.models import write_joint

    return write_joint(tmp_path_factory.mktemp("joint"), *tiny_models)
