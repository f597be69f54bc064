"""Weights by name: whether they are those of a network."""

from collections.abc import Mapping

from torch import Tensor


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """In which way weights are not those of a network, naming the first of each kind; empty if they are."""
    faults = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{key} {list(given[key].shape)} instead of {list(wanted[key].shape)}"
            for key in sorted(wanted.keys() & given.keys())
            if wanted[key].shape != given[key].shape
        ],
    }
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in faults.items()
        if names
    )
