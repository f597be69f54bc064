"""A local function over a stream: no matter how the stream is cut, it is one pass over the whole."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgeldm.piecewise import Piecewise

CONTEXT, UNIT = 3, 4


def smooth(x: torch.Tensor) -> torch.Tensor:
    """Sums over a unit and the `CONTEXT` units on both sides: ``[c, n * UNIT] -> [c, n]``; zeros beyond the ends."""
    units = x.unflatten(-1, (-1, UNIT)).sum(dim=-1)
    kernel = torch.arange(1.0, 2 * CONTEXT + 2, dtype=x.dtype)[None, None]
    return torch.nn.functional.conv1d(units[:, None], kernel, padding=CONTEXT)[:, 0]


def repeated(x: torch.Tensor) -> torch.Tensor:
    """``[c, n] -> [c, n * UNIT]``, each of them the sum of its surroundings, which end where the input ends."""
    kernel = torch.ones(1, 1, 2 * CONTEXT + 1, dtype=x.dtype)
    return torch.nn.functional.conv1d(x[:, None], kernel, padding=CONTEXT)[:, 0].repeat_interleave(UNIT, dim=-1)


@settings(deadline=None)
@given(length=st.integers(1, 90), chunk=st.integers(1, 9), cuts=st.lists(st.integers(0, 90), max_size=6))
def test_any_cut_is_one_pass(length: int, chunk: int, cuts: list[int]) -> None:
    x = torch.arange(1.0, 2 * length + 1, dtype=torch.float64).reshape(2, length)
    padded = torch.nn.functional.pad(x, (0, -length % UNIT))
    for function, made, whole in (
        (smooth, {"unit_in": UNIT, "unit_out": 1, "in_silence": True}, smooth(padded)),
        (repeated, {"unit_in": 1, "unit_out": UNIT}, repeated(x)),
    ):
        pieces = Piecewise(function, context=CONTEXT, chunk=chunk, **made)  # type: ignore[arg-type]
        out = []
        places = [0, *sorted(min(cut, length) for cut in cuts), length]
        for begin, end in pairwise(places):
            out += pieces.push(x[:, begin:end])
        out += pieces.finish()
        torch.testing.assert_close(torch.cat(out, dim=-1), whole, rtol=0, atol=1e-9)
        assert all(piece.shape[-1] <= chunk * made["unit_out"] for piece in out)


@pytest.mark.parametrize("blocks", [50, 500])
def test_no_more_is_kept_than_a_piece_its_context_and_a_block(blocks: int) -> None:
    heard: list[int] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        heard.append(x.shape[-1])
        return x

    pieces = Piecewise(function, unit_in=1, unit_out=1, context=5, chunk=10)
    given_out = 0
    for _ in range(blocks):
        given_out += sum(piece.shape[-1] for piece in pieces.push(torch.zeros(1, 7)))
        assert pieces._kept is not None
        assert pieces._kept.shape[-1] <= 10 + 2 * 5 + 7
    assert 7 * blocks - given_out < 10 + 5, "what is ready is given out at once"
    assert max(heard) == 20


def test_nothing_in_nothing_out() -> None:
    assert Piecewise(lambda x: x, unit_in=1, unit_out=1, context=2, chunk=3, in_silence=True).finish() == []
