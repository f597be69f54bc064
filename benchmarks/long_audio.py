"""An hour of audio through extract on a CPU: peak memory beside that of six minutes, and how loud the seams are.

The shipped model; a mix of the example corpora, repeated. For the seams it is extracted from twice, the second time
from half a chunk later on: where chunks of one meet, the other says how much the same sound changes without a seam.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import librosa
import numpy as np
import numpy.typing as npt

from benchmarks.result import EXAMPLES, Result
from mgeldm import MGELDM, audio
from mgeldm.codec import CodecSpec
from mgeldm.engine import crop_starts, shared_frames
from mgeldm.sampling import OVERLAP

SAMPLING_STEPS = 4
MIX = EXAMPLES / "minislakh" / "test" / "Track00006" / "mix.flac"
Change: TypeAlias = npt.NDArray[np.float32]
"""In dB, of each place where latent frames meet; place i is between frame i and the next."""

_EXTRACT = """
import json, sys, time
from pathlib import Path

from mgeldm import MGELDM
from mgeldm.files import run_on_files
from mgeldm.sampling import SamplingConfig

mix, out, steps = sys.argv[1:]
model = MGELDM.from_pretrained(device="cpu")
begin = time.perf_counter()
sampling = SamplingConfig(steps=int(steps), sampler="dpm++2m")
done = run_on_files("extract", model, "default", [Path(mix)], ["drums"], Path(out), sampling)
seconds = time.perf_counter() - begin
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
print(json.dumps({"mib": peak, "seconds": seconds, "file": done.results[0].outputs["source"]}))
"""


def run() -> Iterator[Result]:
    with tempfile.TemporaryDirectory(prefix="mgeldm-bench-") as place:
        folder = Path(place)
        model = MGELDM.from_pretrained(device="cpu")
        whole = _mix(folder / "60.flac", 60)
        measured = {60: _extract(whole, folder / "60"), 6: _extract(_mix(folder / "6.flac", 6), folder / "6")}
        yield Result(
            name="long_audio.memory_at_1h_vs_6min",
            value=measured[60]["mib"] / measured[6]["mib"],
            unit="ratio",
            goal=1.1,
            better="lower",
            detail={
                "mib_at_6min": round(measured[6]["mib"]),
                "mib_at_1h": round(measured[60]["mib"]),
                "seconds_at_1h": round(measured[60]["seconds"]),
                "sampling_steps": SAMPLING_STEPS,
            },
        )
        spec, crop = model.codec.spec, model.config.crop_frames
        shared = shared_frames(crop, OVERLAP)
        shift = (crop - shared) // 2
        later = _extract(_mix(folder / "later.flac", 60, skip=shift * spec.hop / spec.sample_rate), folder / "later")
        files = (folder / "60" / measured[60]["file"], folder / "later" / later["file"])
        one, other = (spectral_change(audio.read(file)[0], spec) for file in files)
        at_seams, without = at_seams_and_without(one, other, crop, shared, shift)
        ratios = at_seams.mean(axis=0) / without.mean(axis=0)
        loudest = int(np.argmax(ratios))
        seam, same = at_seams[:, loudest], without[:, loudest]
        yield Result(
            name="long_audio.seam_vs_frame_change",
            value=float(ratios[loudest]),
            unit="ratio",
            goal=1.0,
            better="lower",
            detail={
                "seams": len(seam),
                "loudest_of_places": len(ratios),
                "standard_error": round(float((seam - same).std() / len(seam) ** 0.5 / same.mean()), 3),
                "db_there": round(float(seam.mean()), 2),
                "db_there_without": round(float(same.mean()), 2),
                "mean_of_places": round(float(at_seams.mean() / without.mean()), 3),
            },
        )


def spectral_change(wave: npt.NDArray[np.float32], spec: CodecSpec) -> Change:
    """How much the spectrum changes, in dB over mel bands, from each latent frame to the next."""
    # Half a frame on both sides of each place where frames meet.
    mel = librosa.feature.melspectrogram(
        y=wave, sr=spec.sample_rate, n_fft=spec.hop // 2, hop_length=spec.hop // 2, center=False, n_mels=40
    )
    level = librosa.power_to_db(mel, amin=1e-8, top_db=None)
    change: Change = np.abs(level[:, 2::2] - level[:, 1:-1:2]).mean(axis=0)
    return change


def at_seams_and_without(one: Change, other: Change, crop: int, shared: int, shift: int) -> tuple[Change, Change]:
    """The change where one chunk passes into the next, and at the same places of the sound in the other answer.

    ``other`` is of the sound from ``shift`` frames on, which puts its seams elsewhere. Both are ``[seams, places]``;
    the places are those from the last held frame to the first that the next chunk alone has said.
    """
    at_seams, without = [], []
    later = np.concatenate([np.full(shift, np.nan, one.dtype), other])[: len(one)]
    for seams, beside, first in ((one, later, 0), (later, one, shift)):
        # The last chunk may begin anywhere.
        for start in crop_starts(len(one) + 1 - first, crop, shared)[1:-1]:
            begin = first + start + shared - shared // 2 - 1
            at_seams.append(seams[begin : begin + shared // 2 + 1])
            without.append(beside[begin : begin + shared // 2 + 1])
    return np.stack(at_seams), np.stack(without)


def _mix(path: Path, minutes: int, skip: float = 0.0) -> Path:
    """A mix of so many minutes, without its first ``skip`` seconds."""
    rate, wave = audio.probe(MIX).sample_rate, audio.read(MIX)
    begin, end = round(skip * rate), 60 * minutes * rate
    with audio.writing(path, rate, wave.shape[0]) as writer:
        while begin < end:
            part = wave[:, begin % wave.shape[1] :][:, : end - begin]
            writer.write(part)
            begin += part.shape[1]
    return path


def _extract(mix: Path, out: Path) -> dict[str, Any]:
    """Extract from a mix, in a process of its own."""
    command = [sys.executable, "-c", _EXTRACT, str(mix), str(out), str(SAMPLING_STEPS)]
    done = subprocess.run(command, cwd=EXAMPLES.parent, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
