"""Every table and file format on the way from corpora to shards. No torch, no Ray, no decoding."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manifests.shards import ShardReader
    from manifests.songs import read_songs
    from manifests.splits import read_splits

__all__ = ["ShardReader", "read_songs", "read_splits"]

_HOMES = {"ShardReader": "manifests.shards", "read_songs": "manifests.songs", "read_splits": "manifests.splits"}


def __getattr__(name: str) -> Any:
    # pyarrow is imported only when a table is asked for, so that `mgeldm --help` answers at once.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'manifests' has no attribute {name!r}")
