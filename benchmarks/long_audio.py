"""An hour of audio through extract on a CPU: peak memory beside that of six minutes, and how loud the seams are.

The shipped model; a mix of the example corpora, repeated.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import librosa
import numpy as np
import numpy.typing as npt

from benchmarks.result import EXAMPLES, Result
from mgeldm import MGELDM, audio
from mgeldm.codec import CodecSpec
from mgeldm.engine import crop_starts
from mgeldm.sampling import OVERLAP

MINUTES = (6, 60)
SAMPLING_STEPS = 4
MIX = EXAMPLES / "minislakh" / "test" / "Track00006" / "mix.flac"
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
        measured = {minutes: _extract(folder, minutes) for minutes in MINUTES}
        short, long = (measured[minutes] for minutes in MINUTES)
        yield Result(
            name="long_audio.memory_at_1h_vs_6min",
            value=long["mib"] / short["mib"],
            unit="ratio",
            goal=1.1,
            better="lower",
            detail={
                "mib_at_6min": round(short["mib"]),
                "mib_at_1h": round(long["mib"]),
                "seconds_at_1h": round(long["seconds"]),
                "sampling_steps": SAMPLING_STEPS,
            },
        )
        wave = audio.read(folder / "60" / long["file"])[0]
        at_seams, elsewhere = seam_change(wave, model.codec.spec, model.config.crop_frames)
        yield Result(
            name="long_audio.seam_vs_frame_change",
            value=float(np.mean(at_seams) / np.mean(elsewhere)),
            unit="ratio",
            goal=1.0,
            better="lower",
            detail={
                "seams": len(at_seams),
                "db_at_seams": round(float(np.mean(at_seams)), 2),
                "db_elsewhere": round(float(np.mean(elsewhere)), 2),
                "standard_error": round(float(np.std(at_seams) / len(at_seams) ** 0.5 / np.mean(elsewhere)), 3),
            },
        )


def seam_change(
    wave: npt.NDArray[np.float32], spec: CodecSpec, crop: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """How much the spectrum changes, in dB over mel bands, between latent frames: where chunks meet, and elsewhere."""
    frames = wave.shape[0] // spec.hop
    overlap = max(1, round(crop * OVERLAP))
    starts = crop_starts(frames, crop, overlap)
    seams = {start + crop for start in starts[:-1]}
    # Half a frame on both sides of each place where frames meet.
    mel = librosa.feature.melspectrogram(
        y=wave, sr=spec.sample_rate, n_fft=spec.hop // 2, hop_length=spec.hop // 2, center=False, n_mels=40
    )
    level = librosa.power_to_db(mel, amin=1e-8, top_db=None)
    change = np.abs(level[:, 2::2] - level[:, 1:-1:2]).mean(axis=0)
    places = np.arange(1, len(change) + 1)
    is_seam = np.isin(places, sorted(seams))
    return change[is_seam].astype(np.float64), change[~is_seam].astype(np.float64)


def _extract(folder: Path, minutes: int) -> dict[str, float]:
    """Extract from a mix of so many minutes, in a process of its own."""
    rate = audio.probe(MIX).sample_rate
    wave = audio.read(MIX)
    path = folder / f"{minutes}.flac"
    with audio.writing(path, rate, wave.shape[0]) as writer:
        left = 60 * minutes * rate
        while left > 0:
            writer.write(wave[:, :left])
            left -= wave.shape[1]
    command = [sys.executable, "-c", _EXTRACT, str(path), str(folder / str(minutes))]
    done = subprocess.run([*command, str(SAMPLING_STEPS)], cwd=EXAMPLES.parent, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)
