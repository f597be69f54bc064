"""The average of weights."""

import pytest
import torch
from torch import nn

from training.ema import WeightAverage


def steps(module: nn.Linear, count: int) -> list[torch.Tensor]:
    """New weights of each step."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(module.weight.shape, generator=generator) for _ in range(count)]


def test_formula_in_float64() -> None:
    module = nn.Linear(3, 2)
    average = WeightAverage(module, 0.8)
    expected = module.weight.detach().double()
    for number, weight in enumerate(steps(module, 40), 1):
        with torch.no_grad():
            module.weight.copy_(weight)
        average.update()
        decay = min(0.8, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * weight.double()
        torch.testing.assert_close(average.values["weight"].double(), expected, rtol=1e-5, atol=1e-6)
    assert average.updates == 40


def test_it_holds_copies_in_float32_of_what_is_trained() -> None:
    module = nn.Linear(3, 2).half()
    module.bias.requires_grad_(False)
    average = WeightAverage(module, 0.9)
    assert list(average.values) == ["weight"]
    assert average.values["weight"].dtype == torch.float32
    before = average.values["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1)
    assert torch.equal(average.values["weight"], before)


def test_no_decay_is_the_last_weights() -> None:
    module = nn.Linear(3, 2)
    average = WeightAverage(module, 0.0)
    with torch.no_grad():
        module.weight.copy_(steps(module, 1)[0])
    average.update()
    assert torch.equal(average.values["weight"], module.weight)


def test_going_on_from_a_state_is_bitwise_the_same() -> None:
    module = nn.Linear(3, 2)
    straight, first, second = (WeightAverage(module, 0.99) for _ in range(3))
    for number, weight in enumerate(steps(module, 6)):
        if number == 3:
            second.load_state_dict(first.state_dict())
        with torch.no_grad():
            module.weight.copy_(weight)
        straight.update()
        (first if number < 3 else second).update()
    assert torch.equal(straight.values["weight"], second.values["weight"])
    assert second.updates == 6


def test_a_state_of_another_module_is_refused() -> None:
    with pytest.raises(KeyError, match="weight"):
        WeightAverage(nn.Linear(3, 2), 0.9).load_state_dict({"updates": 1})


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_wrong_decay(decay: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        WeightAverage(nn.Linear(1, 1), decay)
