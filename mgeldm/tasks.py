"""The four tasks as data: which track is given, which is prompted, which are kept (arXiv 2505.23305, section 3)."""

from dataclasses import dataclass

from manifests.shards import TRACKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One way to use the joint model."""

    name: str
    given: str | None
    """Track that the input audio is."""
    prompted: str
    """Track that the words describe."""
    kept: tuple[str, ...]
    """Tracks that come out."""


GENERATE = Task(name="generate", given=None, prompted="mix", kept=("mix",))
IMPUTE = Task(name="impute", given="submix", prompted="source", kept=("source",))
EXTRACT = Task(name="extract", given="mix", prompted="source", kept=("source", "submix"))
ACCOMPANY = Task(name="accompany", given="source", prompted="submix", kept=("submix",))

TASKS = {task.name: task for task in (GENERATE, IMPUTE, EXTRACT, ACCOMPANY)}


def track_index(name: str) -> int:
    """Position of a track in the model's input."""
    return TRACKS.index(name)
