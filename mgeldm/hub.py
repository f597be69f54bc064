"""Checkpoints by name: folders, their codec and embedder, and repositories of the Hugging Face hub with a card."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import xxhash
from torch import nn

from manifests.atomic import atomic_path, content_hash, write_bytes
from manifests.errors import CheckpointError
from mgeldm.checkpoint import CONFIG_FILE, WEIGHTS_FILE, CheckpointConfig, save_checkpoint
from mgeldm.codec.loading import DEFAULT_CODEC, codec_folder
from mgeldm.embedder.loading import embedder_folder
from mgeldm.model_folder import find_folder

if TYPE_CHECKING:
    from mgeldm.joint import MGELDM

CARD_FILE = "README.md"
PARTS = {"codec": codec_folder, "embedder": embedder_folder}
"""Folders inside a checkpoint's, and what finds them by name."""


DEFAULT_MODEL = "default"
_SHIPPED = Path(__file__).parent / "model" / "tiny-16k"


def model_folder(name: Path | str) -> Path:
    """The checkpoint folder that ``name`` stands for; "default" is the one shipped.

    Raises CheckpointError for a hub id that cannot be fetched.
    """
    if str(name) == DEFAULT_MODEL:
        return _SHIPPED
    files = [CONFIG_FILE, CARD_FILE, *(f"{part}/*" for part in PARTS)]
    return find_folder(str(name), "model", files, [[WEIGHTS_FILE]])


def model_identity(model: "MGELDM") -> str:
    """Hex hash over what decides the model's answers."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(model.model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    settings = {key: value for key, value in asdict(model.config).items() if key != "training"}
    return content_hash([settings, model.codec.identity, model.embedder.identity, digest.hexdigest()])


def save(model: "MGELDM", folder: Path, with_codec: bool, with_embedder: bool) -> None:
    """See `MGELDM.save_pretrained`."""
    # Codec and embedder first: a folder with a configuration is whole.
    for part, wanted in (("codec", with_codec), ("embedder", with_embedder)):
        if wanted:
            _copy_part(model, part, folder / part)
    save_checkpoint(folder, model.config, model.model.state_dict())


def push(
    model: "MGELDM",
    repo_id: str,
    licence: str,
    metrics: Mapping[str, float],
    copies: Mapping[str, bool],
    private: bool | None,
    token: str | None,
) -> str:
    """See `MGELDM.push_to_hub`."""
    # Slow to import.
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix="mgeldm-") as place:
        folder = Path(place)
        save(model, folder, copies["codec"], copies["embedder"])
        write_bytes(folder / CARD_FILE, model_card(model, repo_id, licence, metrics, copies).encode())
        try:
            api = HfApi(token=token)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message="Upload the model")
        except Exception as error:  # of its HTTP client too, which is another one in each version
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(
                f"{repo_id}: the hub did not take the model ({reason}); check the name OWNER/NAME, go online, and run "
                "`hf auth login`"
            ) from None
    return str(url)


def model_card(
    model: "MGELDM", repo_id: str, licence: str, metrics: Mapping[str, float], copies: Mapping[str, bool]
) -> str:
    """The card of a model for people: what it was trained on, what it needs, how to use it."""
    config, spec = model.config, model.codec.spec
    network = model.model
    parameters = sum(value.numel() for value in network.parameters()) if isinstance(network, nn.Module) else 0
    missing = [part for part in PARTS if not copies[part] and model.parts.get(part) != DEFAULT_CODEC]
    options = "".join(f', {part}="{part.upper()}"' for part in missing)
    flags = "".join(f" --{part} {part.upper()}" for part in missing)
    lines = [
        "---",
        f"license: {licence}",
        "library_name: mgeldm",
        "pipeline_tag: audio-to-audio",
        "tags: [music, source-separation, music-generation]",
        "---",
        "",
        f"# {repo_id.rpartition('/')[2]}",
        "",
        "A joint latent diffusion model of mix, submix and source (MGE-LDM, arXiv 2505.23305): it extracts a source",
        "named in words, imputes one into a submix, accompanies one, and generates mixes.",
        "",
        "```python",
        "from mgeldm import MGELDM",
        "",
        f'model = MGELDM.from_pretrained("{repo_id}"{options})',
        'found = model.extract("song.wav", "drums")  # {"source": ..., "submix": ...}',
        "```",
        "",
        "```sh",
        f"mgeldm extract song.wav --prompt drums --model {repo_id}{flags} --out out",
        "```",
        "",
        "| | |",
        "| --- | --- |",
        f"| parameters | {parameters:,} |",
        f"| audio | {spec.sample_rate:,} Hz, {spec.channels} channel{'s' if spec.channels > 1 else ''} |",
        f"| crop | {spec.seconds(config.crop_frames):.2f} s, {config.crop_frames} latent frames |",
        *(f"| {part} | `{getattr(model, part).identity[:12]}`, {_where(part, copies)} |" for part in PARTS),
        f"| weights | licence {licence} |",
        "",
        "## Training data",
        "",
        *_data_lines(config),
    ]
    if metrics:
        lines += ["", "## Figures", "", "| figure | value |", "| --- | --- |"]
        lines += [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    return "\n".join(lines) + "\n"


def _data_lines(config: CheckpointConfig) -> list[str]:
    training = config.training
    lines = [f"{training['steps']:,} steps."] if isinstance(training.get("steps"), int) else []
    rows = [
        f"| {corpus} | {count:,} | {data.get('share', 1.0):.3g} |"
        for data in training.get("data", [])
        for corpus, count in data.get("samples", {}).items()
    ]
    if rows:
        lines += ["", "| corpus | windows | share of the data set it is in |", "| --- | --- | --- |", *rows]
    return lines or ["The checkpoint does not say."]


def _where(part: str, copies: Mapping[str, bool]) -> str:
    return f"in `{part}/`" if copies[part] else "not in this repository"


def _copy_part(model: "MGELDM", part: str, target: Path) -> None:
    name = model.parts.get(part)
    if name is None:
        raise CheckpointError(f"the {part} was not loaded by name, so there is no folder to copy; save it by itself")
    source = PARTS[part](name)
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            with atomic_path(target / path.name) as temporary:
                shutil.copyfile(path, temporary)
