"""`croissant.json`: the data set in the words of Croissant 1.1 (JSON-LD), so that machines find and read it."""

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
        "recordSet": [_records()],
    }


def _license(name: str) -> str:
    return LICENSE_URLS.get(name, f"https://spdx.org/licenses/{name}.html" if name else "unknown")


def _distribution(shards: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Each shard with its hash, and the set of files in all of them."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": name,
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
            "containedIn": [{"@id": name} for name, _ in shards.values()],
            "encodingFormat": "application/json" if member == "json" else "application/x-npy",
            "includes": f"*.{member}",
        }
        for member in MEMBERS
    ]
    return [*files, *sets]


def _records() -> dict[str, Any]:
    def field(name: str, member: str, kind: str, text: str, what: dict[str, Any]) -> dict[str, Any]:
        return {
            "@type": "cr:Field",
            "@id": f"samples/{name}",
            "name": name,
            "description": text,
            "dataType": kind,
            "source": {"fileSet": {"@id": _set(member)}, **what},
        }

    content = {"extract": {"fileProperty": "content"}}
    key = {"extract": {"fileProperty": "filename"}, "transform": {"regex": r"^([^.]+)\.json$"}}
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "One record a window of a song. The members of a sample have its key before the first dot.",
        "key": {"@id": "samples/key"},
        "field": [
            field("key", "json", "sc:Text", "The window id.", key),
            field(
                "latents",
                "latents.npy",
                "sc:Text",
                "An .npy file: float16 [1+2K, C, L], the mix, then submix and source of each of K splits.",
                content,
            ),
            field(
                "embeddings",
                "embeddings.npy",
                "sc:Text",
                "An .npy file: float16 [1+2K, W, D], audio embeddings at W hops.",
                content,
            ),
            field("json", "json", "sc:Text", "JSON: song, start, splits with labels and texts, levels.", content),
        ],
    }


def _set(member: str) -> str:
    return f"{member.removesuffix('.npy')}-files"
