"""The folder that the name of a model, codec or embedder stands for, here or from the hub, and reading its files."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from manifests.errors import CheckpointError

Stamp = tuple[tuple[str, int, int], ...]

_HUB_ID = re.compile(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class FolderKind:
    """Reads the files of one kind of folder; whatever is wrong with one is told in one line, with what to do."""

    name: str
    """As "an embedder"."""
    holds: str
    """What should be in it."""
    again: str
    """Where another one comes from."""

    def json(self, path: Path) -> Any:
        """What a JSON file holds. Raises CheckpointError: it is missing, half written or damaged."""
        data = self._bytes(path)
        try:
            return json.loads(data)
        except ValueError as error:
            raise self.damaged(path, error) from None

    def tensors(self, path: Path) -> dict[str, torch.Tensor]:
        """The tensors of a `.safetensors` file. Raises CheckpointError, as `json`."""
        self.check_tensors(path)
        return load_file(path)

    def check_tensors(self, path: Path) -> None:
        """Look whether a `.safetensors` file is whole, by its header. Raises CheckpointError, as `json`."""
        if not path.is_file():
            raise self._missing(path)
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise self.damaged(path, error) from None

    def damaged(self, path: Path, error: Exception) -> CheckpointError:
        """The error for a file that cannot be used."""
        empty = path.is_file() and not path.stat().st_size
        reason = "0 bytes" if empty else one_line(error)
        return CheckpointError(
            f"{path}: half written or damaged ({reason}), so this is not a readable {self.name.partition(' ')[2]} "
            f"folder; {self.again}"
        )

    def _bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(path) from None
        except OSError as error:
            raise self.damaged(path, error) from None

    def _missing(self, path: Path) -> CheckpointError:
        return CheckpointError(f"{path}: missing; {self.name} folder holds {self.holds}; {self.again}")


def one_line(error: Exception) -> str:
    """What a library says, on one line, cut where it lists all that it knows."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."


def find_folder(name: str, kind: str, files: Sequence[str], weights: Sequence[Sequence[str]]) -> Path:
    """The folder ``name``, or, where there is none and it reads OWNER/NAME, that repository of the Hugging Face hub.

    Nothing is fetched for any other name, nor where a folder OWNER lies here: then it is a path with a mistake in it.

    Args:
        name: Path or hub id.
        kind: "codec" or "embedder", for messages.
        files: Patterns of the small files to fetch, all of them optional here.
        weights: Patterns of the weights, best first; of the alternatives only the first that the repository has is
            fetched.

    Raises:
        CheckpointError: ``name`` is a file, or the repository cannot be fetched or holds no such weights. A missing
            folder is for the reader to refuse, who knows what should be in it.
    """
    folder = Path(name)
    if folder.is_file():
        raise CheckpointError(f"{kind} {name!r}: a file; give the folder that holds it and its configuration")
    if folder.exists() or not _HUB_ID.fullmatch(name) or folder.parent.exists():
        return folder
    for patterns in weights:
        found = _fetch(name, kind, [*files, *patterns])
        if any(match.is_file() for pattern in patterns for match in found.glob(pattern)):
            return found
    wanted = ", ".join(pattern for patterns in weights for pattern in patterns)
    raise CheckpointError(f"{kind} {name!r}: the hub's repository holds no weights that we read ({wanted})")


def stamp(folder: Path) -> Stamp:
    """Name, size and time of change of the files of a folder: the same as long as nobody wrote there."""
    if not folder.is_dir():
        return ()
    details = ((path.name, path.stat()) for path in folder.iterdir() if path.is_file())
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in details))


def _fetch(name: str, kind: str, patterns: list[str]) -> Path:
    # Slow to import, and only for those who name a hub id.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except GatedRepoError:
        raise CheckpointError(
            f"{kind} {name!r}: the hub gives it to those who accepted its licence only; accept it on its page there, "
            "then run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{kind} {name!r}: no such folder here and no such repository on the hub; give a folder, a hub id "
            "OWNER/NAME or 'default'"
        ) from None
    except Exception as error:  # of its HTTP client too, which is another one in each version
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{kind} {name!r}: no such folder here, and the hub cannot be reached ({reason}); go online, or copy the "
            "files by hand and give their folder"
        ) from None
