"""Errors that a person can mend: each message names the file, the value and what to do.

The command line prints such an error as one line and exits with 2. Anything else is a defect of ours and keeps its
traceback.
"""


class MGELDMError(ValueError):
    """Base of every error caused by input or usage."""


class ConfigError(MGELDMError):
    """An option or a configuration file is wrong."""


class CorpusError(MGELDMError):
    """A corpus, its layout file or its root folder cannot be used."""


class ManifestError(MGELDMError):
    """A manifest or plan file is missing, of another version, or not what its schema says."""


class ShardError(MGELDMError):
    """A shard, its index or its data set card is missing or damaged."""


class StoreError(MGELDMError):
    """A file of a data set cannot be written or read: the disk is full, the store is down or refuses."""


class AudioError(MGELDMError):
    """An audio file cannot be decoded. ``code`` is a problem code of `manifests.problems`."""

    def __init__(self, message: str, code: str = "unreadable") -> None:
        super().__init__(message)
        self.code = code


class CheckpointError(MGELDMError):
    """A checkpoint, codec or embedder folder is missing, half written, or of another make."""


class PromptError(MGELDMError):
    """A text prompt is empty or says nothing to the embedder."""
