"""The data set card for people: `README.md` beside the shards, with the metadata block that the hub reads."""

from pathlib import Path

import yaml

from manifests.shards import DatasetCard
from manifests.store import open_store


def write_readme(data: Path | str, card: DatasetCard) -> None:
    """Write ``README.md`` from the card. Raises StoreError."""
    licenses = sorted(card.licenses)
    front = {
        "license": (licenses[0].lower() or "unknown") if len(licenses) == 1 else "other",
        "tags": ["audio", "music", "multitrack", "latents", "webdataset", "mge-ldm"],
        "configs": [{"config_name": "default", "data_files": "shards/*.tar"}],
    }
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
        "Each sample of a shard (`shards/*.tar`, WebDataset) is one window:",
        "",
        "- `KEY.latents.npy`: float16 `[1+2K, C, L]`, the mix, then submix and source of each of K splits;",
        "- `KEY.embeddings.npy`: float16 `[1+2K, W, D]`, audio embeddings at W hops;",
        "- `KEY.json`: song, start, splits with labels and texts, levels, versions.",
        "",
        "`index.parquet` says where each sample lies; `prompts.safetensors` holds the text embeddings.",
        "",
    ]
    open_store(data).write("README.md", "\n".join(lines).encode())


def _table(head: str, unit: str, counts: dict[str, int]) -> list[str]:
    names = {name: name.replace("|", "\\|") or "not stated" for name in counts}
    rows = [f"| {names[name]} | {count} |" for name, count in counts.items()]
    return [f"| {head} | {unit} |", "| --- | ---: |", *rows, ""]
