import numpy as np
import pytest
import torch

from mgeldm.codec import load_codec
from mgeldm.codec.autoencoder import AutoencoderCodec, oobleck_config
from mgeldm.codec.fast import FastSnake, replace_snakes


def snake(channels: int, logscale: bool = True) -> torch.nn.Module:
    from stable_audio_tools.models.blocks import SnakeBeta

    made: torch.nn.Module = SnakeBeta(channels, alpha_logscale=logscale)
    with torch.no_grad():
        made.alpha += torch.linspace(-1, 2, channels) if logscale else torch.linspace(0.1, 4, channels)
        made.beta += torch.linspace(1, -1, channels) if logscale else torch.linspace(0.1, 4, channels)
    return made


def exact(module: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    """``x + sin(a x)^2 / b`` in float64."""
    alpha, beta = (getattr(module, name).detach().double() for name in ("alpha", "beta"))
    if module.alpha_logscale:
        alpha, beta = alpha.exp(), beta.exp()
    value = x.double()
    found: np.ndarray = (value + torch.sin(alpha[:, None] * value) ** 2 / (beta[:, None] + 1e-9)).numpy()
    return found


@pytest.mark.parametrize("logscale", [True, False])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_the_one_pass_snake_is_as_exact_as_pytorch(logscale: bool, scale: float) -> None:
    module = snake(5, logscale)
    x = scale * torch.randn(3, 5, 1003, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        fast, plain = FastSnake(module)(x), module(x)
    truth = exact(module, x)
    bound = max(2 * np.abs(plain.numpy() - truth).max(), 3e-6)
    assert np.abs(fast.numpy() - truth).max() <= bound


def test_a_gradient_or_another_type_takes_the_way_of_pytorch() -> None:
    module = FastSnake(snake(4))
    x = torch.randn(1, 4, 50, generator=torch.Generator().manual_seed(1))
    expected = exact(snake(4), x)
    tracked = x.clone().requires_grad_()
    module(tracked).sum().backward()
    assert tracked.grad is not None
    assert tracked.grad.abs().min() >= 0
    np.testing.assert_allclose(module(tracked).detach().numpy(), expected, atol=3e-6)
    np.testing.assert_allclose(module(x.double()).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(module(x.bfloat16()).float().numpy(), expected, atol=0.3)
    # Strided, as a transposed convolution may give it.
    np.testing.assert_allclose(module(x.transpose(1, 2).contiguous().transpose(1, 2)).numpy(), expected, atol=3e-6)


def test_a_loaded_codec_is_the_network_that_was_stored() -> None:
    codec = load_codec()
    plain = AutoencoderCodec(codec.config, {k: v.half() for k, v in _state().items()})
    plain.eval()
    assert plain.identity == codec.identity
    assert not any(isinstance(module, FastSnake) for module in plain.modules())
    assert sum(isinstance(module, FastSnake) for module in codec.modules()) == 72
    wave = 0.3 * torch.randn(2, 1, 9 * 2048, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours, theirs = codec.encode(wave), plain.encode(wave)
        assert (ours - theirs).norm() / theirs.norm() < 1e-5
        sounds = codec.decode(theirs), plain.decode(theirs)
    assert (sounds[0] - sounds[1]).norm() / sounds[1].norm() < 1e-4


def _state() -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    from mgeldm.codec.loading import _SHIPPED

    return load_file(_SHIPPED / "model.safetensors")


def test_every_snake_of_a_network_is_replaced_and_nothing_else() -> None:
    network = AutoencoderCodec(oobleck_config(channels=2, latent_channels=4, strides=(2, 4))).network.encoder
    kinds = [type(module).__name__ for module in network.modules()]
    replace_snakes(network)
    assert [type(module).__name__.replace("FastSnake", "SnakeBeta") for module in network.modules()] == kinds
    assert kinds.count("SnakeBeta") == 15
