"""Corpora: how multitrack data sets lie on disk. A corpus lists songs, paths and labels; it opens no audio."""

from manifests.corpora.base import Corpus, SongListing, StemListing
from manifests.corpora.registry import corpus_names, get_corpus

__all__ = ["Corpus", "SongListing", "StemListing", "corpus_names", "get_corpus"]
