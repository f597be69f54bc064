"""Weights by name: whether they are those of a network."""

from collections.abc import Mapping

import torch
from torch import Tensor


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """In which way weights are not those of a network, naming the first of each kind; empty if they are, and finite."""
    kinds = {key: value.layout for key, value in given.items()}
    faults = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{key} {list(given[key].shape)} instead of {list(wanted[key].shape)}"
            for key in sorted(wanted.keys() & given.keys())
            if wanted[key].shape != given[key].shape
        ],
        "that are no plain numbers": sorted(
            key
            for key, value in given.items()
            if kinds[key] is not torch.strided
            or (key in wanted and value.is_floating_point() != wanted[key].is_floating_point())
        ),
        "that are not finite": sorted(
            key
            for key, value in given.items()
            if kinds[key] is torch.strided and value.is_floating_point() and not torch.isfinite(value).all()
        ),
    }
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in faults.items()
        if names
    )
