"""The joint network: the official arithmetic, its keys, sizes and training behaviour."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.reference_transformer import reference_forward
from mgeldm.diffusion import v_loss
from mgeldm.model import PRESETS, JointConfig, JointTransformer, official_config
from mgeldm.model.transformer import Norm, RotaryPositions, rotate

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = JointConfig(latent_channels=4, width_per_track=32, embedding_dim=8, timestep_features=8, depth=2, heads=3)


def _official() -> JointTransformer:
    stored = load_file(GOLDEN / "official_dit_tiny.safetensors")
    state_dict = {key.removeprefix("model_dit."): value for key, value in stored.items()}
    model = JointTransformer(official_config(state_dict, heads=3))
    model.load_state_dict(state_dict, strict=True)
    return model.eval()


def _inputs(config: JointConfig, batch: int = 2, frames: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, config.tracks, config.latent_channels, frames, generator=generator)
    timesteps = torch.rand(batch, config.tracks, generator=generator)
    return latents, timesteps, torch.randn(batch, config.tracks, config.embedding_dim, generator=generator)


def _lively(config: JointConfig) -> JointTransformer:
    """A network in which every weight counts; at first many are zero."""
    model, generator = JointTransformer(config).requires_grad_(False), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def _relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def test_official_forward() -> None:
    io, model = load_file(GOLDEN / "official_dit_tiny_io.safetensors"), _official()
    x = io["x"].view(2, 3, 8, 20)
    assert _relative(model(x, io["t"], io["embed"]).flatten(1, 2), io["v"]) < 1e-5
    half = torch.full_like(io["t"], 0.5)
    assert _relative(model(x, half, io["embed"]).flatten(1, 2), io["v_t05"]) < 1e-5


def test_official_config_is_read_from_shapes() -> None:
    with safe_open(GOLDEN / "official_dit_tiny.safetensors", "pt") as file:
        stored = json.loads(file.metadata()["config"])
    assert _official().config == JointConfig(
        tracks=stored["num_tracks"],
        latent_channels=stored["io_channels"],
        width_per_track=stored["embed_dim"],
        embedding_dim=stored["global_cond_dim"],
        timestep_features=stored["timestep_features_dim"],
        depth=stored["depth"],
        heads=stored["num_heads"],
        norm="group",
    )


def test_official_config_names_what_is_missing() -> None:
    with pytest.raises(ValueError, match="without that prefix"):
        official_config({"model_dit.preprocess_conv.weight": torch.zeros(24, 24, 1)}, heads=3)


def test_weights_load_onto_a_model_that_drew_none() -> None:
    model = _official()
    with torch.device("meta"):
        empty = JointTransformer(model.config)
    empty.load_state_dict(model.state_dict(), assign=True)
    inputs = _inputs(model.config)
    assert torch.equal(empty(*inputs), model(*inputs))


@pytest.mark.parametrize(
    ("name", "parameters"), [("tiny", 5.1e6), ("small", 33.3e6), ("base", 172e6), ("paper", 1.0231e9)]
)
def test_preset_parameter_counts(name: str, parameters: float) -> None:
    with torch.device("meta"):
        model = JointTransformer(PRESETS[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=0.005)


def test_paper_preset_is_the_released_configuration() -> None:
    assert PRESETS["paper"] == JointConfig(
        latent_channels=64, width_per_track=512, embedding_dim=512, timestep_features=256, depth=24, heads=48
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 6}, "16 channels a head"),
        ({"heads": 5}, "19.2 channels a head"),
        ({"timestep_features": 7}, "must be even"),
        ({"depth": 0}, "model depth is 0"),
        ({"norm": "batch"}, "'group' or 'layer'"),
    ],
)
def test_impossible_sizes_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointConfig(**{**vars(SMALL), **wrong})


def test_shapes_that_do_not_fit_are_refused() -> None:
    latents, timesteps, embeddings = _inputs(SMALL)
    model = JointTransformer(SMALL)
    for wrong in (
        (latents[:, :2], timesteps, embeddings),
        (latents[0], timesteps, embeddings),
        (latents, timesteps[:, :1], embeddings),
        (latents, timesteps, embeddings[..., :4]),
    ):
        with pytest.raises(ValueError, match="it takes"):
            model(*wrong)


def test_initial_values() -> None:
    config = replace(SMALL, depth=1, width_per_track=64, heads=6, timestep_features=512)
    state = JointTransformer(config, seed=0).state_dict()
    block = "transformer.layers.0."
    for name in ("self_attn.to_out.weight", "ff.ff.2.weight", "ff.ff.2.bias", "to_scale_shift_gate.2.weight"):
        assert (state[block + name] == 0).all()
    assert (state["preprocess_conv.weight"] == 0).all()
    assert (state["postprocess_conv.weight"] == 0).all()
    assert (state[block + "pre_norm.gamma"] == 0.5).all()
    assert (state[block + "ff_norm.beta"] == 0).all()
    assert state["timestep_features.weight"].std().item() == pytest.approx(0.5, rel=0.15)
    for name, inputs in (("self_attn.to_qkv.weight", 192), ("ff.ff.0.proj.bias", 192)):
        bound = 0.5 / math.sqrt(inputs)
        assert state[block + name].abs().max().item() == pytest.approx(bound, rel=0.01)
        assert state[block + name].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_seed_alone_makes_the_weights() -> None:
    torch.manual_seed(1)
    first = JointTransformer(SMALL, seed=0).state_dict()
    torch.manual_seed(2)
    again = JointTransformer(SMALL, seed=0).state_dict()
    other = JointTransformer(SMALL, seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["transformer.project_in.weight"], other["transformer.project_in.weight"])


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_gradient_reaches_every_parameter(norm: str) -> None:
    # The zeros of initialisation open in turn: what blocks add, then the modulation, then the embeddings.
    model = JointTransformer(JointConfig(**{**vars(SMALL), "norm": norm}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    latents, timesteps, embeddings = _inputs(SMALL)
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(v_loss(model(latents, timesteps, embeddings), torch.ones_like(latents), timesteps))
        optimizer.step()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


def test_training_learns() -> None:
    model = JointTransformer(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    latents, timesteps, embeddings = _inputs(SMALL)
    target = _inputs(SMALL, seed=1)[0]
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = v_loss(model(latents, timesteps, embeddings), target, timesteps)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@torch.no_grad()
def test_norms_take_their_own_means() -> None:
    x = torch.randn(2, 5, SMALL.width, generator=torch.Generator().manual_seed(0))
    normed = {}
    for norm in ("group", "layer"):
        normed[norm] = Norm(JointConfig(**{**vars(SMALL), "norm": norm}))(x)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(normed["layer"], expected, rtol=1e-5, atol=1e-5)
    tracks = normed["group"].reshape(2, 5, 3, 32)
    torch.testing.assert_close(tracks.mean(dim=(1, 3)), torch.zeros(2, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(tracks.square().mean(dim=(1, 3)), torch.ones(2, 3), rtol=0, atol=1e-4)


def test_rotary_positions_are_relative() -> None:
    cos, sin = RotaryPositions(32)(2000)
    q, k = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    turned_q, turned_k = (rotate(x.expand(1, 1, 2000, 40), cos, sin)[0, 0] for x in (q, k))
    assert torch.equal(turned_q[:, 32:], q[32:].expand(2000, 8)), "channels past the rotary width stay"
    scores = torch.stack([turned_q[n] @ turned_k[n + 7] for n in (0, 50, 1900)])
    torch.testing.assert_close(scores, scores[:1].expand(3), rtol=1e-3, atol=1e-3)
    assert (turned_q[0] - turned_q[1]).abs().max() > 0.1


@torch.no_grad()
def test_any_length_and_batch_size() -> None:
    model = _official()
    for frames in (1, 2, 333):
        latents, timesteps, embeddings = _inputs(model.config, batch=3, frames=frames)
        together = model(latents, timesteps, embeddings)
        assert together.shape == latents.shape
        assert together.isfinite().all()
        alone = model(latents[1:2], timesteps[1:2], embeddings[1:2])
        torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_float64_agrees_with_float32() -> None:
    model = _official()
    inputs = _inputs(model.config)
    single = model(*inputs)
    double = model.double()(*(value.double() for value in inputs))
    assert double.dtype == torch.float64
    assert _relative(single.double(), double) < 1e-5


@torch.no_grad()
def test_bfloat16_autocast_keeps_far_positions_and_timesteps() -> None:
    model = _official()
    inputs = _inputs(model.config, frames=1500)
    full = model(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = model(*inputs)
        cos, sin = model.transformer.rotary_pos_emb(1501)
        features = model.timestep_features(inputs[1])
    assert cos.dtype == sin.dtype == features.dtype == torch.float32
    error = (reduced.float() - full).square().mean().sqrt() / full.square().mean().sqrt()
    assert error < 0.02


def test_network_is_one_graph() -> None:
    model = _official()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for frames in (8, 13):
        inputs = _inputs(model.config, frames=frames)
        torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_network_gives_the_same() -> None:
    model = _lively(replace(SMALL, depth=1))
    inputs = _inputs(model.config)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


def test_the_graph_has_no_breaks() -> None:
    model = _official()
    found = torch._dynamo.explain(model)(*_inputs(model.config))
    assert found.graph_count == 1
    assert found.graph_break_count == 0


@pytest.mark.parametrize("tracks", [1, 2, 4])
def test_any_number_of_tracks(tracks: int) -> None:
    """Four tracks with one timestep are a fixed-class baseline, one per stem."""
    config = replace(SMALL, tracks=tracks, heads=tracks)
    model = _lively(config)
    latents, timesteps, embeddings = _inputs(config)
    v = model(latents, timesteps, embeddings)
    assert v.shape == latents.shape == (2, tracks, 4, 9)
    for track in range(tracks):
        other = embeddings.clone()
        other[:, track] += 1
        assert not torch.allclose(model(latents, timesteps, other), v, rtol=0, atol=1e-5)
        later = timesteps.clone()
        later[:, track] *= 0.5
        assert not torch.allclose(model(latents, later, embeddings), v, rtol=0, atol=1e-5)
    assert official_config(model.state_dict(), heads=tracks) == config


@torch.no_grad()
def test_the_benchmarks_reference_is_the_same_network() -> None:
    model = _official()
    inputs = _inputs(model.config)
    torch.testing.assert_close(reference_forward(model, *inputs), model(*inputs), rtol=1e-5, atol=1e-5)
