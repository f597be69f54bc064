"""Every table and file format on the way from corpora to shards. No torch, no Ray, no decoding."""

from manifests.shards import ShardReader
from manifests.songs import read_songs
from manifests.splits import read_splits

__all__ = ["ShardReader", "read_songs", "read_splits"]
