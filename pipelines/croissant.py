"""`croissant.json`: the data set in the words of Croissant 1.1 (JSON-LD), so that machines find and read it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from manifests.atomic import content_hash, readable_json
from manifests.shards import MEMBERS, SHARDS_FOLDER, DatasetCard
from manifests.store import open_store
from manifests.units import Sidecar

CROISSANT_FILE = "croissant.json"
CITE_AS = (
    "@inproceedings{chae2025mgeldm, title={MGE-LDM: Joint Latent Diffusion for Simultaneous Music Generation and "
    "Source Extraction}, author={Chae, Yunkee and Lee, Kyogu}, booktitle={NeurIPS}, year={2025}, "
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
    "rai": "http://mlcommons.org/croissant/RAI/",
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


def write_croissant(data: Path | str, card: DatasetCard, sidecars: Iterable[tuple[str, Sidecar]]) -> None:
    """Write ``croissant.json`` from the card and the sidecars of all shards, each with the root of its index rows.

    A shard in which every window failed is left out. Raises StoreError.
    """
    shards = {
        (f"{root}/" if root else "") + f"{SHARDS_FOLDER}/{sidecar.shard}": (sidecar.shard, sidecar.sha256)
        for root, sidecar in sorted(sidecars, key=lambda pair: (pair[0], pair[1].shard))
        if sidecar.rows
    }
    open_store(data).write(CROISSANT_FILE, readable_json(croissant(card, shards)))


def croissant(card: DatasetCard, shards: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """The description as a JSON-LD document; the same data set gives the same document.

    ``shards``: path or URL -> name and SHA-256 of the tar.
    """
    version = content_hash([card.encoder, sorted(shards.items())], 12)
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": "mge-ldm-latents",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "description": f"Latents and embeddings of mix, submix and source: {card.samples} windows of {card.songs} "
        f"songs, {card.hours:.2f} hours. Codec {card.codec['identity']}, embedder {card.embedder['identity']}.",
        "citeAs": CITE_AS,
        "license": [_license(name) for name in sorted(card.licenses)] or ["unknown"],
        "url": "https://arxiv.org/abs/2505.23305",
        "version": f"1.0.0+{version}",
        "keywords": ["music", "multitrack", "latents", "source separation", *sorted(card.instruments)],
        "distribution": _distribution(shards),
        "recordSet": [_records(name) for name in _MEMBERS],
    }


def _license(name: str) -> str:
    """URL of a licence; what is no SPDX id stays as it is."""
    if name in LICENSE_URLS or not re.fullmatch(r"[A-Za-z0-9.+-]+", name):
        return LICENSE_URLS.get(name, name or "unknown")
    return f"https://spdx.org/licenses/{name}.html"


def _distribution(shards: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Each shard with its hash, and the set of files in all of them."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": place,
            "name": name,
            "contentUrl": place,
            "encodingFormat": "application/x-tar",
            "sha256": digest,
        }
        for place, (name, digest) in shards.items()
    ]
    sets = [
        {
            "@type": "cr:FileSet",
            "@id": _set(member),
            "name": _set(member),
            "containedIn": [{"@id": place} for place in shards],
            "encodingFormat": "application/json" if member == "json" else "application/x-npy",
            "includes": f"*.{member}",
        }
        for member in MEMBERS
    ]
    return [*files, *sets]


_MEMBERS = {
    "samples": ("json", "json", "JSON: song, start, splits with labels and texts, levels."),
    "latents": (
        "latents.npy",
        "latents",
        "An .npy file: float16 [1+2K, C, L], mix, then submix and source of K splits.",
    ),
    "embeddings": ("embeddings.npy", "embeddings", "An .npy file: float16 [1+2K, W, D], audio embeddings at W hops."),
}
"""Record set -> member of a sample, name of its field, what it is."""


def _records(name: str) -> dict[str, Any]:
    """Records of one member: key and content. A window has one in each record set."""
    member, field, text = _MEMBERS[name]
    files = {"fileSet": {"@id": _set(member)}}
    pattern = rf"([^/.]+)\.{re.escape(member)}$"
    key: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{name}/key",
        "name": "key",
        "description": "The window id: what the member's name has before the first dot.",
        "dataType": "sc:Text",
        "source": {**files, "extract": {"fileProperty": "filename"}, "transform": {"regex": pattern}},
    }
    content = {
        "@type": "cr:Field",
        "@id": f"{name}/{field}",
        "name": field,
        "description": text,
        "dataType": "sc:Text",
        "source": {**files, "extract": {"fileProperty": "content"}},
    }
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"The {field} of each window.",
        "key": {"@id": f"{name}/key"},
        "field": [key, content],
    }


def _set(member: str) -> str:
    return f"{member.removesuffix('.npy')}-files"
