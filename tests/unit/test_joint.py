"""The tasks: what goes in and comes out, at any length, against models whose answer is known."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manifests.errors import AudioError, CheckpointError, ConfigError, PromptError
from mgeldm import MGELDM, audio
from mgeldm.audio import Wave
from mgeldm.checkpoint import CheckpointConfig, save_checkpoint
from mgeldm.codec import CodecSpec
from mgeldm.embedder import DualConfig, DualEncoder, EmbedderSpec
from mgeldm.engine import Wish, crop_starts
from mgeldm.model import JointConfig, JointTransformer
from mgeldm.outputs import OutputConfig, Track
from mgeldm.sampling import SamplingConfig, VelocityModel
from mgeldm.signals import Rolling
from mgeldm.tasks import EXTRACT, TASKS, track_index
from tests.support.models import WORDS, write_codec, write_embedder

RATE, HOP, CROP = 1000, 4, 8
CHANNELS, DIM = HOP, 6
WINDOW_S = 0.02
FEW = SamplingConfig(steps=3)
MEAN, STD = (0.1, -0.2, 0.0, 0.3), (0.5, 0.2, 0.3, 0.4)
# Shorter than a hop and than a crop, not a multiple of the hop, a crop, one sample more, several chunks.
LENGTHS = [1, 3, 17, 32, 33, 100, 129]


class Frames:
    """A codec without loss: the latents of a frame are its samples."""

    identity = "frames"

    def __init__(self, channels: int = 1) -> None:
        self.spec = CodecSpec(
            sample_rate=RATE, channels=channels, latent_channels=CHANNELS * channels, hop=HOP, context=0
        )

    def encode(self, wave: torch.Tensor) -> torch.Tensor:
        assert wave.abs().max() <= 1.0
        return wave.unflatten(2, (-1, HOP)).transpose(2, 3).flatten(1, 2)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.unflatten(1, (-1, HOP)).transpose(2, 3).flatten(2)


class Recorder:
    """An embedder that keeps what it heard; knows the words bass and drums, and those of the template."""

    identity = "recorder"
    spec = EmbedderSpec(sample_rate=RATE, window_s=WINDOW_S, dim=DIM)

    def __init__(self) -> None:
        self.heard: list[Wave] = []

    def embed_audio(self, wave: torch.Tensor) -> torch.Tensor:
        assert wave.shape == (1, round(WINDOW_S * RATE))
        self.heard.append(wave[0].numpy())
        return torch.ones(1, DIM)

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        if not {"bass", "drums", "sound"} & set(texts[0].split()):
            raise PromptError(f"none of the words of {texts[0]!r} is known")
        return torch.full((1, DIM), float("drums" in texts[0]) + 2)


class Proportional:
    """A network that is sure of its answer: each track is a fixed share of the given one, in the codec's own scale."""

    def __init__(self, shares: tuple[float, float, float]) -> None:
        self.shares = torch.tensor(shares)[None, :, None, None]
        self.conditions: list[torch.Tensor] = []

    def __call__(self, latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        self.conditions.append(embeddings[0])
        mean, std = (torch.tensor(values)[:, None] for values in (MEAN, STD))
        clean = timesteps[0] == 0
        given = (latents[:, clean] * std + mean) if clean.any() else torch.ones(1)
        answer = (self.shares * given - mean) / std
        angle = (timesteps * torch.pi / 2)[:, :, None, None]
        return torch.where(angle > 0, (latents * angle.cos() - answer) / angle.sin(), torch.zeros_like(latents))


def config(channels: int = 1) -> CheckpointConfig:
    return CheckpointConfig(
        model=JointConfig(
            width_per_track=32,
            depth=1,
            heads=3,
            timestep_features=8,
            latent_channels=CHANNELS * channels,
            embedding_dim=DIM,
        ),
        codec={"identity": "frames"},
        embedder={"identity": "recorder"},
        prompt_template="the sound of {}",
        crop_frames=CROP,
        latent_mean=MEAN * channels,
        latent_std=STD * channels,
        silence_latent=(0.0,) * (CHANNELS * channels),
    )


def model(network: VelocityModel | None = None, channels: int = 1) -> MGELDM:
    made = config(channels)
    chosen = network or JointTransformer(made.model, seed=1).eval().requires_grad_(False)
    return MGELDM(made, chosen, Frames(channels), Recorder(), torch.device("cpu"))  # type: ignore[arg-type]


def wave(length: int, channels: int = 1, peak: float = 0.5) -> Wave:
    noise = np.random.default_rng(length).uniform(-1, 1, (channels, length))
    return (peak * noise / np.abs(noise).max()).astype(np.float32)


CALLS: dict[str, Callable[[MGELDM, Wave, str, SamplingConfig], Wave]] = {
    "extract": lambda m, x, prompt, sampling: m.extract(x, prompt, sampling)["source"],
    "impute": lambda m, x, prompt, sampling: m.impute(x, [prompt], sampling)[0],
    "accompany": lambda m, x, prompt, sampling: m.accompany(x, prompt, sampling),
    "generate": lambda m, x, prompt, sampling: m.generate(prompt, x.shape[1] / RATE, sampling),
}


class TestKnownAnswers:
    @pytest.mark.parametrize("length", LENGTHS)
    def test_extract(self, length: int) -> None:
        mix = wave(length)
        tracks = model(Proportional((1.0, 0.75, 0.25))).extract(mix, "bass", FEW)
        assert sorted(tracks) == ["source", "submix"]
        np.testing.assert_allclose(tracks["source"], 0.25 * mix, atol=1e-5)
        np.testing.assert_allclose(tracks["submix"], 0.75 * mix, atol=1e-5)
        assert tracks["source"].dtype == np.float32

    @pytest.mark.parametrize("length", LENGTHS)
    def test_accompany(self, length: int) -> None:
        source = wave(length)
        submix = model(Proportional((3.0, 2.0, 1.0))).accompany(source, "bass", FEW)
        np.testing.assert_allclose(submix, 2 * source, atol=1e-5)

    def test_impute_adds_each_source_before_the_next(self) -> None:
        submix = wave(100, peak=0.2)
        sources = model(Proportional((1.5, 1.0, 0.5))).impute(submix, ["bass", "drums"], FEW)
        np.testing.assert_allclose(sources[0], 0.5 * submix, atol=1e-5)
        np.testing.assert_allclose(sources[1], 0.5 * 1.5 * submix, atol=1e-5)

    def test_generate(self) -> None:
        mix = model(Proportional((0.3, 0.2, 0.1))).generate("bass", 0.1, FEW)
        np.testing.assert_allclose(mix, np.full((1, 100), 0.3), atol=1e-5)

    @pytest.mark.parametrize("peak", [0.9, 1.0, 1.5, 40.0])
    def test_a_peak_above_full_scale_is_undone(self, peak: float) -> None:
        mix = wave(50, peak=peak)
        tracks = model(Proportional((1.0, 0.75, 0.25))).extract(mix, "bass", FEW)
        np.testing.assert_allclose(tracks["source"], 0.25 * mix, rtol=1e-4, atol=peak * 1e-5)

    def test_silence(self) -> None:
        tracks = model(Proportional((1.0, 0.75, 0.25))).extract(np.zeros((1, 50), np.float32), "bass", FEW)
        np.testing.assert_allclose(tracks["source"], 0, atol=1e-5)

    def test_stereo(self) -> None:
        mix = wave(50, channels=2)
        stereo = model(lambda z, tau, e: torch.zeros_like(z), channels=2)
        assert stereo.extract(mix, "bass", FEW)["source"].shape == (2, 50)

    def test_float64_and_read_only_input(self) -> None:
        mix = wave(50)
        mix.setflags(write=False)
        tracks = model(Proportional((1.0, 0.75, 0.25)))
        np.testing.assert_allclose(tracks.extract(mix[:, ::-1], "bass", FEW)["source"], 0.25 * mix[:, ::-1], atol=1e-5)
        double = mix.astype(np.float64)
        np.testing.assert_allclose(tracks.extract(double, "bass", FEW)["source"], 0.25 * mix, atol=1e-5)


class TestConditions:
    @pytest.mark.parametrize("name", ["extract", "impute", "accompany", "generate"])
    def test_words_and_sound_stand_at_their_tracks(self, name: str) -> None:
        network = Proportional((1.0, 1.0, 1.0))
        CALLS[name](model(network), wave(20), "drums", SamplingConfig(steps=1, guidance=1.0))
        expected = torch.zeros(3, DIM)
        expected[track_index(TASKS[name].prompted)] = 3.0
        if (given_track := TASKS[name].given) is not None:
            expected[track_index(given_track)] = 1.0
        assert len(network.conditions) == 1
        assert torch.equal(network.conditions[0], expected)

    def test_the_sound_is_that_around_the_middle_of_each_crop(self) -> None:
        mix = wave(100)
        made = model(Proportional((1.0, 1.0, 1.0)))
        made.extract(mix, "bass", SamplingConfig(steps=1))
        # Crops of 32 samples begin at frames 0, 6, 12, 17; windows are 20 samples.
        begins = [6, 30, 54, 74]
        assert isinstance(made.embedder, Recorder)
        for heard, begin in zip(made.embedder.heard, begins, strict=True):
            np.testing.assert_allclose(heard, mix[0, begin : begin + 20], atol=1e-7)

    def test_sound_shorter_than_the_window_is_padded(self) -> None:
        mix = wave(7)
        made = model(Proportional((1.0, 1.0, 1.0)))
        made.extract(mix, "bass", SamplingConfig(steps=1))
        assert isinstance(made.embedder, Recorder)
        np.testing.assert_allclose(made.embedder.heard[0], np.pad(mix[0], (0, 13)), atol=1e-7)


class TestKinds:
    """Arrays, tensors and paths, at any rate: what goes in comes out in kind."""

    NET = Proportional((1.0, 0.75, 0.25))

    def test_flat_arrays_and_tensors(self) -> None:
        mix = wave(50)
        flat = model(self.NET).extract(mix[0], "bass", FEW)["source"]
        np.testing.assert_allclose(flat, 0.25 * mix[0], atol=1e-5)
        tensor = model(self.NET).extract(torch.from_numpy(mix), "bass", FEW)["source"]
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_allclose(tensor, 0.25 * mix, atol=1e-5)
        (source,) = model(self.NET).impute(torch.from_numpy(mix)[0].double(), "bass", FEW)
        assert (source.shape, source.dtype) == ((50,), torch.float32)
        assert model(self.NET).accompany(mix[0], "bass", FEW).shape == (50,)

    def test_a_path(self, tmp_path: Path) -> None:
        mix = 0.3 * np.sin(np.arange(8000, dtype=np.float32) / 300)[None].repeat(2, axis=0)
        audio.save(tmp_path / "mix.wav", mix, 8000)
        for given_path in (tmp_path / "mix.wav", str(tmp_path / "mix.wav")):
            source = model(self.NET).extract(given_path, "bass", FEW)["source"]
            np.testing.assert_allclose(source, 0.25 * audio.resample(mix[:1], 8000, RATE), atol=1e-5)

    @pytest.mark.parametrize("name", ["extract", "impute", "accompany"])
    def test_rate_and_channels_of_the_input(self, name: str) -> None:
        """A slow wave at five times the codec's rate comes back at its rate, length and channels."""
        slow = (0.3 * np.sin(np.arange(5003) / 200))[None].repeat(2, axis=0).astype(np.float32)
        made = model(Proportional((1.0, 0.5, 0.5)))
        call = {
            "extract": lambda **k: made.extract(slow, "bass", FEW, **k)["source"],
            "impute": lambda **k: made.impute(slow, ["bass"], FEW, **k)[0],
            "accompany": lambda **k: made.accompany(slow, "bass", FEW, **k),
        }[name]
        assert call(rate=5000).shape == (1, 1001)
        assert call(rate=5000, output_channels="input").shape == (2, 1001)
        back = call(rate=5000, output_rate="input", output_channels="input")
        assert back.shape == (2, 5003)
        np.testing.assert_allclose(back[:, 200:-200], 0.5 * slow[:, 200:-200], atol=2e-3)

    def test_a_list_of_prompts_is_one_prompt_after_the_other(self) -> None:
        mix, prompts = wave(129), ["bass", "drums", "bass"]
        for batch in (1, 2, 5):
            found = model().extract(mix, prompts, FEW, batch=batch)
            for prompt, tracks in zip(prompts, found, strict=True):
                alone = model().extract(mix, prompt, FEW)
                for name, expected in alone.items():
                    np.testing.assert_allclose(tracks[name], expected, atol=1e-5)

    def test_refinement_is_off_by_default_and_adds_up(self) -> None:
        mix = wave(129, peak=3.0)
        plain = model().extract(mix, "bass", FEW)
        assert np.abs(plain["source"] + plain["submix"] - mix).max() > 0.1
        for options in ({"consistent": True}, {"refine": "wiener"}):
            found = model().extract(mix, "bass", FEW, **options)  # type: ignore[call-overload]
            np.testing.assert_allclose(found["source"] + found["submix"], mix, atol=3e-6)
        expected = plain["source"] + (mix - plain["source"] - plain["submix"]) / 2
        np.testing.assert_allclose(model().extract(mix, "bass", FEW, consistent=True)["source"], expected, atol=1e-5)


class TestLength:
    def test_short_sound_is_followed_by_the_latent_of_silence(self) -> None:
        """Not by zeros: the silent latent of this codec is none."""
        seen: list[torch.Tensor] = []

        def network(latents: torch.Tensor, timesteps: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            seen.append(latents[0, track_index("mix")])
            assert timesteps[0, track_index("mix")] == 0
            return torch.zeros_like(latents)

        silence = (0.4, -0.1, 0.2, 0.0)
        made = model(network)
        made = MGELDM(
            replace(made.config, silence_latent=silence),
            made.model,
            made.codec,
            made.embedder,
            made.device,
        )
        mix = wave(2 * HOP)
        assert made.extract(mix, "bass", FEW)["source"].shape == mix.shape
        mean, std = (torch.tensor(values)[:, None] for values in (MEAN, STD))
        heard = seen[0] * std + mean
        np.testing.assert_allclose(heard[:, :2].T.reshape(1, -1), mix, atol=1e-6)
        np.testing.assert_allclose(heard[:, 2:], np.repeat(np.array(silence)[:, None], CROP - 2, axis=1), atol=1e-6)

    @pytest.mark.parametrize("length", [2_000, 20_000])
    def test_no_more_is_kept_of_long_sound_than_a_few_crops(self, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
        kept: dict[int, int] = {}
        cut = Rolling.cut

        def spied(self: Rolling, begin: int, end: int) -> torch.Tensor:
            found = cut(self, begin, end)
            kept[id(self)] = max(kept.get(id(self), 0), self._parts[0].shape[-1])
            return found

        monkeypatch.setattr(Rolling, "cut", spied)
        monkeypatch.setattr(audio, "BLOCK_SAMPLES", 64)
        monkeypatch.setattr("mgeldm.codec.long.CHUNK_FRAMES", 16)
        mix = wave(length)
        found = model(Proportional((1.0, 0.75, 0.25))).extract(mix, "bass", SamplingConfig(steps=1), consistent=True)
        np.testing.assert_allclose(found["source"], 0.25 * mix, atol=1e-5)
        assert len(kept) == 2
        assert max(kept.values()) < 1_800, "refinement works on pieces of 256 spectra and lags; nothing grows"

    def test_sounds_of_different_lengths_go_side_by_side(self) -> None:
        """Sampled together, each is what it is alone."""
        made, sizes = model(), []
        network = made.engine.network

        def spied(latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
            sizes.append(latents.shape[0])
            return network(latents, timesteps, embeddings)

        made.engine.network = spied
        mixes = [wave(length) for length in (129, 20, 70)]
        found: list[list[Wave]] = [[] for _ in mixes]
        lanes = []
        for mix, parts in zip(mixes, found, strict=True):
            signal = made.open(mix)
            tracks = {
                "source": Track(parts.append, signal.form, signal.form),
                "submix": Track(ignored, *2 * [signal.form]),
            }
            wish = Wish(prompt="bass", words=made.embed_prompt("bass"), tracks=tracks)
            lanes.append(made.engine.lane(EXTRACT, signal, mix.shape[1], [wish], FEW, OutputConfig()))
        told: list[int] = []
        made.engine.drive(lanes, FEW, batch=2, advanced=told.append)
        for mix, parts in zip(mixes, found, strict=True):
            alone = model().extract(mix, "bass", FEW)["source"]
            np.testing.assert_allclose(np.concatenate(parts, axis=1), alone, atol=1e-5)
        assert max(sizes) == 2 * 2, "two examples, with and without their words"
        assert sum(told) == FEW.evaluations * sum(len(made.engine.starts(mix.shape[1])) for mix in mixes)


def ignored(block: Wave) -> None:
    assert np.isfinite(block).all()


class TestSeeds:
    @pytest.mark.parametrize("name", list(CALLS))
    @pytest.mark.parametrize("length", [5, 32, 71])
    def test_same_seed_same_output(self, name: str, length: int) -> None:
        mix, call = wave(length), CALLS[name]
        first = call(model(), mix, "bass", FEW)
        torch.manual_seed(1)
        again = call(model(), mix, "bass", FEW)
        other = call(model(), mix, "bass", SamplingConfig(steps=3, seed=1))
        assert first.shape == (1, length)
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, other)

    def test_chunks_do_not_repeat_their_noise(self) -> None:
        # The answer is the noise. The second chunk begins at frame 6 and holds two frames.
        out = model(lambda z, tau, e: z).generate("bass", 0.2, SamplingConfig(steps=1))
        assert abs(np.corrcoef(out[0, 2 * HOP : 8 * HOP], out[0, 8 * HOP : 14 * HOP])[0, 1]) < 0.9

    def test_sources_imputed_one_after_another_begin_from_other_noise(self) -> None:
        first, second = model(lambda z, tau, e: z).impute(wave(32), ["bass", "drums"], SamplingConfig(steps=1))
        assert abs(np.corrcoef(first[0], second[0])[0, 1]) < 0.9

    def test_a_prompt_that_comes_again_begins_from_other_noise_also_by_another_call(self) -> None:
        noise, submix, once = model(lambda z, tau, e: z), wave(32), SamplingConfig(steps=1)
        first, second = noise.impute(submix, ["drums", "drums"], once)
        assert abs(np.corrcoef(first[0], second[0])[0, 1]) < 0.9
        (alone,) = noise.impute(submix + first, ["drums"], once, earlier=["drums"])
        np.testing.assert_array_equal(alone, second)

    def test_held_frames_join_the_chunks(self) -> None:
        """What a chunk said of the first half of the overlap stays, and of what lies before."""
        long, short = (model().generate("bass", seconds, FEW) for seconds in (0.2, 0.032))
        stays = 32 - HOP
        np.testing.assert_allclose(long[:, :stays], short[:, :stays], atol=1e-6)
        assert not np.allclose(long[:, stays:32], short[:, stays:], atol=1e-3)

    @pytest.mark.parametrize(
        ("frames", "expected"),
        [
            (16, [1] * 6 + [4 / 3, 5 / 3, 2, 2, 7 / 3, 8 / 3] + [3] * 4),
            # The last begins where it ends with the sound, and holds more.
            (14, [1] * 6 + [4 / 3, 5 / 3, 2, 2, 7 / 3, 8 / 3] + [3] * 2),
            (8, [1] * 8),
        ],
    )
    def test_a_chunk_passes_into_the_next_over_half_of_the_overlap(self, frames: int, expected: list[float]) -> None:
        class Counting(Proportional):
            """Says 1 all through the first crop, 2 in the second."""

            def __call__(
                self, latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor
            ) -> torch.Tensor:
                self.shares = self.shares + 1
                return super().__call__(latents, timesteps, embeddings)

        sampling = SamplingConfig(steps=1, guidance=1.0, overlap=0.5)
        made = model(Counting((0.0, 0.0, 0.0))).generate("bass", frames * HOP / RATE, sampling)
        np.testing.assert_allclose(made, np.repeat(expected, HOP)[None], atol=1e-5)

    def test_progress_counts_all_evaluations(self) -> None:
        told: list[tuple[int, int]] = []
        model().impute(wave(33), ["bass", "drums"], FEW, lambda done, total: told.append((done, total)))
        assert told == [(number, 12) for number in range(1, 13)]


class TestBadInput:
    @pytest.mark.parametrize("name", list(CALLS))
    @pytest.mark.parametrize(("prompt", "words"), [("", "empty"), (" \t", "empty"), ("zither", "none of the words")])
    def test_prompts(self, name: str, prompt: str, words: str) -> None:
        with pytest.raises(PromptError, match=words):
            CALLS[name](model(), wave(20), prompt, FEW)

    def test_no_prompt_is_sampled_when_one_is_wrong(self) -> None:
        network = Proportional((1.0, 1.0, 1.0))
        with pytest.raises(PromptError, match="zither"):
            model(network).impute(wave(20), ["bass", "zither"], FEW)
        assert network.conditions == []
        with pytest.raises(PromptError, match="no prompt"):
            model(network).impute(wave(20), [], FEW)

    @pytest.mark.parametrize("task", ["extract", "impute", "accompany"])
    @pytest.mark.parametrize("bad", [None, 3, b"drums", ["drums", 3], ["drums", None], [["drums"]], {"a": "drums"}])
    def test_what_is_no_prompt(self, task: str, bad: object) -> None:
        with pytest.raises(PromptError, match="a prompt is a text such as 'drums'") as caught:
            getattr(model(), task)(wave(20), bad, FEW)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("task", ["extract", "impute"])
    @pytest.mark.parametrize(("bad", "words"), [([], "no prompt"), (["drums", ""], "empty"), ((), "no prompt")])
    def test_lists_of_prompts(self, task: str, bad: object, words: str) -> None:
        with pytest.raises(PromptError, match=words):
            getattr(model(), task)(wave(20), bad, FEW)

    def test_generate_takes_one_prompt(self) -> None:
        for bad in (None, ["drums"], 3):
            with pytest.raises(PromptError, match="a prompt is a text"):
                model().generate(bad, 1.0, FEW)  # type: ignore[arg-type]

    @pytest.mark.parametrize("task", ["extract", "impute", "accompany"])
    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (None, "not NoneType"),
            ([0.1, 0.2], "not list"),
            (3, "not int"),
            (b"x.wav", "not bytes"),
            ({"audio": 1}, "not dict"),
            (np.array(0.5, np.float32), r"got float32 \[\]"),
            (np.zeros(20, np.complex64), "got complex64"),
            (np.zeros(20, bool), "got bool"),
            (np.array([None, "x"]), "got object"),
            (torch.zeros(20, dtype=torch.complex64), "got torch.complex64"),
            (torch.zeros(2, 3, 20), r"got torch.float32 \[2, 3, 20\]"),
            (torch.zeros(500, 2), "500 channels; .* transpose"),
            (torch.zeros(0), "0 samples"),
            (torch.tensor([0.1, torch.nan]), "NaN or infinite"),
            (np.array([0.1, 1e300]), "NaN or infinite"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:overflow encountered")
    def test_what_is_no_audio(self, task: str, bad: object, words: str) -> None:
        with pytest.raises(AudioError, match=words) as caught:
            getattr(model(), task)(bad, "drums", FEW)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("rate", [0, -1, -44_100, 3, 10**7, 44_100.5, float("nan"), "44100"])
    def test_rates_that_are_none(self, rate: int) -> None:
        with pytest.raises(AudioError, match=r"a sample rate of .* whole number from 4000 to 768000"):
            model().extract(wave(20), "drums", FEW, rate=rate)

    def test_a_whole_rate_may_be_a_float(self) -> None:
        found = model().extract(wave(8000), "drums", FEW, rate=8000.0)  # type: ignore[call-overload]
        np.testing.assert_array_equal(found["source"], model().extract(wave(8000), "drums", FEW, rate=8000)["source"])

    @pytest.mark.parametrize(("name", "words"), [(".", "not a file"), ("x.wav", "no such file"), ("a.txt", "a.txt")])
    def test_paths(self, name: str, words: str, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("no sound")
        with pytest.raises(AudioError, match=words) as caught:
            model().extract(tmp_path / name, "drums", FEW)
        assert "\n" not in str(caught.value)
        with pytest.raises(AudioError, match="says its sample rate itself"):
            model().extract(str(tmp_path / name), "drums", FEW, rate=44_100)

    def test_one_prompt_as_a_string_is_one_prompt(self) -> None:
        assert len(model().impute(wave(20), "bass", FEW)) == 1

    @pytest.mark.parametrize("name", ["extract", "impute", "accompany"])
    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (np.zeros((1, 0), np.float32), "0 samples"),
            (np.zeros((100, 2), np.float32), r"100 channels; .* transpose"),
            (np.zeros((0, 20), np.float32), r"0 channels"),
            (np.zeros((1, 1, 20), np.float32), r"got float32 \[1, 1, 20\]"),
            (np.zeros((1, 20), np.int16), "got int16"),
            (torch.zeros(1, 20, dtype=torch.int16), "got torch.int16"),
            (np.array([[0.1, np.nan, 0.2]], np.float32), "NaN or infinite"),
            (np.array([[0.1, np.inf, 0.2]], np.float32), "NaN or infinite"),
        ],
    )
    def test_audio(self, name: str, bad: Wave, words: str) -> None:
        with pytest.raises(AudioError, match=words):
            CALLS[name](model(), bad, "bass", FEW)

    @pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e6])
    def test_lengths_that_cannot_be_generated(self, seconds: float) -> None:
        with pytest.raises(AudioError, match="cannot generate"):
            model().generate("bass", seconds, FEW)

    @pytest.mark.parametrize("seconds", [None, "10", [1.0], 1j])
    def test_lengths_that_are_no_numbers(self, seconds: object) -> None:
        with pytest.raises(AudioError, match="cannot generate"):
            model().generate("bass", seconds, FEW)  # type: ignore[arg-type]

    def test_the_shortest_that_can_be_generated(self) -> None:
        assert model().generate("bass", 1e-9, FEW).shape == (1, 1)

    @pytest.mark.parametrize(
        ("name", "value"), [("steps", 0), ("seed", -1), ("guidance", -1.0), ("guidance", float("nan"))]
    )
    def test_sampling(self, name: str, value: float) -> None:
        with pytest.raises(ConfigError, match=name):
            SamplingConfig(**{name: value})  # type: ignore[arg-type]


class TestCropStarts:
    @given(frames=st.integers(1, 500), crop=st.integers(2, 60), data=st.data())
    def test_crops_cover_and_overlap(self, frames: int, crop: int, data: st.DataObject) -> None:
        overlap = data.draw(st.integers(0, crop - 1))
        starts = crop_starts(frames, crop, overlap)
        assert starts[0] == 0
        covered = {frame for start in starts for frame in range(start, start + crop)}
        assert covered >= set(range(frames))
        assert starts == sorted(set(starts))
        for first, second in pairwise(starts):
            assert first + crop - second >= overlap
        if frames >= crop:
            assert max(covered) == frames - 1
        # No more crops than needed.
        assert len(starts) == 1 + max(0, -(-(frames - crop) // (crop - overlap)))

    def test_examples(self) -> None:
        assert crop_starts(8, 8, 2) == [0]
        assert crop_starts(9, 8, 2) == [0, 1]
        assert crop_starts(20, 8, 2) == [0, 6, 12]
        assert crop_starts(3, 8, 2) == [0]


class TestFromPretrained:
    @pytest.fixture(scope="class")
    def folders(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
        """Checkpoint, codec, embedder."""
        root = tmp_path_factory.mktemp("models")
        codec, embedder = write_codec(root / "codec"), write_embedder(root / "embedder")
        from mgeldm.codec import load_codec
        from mgeldm.embedder import load_embedder

        found, words = load_codec(str(codec)), load_embedder(str(embedder))
        network = JointConfig(
            width_per_track=32, depth=1, heads=3, timestep_features=8, latent_channels=8, embedding_dim=words.spec.dim
        )
        made = CheckpointConfig(
            model=network,
            codec={"identity": found.identity},
            embedder={"identity": words.identity},
            prompt_template="the sound of {}",
            crop_frames=8,
            latent_mean=(0.0,) * 8,
            latent_std=(1.0,) * 8,
            silence_latent=(0.0,) * 8,
        )
        save_checkpoint(root / "checkpoint", made, JointTransformer(network, seed=0).state_dict())
        return root / "checkpoint", codec, embedder

    def test_real_codec_and_embedder(self, folders: tuple[Path, Path, Path]) -> None:
        checkpoint, codec, embedder = folders
        loaded = MGELDM.from_pretrained(checkpoint, codec=str(codec), embedder=str(embedder), device="cpu")
        mix = wave(5000)
        tracks = loaded.extract(mix, "drums", SamplingConfig(steps=2))
        assert tracks["source"].shape == tracks["submix"].shape == (1, 5000)
        again = loaded.extract(mix, "drums", SamplingConfig(steps=2))
        np.testing.assert_array_equal(tracks["source"], again["source"])
        bass = loaded.extract(mix, "bass", SamplingConfig(steps=2))
        assert not np.array_equal(tracks["source"], bass["source"])
        with pytest.raises(PromptError, match="bass, drums"):
            # The template's own words are known, the prompt's are not.
            loaded.extract(mix, "sousaphone", SamplingConfig(steps=2))

    def test_another_codec_or_embedder_is_refused(self, folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
        checkpoint, codec, embedder = folders
        other = write_codec(tmp_path / "codec", sample_rate=8000)
        with pytest.raises(CheckpointError, match=r"trained with codec .* --codec FOLDER"):
            MGELDM.from_pretrained(checkpoint, codec=str(other), embedder=str(embedder), device="cpu")
        DualEncoder(DualConfig(words=WORDS, dim=16, mels=16, widths=(4, 8))).save(tmp_path / "embedder")
        with pytest.raises(CheckpointError, match=r"trained with embedder .* --embedder FOLDER"):
            MGELDM.from_pretrained(checkpoint, codec=str(codec), embedder=str(tmp_path / "embedder"), device="cpu")

    def test_models_do_not_share_their_parts(self, folders: tuple[Path, Path, Path]) -> None:
        checkpoint, codec, embedder = folders
        names = {"codec": codec, "embedder": embedder}  # paths do as well
        first, second = (MGELDM.from_pretrained(checkpoint, **names, device="cpu") for _ in range(2))
        for part in (second.model, second.codec, second.embedder):
            part.to("meta")  # type: ignore[attr-defined]
        assert first.extract(wave(500), "drums", SamplingConfig(steps=1))["source"].shape == (1, 500)
        assert second.parts == first.parts == {"codec": str(codec), "embedder": str(embedder)}

    @pytest.mark.parametrize("device", ["cuda:x", "gpu", "", "cuda:-1", "mps", "meta", None, 1.5])
    def test_what_is_no_device(self, device: str, folders: tuple[Path, Path, Path]) -> None:
        with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N") as caught:
            MGELDM.from_pretrained(folders[0], device=device)
        assert "\n" not in str(caught.value)

    def test_devices_that_are_not_there(
        self, folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for device in ("cuda", "cuda:0"):
            with pytest.raises(ConfigError, match="no CUDA device; use --device cpu"):
                MGELDM.from_pretrained(folders[0], device=device)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(ConfigError, match="has 2 CUDA devices, cuda:0 to cuda:1"):
            MGELDM.from_pretrained(folders[0], device="cuda:2")

    def test_missing_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="missing"):
            MGELDM.from_pretrained(tmp_path / "nowhere")
