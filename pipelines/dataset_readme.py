"""The data set card for people: `README.md` beside the shards, with the metadata block that the hub reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from manifests.errors import ConfigError
from manifests.shards import CARD_FILE, DatasetCard
from manifests.store import open_store
from manifests.units import UNITS_FILE

README_FILE = "README.md"
ALL_SHARDS = "shards/*.tar"


def check_no_other_readme(data: Path | str) -> None:
    """Raise ConfigError where `write_readme` would write over somebody else's, in a folder that is no data set."""
    store = open_store(data)
    if store.exists(README_FILE) and not store.exists(UNITS_FILE) and not store.exists(CARD_FILE):
        raise ConfigError(f"{data}: holds a {README_FILE} but no data set; choose another folder")


def write_readme(
    data: Path | str, card: DatasetCard, shards: str | Sequence[str] = ALL_SHARDS, roots: Sequence[str] = ()
) -> None:
    """Write ``README.md`` from the card.

    Args:
        data: The data set.
        card: What it says.
        shards: The files that hold the samples, which the hub's reader is told.
        roots: The data sets that hold the shards, if not this one; then that reader is told nothing.

    Raises:
        StoreError: it cannot be written.
    """
    licenses = sorted(card.licenses)
    front: dict[str, Any] = {
        "license": (licenses[0].lower() or "unknown") if len(licenses) == 1 else "other",
        "tags": ["audio", "music", "multitrack", "latents", "webdataset", "mge-ldm"],
    }
    if not roots:
        front["configs"] = [
            {"config_name": "default", "data_files": shards if isinstance(shards, str) else list(shards)}
        ]
    codec, embedder = card.codec["spec"], card.embedder["spec"]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        "# Latents of mix, submix and source",
        "",
        f"{card.samples} windows of {card.songs} songs, {card.hours:.2f} hours; {card.failures} windows failed "
        "(`failures.parquet`).",
        "",
        "| | |",
        "| --- | --- |",
        f"| codec | `{card.codec['identity'][:16]}`: {codec['sample_rate']} Hz, {codec['channels']} channel(s), "
        f"C = {codec['latent_channels']}, hop {codec['hop']} |",
        f"| embedder | `{card.embedder['identity'][:16]}`: {embedder['sample_rate']} Hz, {embedder['window_s']} s, "
        f"D = {embedder['dim']}, every {card.embed_hop_s} s |",
        f"| text | `{card.prompt_template}` |",
        "",
        *_table("subset", "windows", card.subsets),
        *_table("instrument as a source", "windows", card.instruments),
        *_table("licence", "songs", card.licenses),
        "## A sample",
        "",
        "Each sample of a shard (`shards/*.tar`, WebDataset) is one window:"
        if not roots
        else f"Each sample is one window. They lie in the WebDataset shards of {_listed(roots)}, as the index says:",
        "",
        "- `KEY.latents.npy`: float16 `[1+2K, C, L]`, the mix, then submix and source of each of K splits;",
        "- `KEY.embeddings.npy`: float16 `[1+2K, W, D]`, audio embeddings at W hops;",
        "- `KEY.json`: song, start, splits with labels and texts, levels, versions.",
        "",
        "`index.parquet` says where each sample lies; `prompts.safetensors` holds the text embeddings.",
        "",
    ]
    open_store(data).write(README_FILE, "\n".join(lines).encode())


def _listed(roots: Sequence[str]) -> str:
    return ", ".join(f"`{root}`" for root in roots)


def _table(head: str, unit: str, counts: dict[str, int]) -> list[str]:
    names = {name: name.replace("|", "\\|") or "not stated" for name in counts}
    rows = [f"| {names[name]} | {count} |" for name, count in counts.items()]
    return [f"| {head} | {unit} |", "| --- | ---: |", *rows, ""]
