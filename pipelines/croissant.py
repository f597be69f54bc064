"""`croissant.json`: the data set in the words of Croissant 1.1 (JSON-LD), so that machines find and read it."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from manifests.atomic import content_hash, readable_json
from manifests.shards import MEMBERS, SHARDS_FOLDER, DatasetCard, read_index
from manifests.store import open_store

CROISSANT_FILE = "croissant.json"
CITE_AS = (
    "@inproceedings{chae2025mgeldm, title={MGE-LDM: Joint Latent Diffusion for Simultaneous Music Generation and Source "
    "Extraction}, author={Chae, Yunkee and Lee, Kyogu}, booktitle={NeurIPS}, year={2025}, "
    "url={https://arxiv.org/abs/2505.23305}}"
)
LICENSE_URLS = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC-BY-NC-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
    "CC-BY-NC-SA-3.0": "https://creativecommons.org/licenses/by-nc-sa/3.0/",
    "CC-BY-NC-SA-4.0": "https://creativecommons.org/licenses/by-nc-sa/4.0/",
    "CC-BY-NC-ND-4.0": "https://creativecommons.org/licenses/by-nc-nd/4.0/",
}
"""Page of a licence where SPDX has no own words for its terms; of another id the SPDX page is named."""

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def write_croissant(data: Path | str, card: DatasetCard) -> None:
    """Write ``croissant.json`` from the card and the index. Raises ManifestError or StoreError."""
    open_store(data).write(CROISSANT_FILE, readable_json(croissant(card, _shards(data))))


def _shards(data: Path | str) -> dict[str, tuple[str, str]]:
    """Path or URL of each shard -> its name and a version: a hash over the checksums of its samples."""
    sums: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in read_index(data):
        sums[row.root, row.shard].append(row.checksum)
    return {
        (f"{root}/" if root else "") + f"{SHARDS_FOLDER}/{shard}": (shard, content_hash(checksums))
        for (root, shard), checksums in sorted(sums.items())
    }


def croissant(card: DatasetCard, shards: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """The description as a JSON-LD document; the same data set gives the same document."""
    version = content_hash([card.encoder, sorted(shards.items())], 12)
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": "mge-ldm-latents",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "description": f"Latents and embeddings of mix, submix and source: {card.samples} windows of {card.songs} songs, "
        f"{card.hours:.2f} hours. Codec {card.codec['identity']}, embedder {card.embedder['identity']}.",
        "citeAs": CITE_AS,
        "license": [_license(name) for name in sorted(card.licenses)] or ["unknown"],
        "url": "https://arxiv.org/abs/2505.23305",
        "version": f"1.0.0+{version}",
        "keywords": ["music", "multitrack", "latents", "source separation", *sorted(card.instruments)],
        "distribution": _distribution(shards),
        "recordSet": [_records()],
    }


def _license(name: str) -> str:
    return LICENSE_URLS.get(name, f"https://spdx.org/licenses/{name}.html" if name else "unknown")
