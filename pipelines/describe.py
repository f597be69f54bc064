"""info: what a data set holds, from its index, card and listings; no shard is opened."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from manifests.shards import SHARDS_FOLDER, read_card, read_index
from manifests.store import open_store
from manifests.units import FAILURES_FILE, read_failures


def info(data: Path | str) -> dict[str, Any]:
    """Figures about the data set ``data``, a folder or URL.

    ``bytes`` are those of the samples; ``complete`` is False where a shard or sidecar that the index names is missing.

    Raises:
        ShardError, ManifestError: it is no finished data set, or its index is damaged.
        StoreError: it cannot be read.
    """
    card, rows = read_card(data), read_index(data)
    store = open_store(data)
    failures = read_failures(data) if store.exists(FAILURES_FILE) else []
    shards = sorted({(row.root, row.shard) for row in rows})
    listings = {root: open_store(root or data).sizes(SHARDS_FOLDER) for root in {root for root, _ in shards}}
    missing = [
        f"{root or data}/{SHARDS_FOLDER}/{name}"
        for root, shard in shards
        for name in (shard, f"{shard.removesuffix('.tar')}.json")
        if name not in listings[root]
    ]
    return {
        "samples": len(rows),
        "songs": len({row.song_id for row in rows}),
        "hours": card.hours,
        "shards": len(shards),
        "bytes": sum(row.size for row in rows),
        "roots": sorted({root for root, _ in shards if root}),
        "corpora": _counts(row.corpus for row in rows),
        "subsets": _counts(f"{row.corpus} {row.subset}" for row in rows),
        "instruments": _counts(name for row in rows for name in row.instruments),
        "splits_a_window": _counts(str(row.splits) for row in rows),
        "licenses": card.licenses,
        "encoder": card.encoder,
        "codec": card.codec["identity"],
        "codec_spec": card.codec["spec"],
        "embedder": card.embedder["identity"],
        "embedder_spec": card.embedder["spec"],
        "embed_hop_s": card.embed_hop_s,
        "prompt_template": card.prompt_template,
        "latent_mean_range": {"lowest": min(card.latent_mean), "highest": max(card.latent_mean)},
        "latent_std_range": {"lowest": min(card.latent_std), "highest": max(card.latent_std)},
        "failures": _counts(failure.code for failure in failures),
        "complete": not missing,
        "missing": missing,
    }


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
