"""Cut the two small corpora of this folder out of their sources.

``minislakh``: the first songs of each subset of a rendered corpus in Slakh2100's layout, copied as they are.
``everything-is-free``: one 32 s excerpt of each of three songs, real AAC stems cut packet by packet without
re-encoding, so that codec, sample rates and channels stay those of the release.

The same sources and library versions give the same bytes. Example, from the root of the repository::

    python examples/make_examples.py --slakh rendered --real evr --out examples
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soundfile as sf
import yaml

SLAKH_SONGS = {"train": 4, "validation": 1, "test": 1}
REAL_SONGS = {"hydrogen": "evr-1-hydrogen", "potassium": "evr-4-potassium", "caesium": "evr-6-caesium"}

# Stems that the release calls mono: decoded to one channel, as AAC cannot be made mono without re-encoding.
MONO_STEMS = {("potassium", "KICK HATS"), ("caesium", "KICK")}

# All positions and lengths are counted in bins of 100 ms.
BINS_PER_SECOND = 10
EXCERPT_BINS = 320
SOUNDING_POWER = 1e-5  # mean square of a bin: -50 dBFS
LEAST_SHARE = 0.05  # of the excerpt in which a stem has to sound
MOST_BYTES = 2_800_000  # of all stems of a song that are kept, as AAC
SHORTER_BINS = 13  # stems end 0, 1 or 2 times this many bins before the excerpt does

AAC_FRAME = 1024  # samples of a packet; a packet sounds right only after the one before it


def main() -> None:
    """Read the arguments and make both corpora."""
    parser = argparse.ArgumentParser(description="Cut the example corpora out of their sources.")
    parser.add_argument("--slakh", type=Path, required=True, help="rendered corpus in Slakh2100's layout")
    parser.add_argument("--real", type=Path, required=True, help=f"folder that holds {', '.join(REAL_SONGS.values())}")
    parser.add_argument("--out", type=Path, required=True, help="gets minislakh/ and everything-is-free/, new folders")
    args = parser.parse_args()
    copy_slakh(args.slakh, args.out / "minislakh")
    for name, folder in REAL_SONGS.items():
        cut_song(args.real / folder, args.out / "everything-is-free" / name)


def copy_slakh(source: Path, target: Path) -> None:
    """Copy the first songs of every subset that no third party's groove files went into.

    Raises:
        ValueError: a subset has too few such songs.
        FileExistsError: a song is already in ``target``.
    """
    for subset, wanted in SLAKH_SONGS.items():
        songs = [song for song in sorted((source / subset).glob("Track*")) if is_native(song)][:wanted]
        if len(songs) < wanted:
            raise ValueError(f"{source / subset}: {len(songs)} native songs, not {wanted}: render with --engine native")
        for song in songs:
            shutil.copytree(song, target / subset / song.name, copy_function=shutil.copyfile)


def is_native(song: Path) -> bool:
    """Whether the generator's own patterns, not MMA's groove files, play the song."""
    metadata = yaml.safe_load((song / "metadata.yaml").read_text())
    return "native" in Path(metadata["lmd_midi_dir"]).parts


def cut_song(source: Path, target: Path) -> None:
    """Write the busiest excerpt of a song: its stems and a ``stems.json`` that names and describes them.

    Raises:
        FileExistsError: ``target`` exists.
    """
    paths = {stem_label(path): path for path in sorted(source.glob("*_Stem_*.m4a"))}
    described = {stem_label(Path(row["filename"])): row for row in json.loads((source / "stems.json").read_text())}
    start, kept = busiest_excerpt(list(paths.values()))
    target.mkdir(parents=True)
    rows = []
    for index, (label, path) in enumerate(item for item, keep in zip(paths.items(), kept, strict=True) if keep):
        bins = EXCERPT_BINS - SHORTER_BINS * (index % 3)
        if (target.name, label) in MONO_STEMS:
            file = target / f"{label}.flac"
            write_mono(path, file, start, bins)
        else:
            file = target / f"{label}.m4a"
            cut_packets(path, file, start, bins)
        row = described[label]
        rows.append({"filename": file.name, "name": row["name"], "description": row["description"]})
    (target / "stems.json").write_text(json.dumps(rows, indent=1) + "\n")


def stem_label(path: Path) -> str:
    """What a file of the release calls its stem: ``1.Hydrogen_Stem_VOX LEAD_mobile.m4a`` is ``VOX LEAD``."""
    return path.stem.split("_Stem_", 1)[1].removesuffix("_mobile")


def decode(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """The audio of a file ``[channels, samples]``, without the encoder's priming samples, and its sample rate."""
    with av.open(str(path)) as container:
        blocks = [frame.to_ndarray() for frame in container.decode(audio=0)]
        return np.concatenate(blocks, axis=1, dtype=np.float32), container.streams.audio[0].rate


def sounding_bins(path: Path) -> npt.NDArray[np.bool_]:
    """Of each bin of a stem ``[bins]``: is its power, over all channels, above -50 dBFS?"""
    wave, rate = decode(path)
    size = rate // BINS_PER_SECOND
    bins = wave.shape[1] // size
    power = np.square(wave[:, : bins * size], dtype=np.float64).reshape(len(wave), bins, size).mean(axis=(0, 2))
    return np.asarray(power > SOUNDING_POWER)


def bytes_of_bins(path: Path, bins: int) -> npt.NDArray[np.int64]:
    """Bytes of the packets that begin in each of the first ``bins`` bins of a stem ``[bins]``."""
    sizes = np.zeros(bins, dtype=np.int64)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        for packet in container.demux(stream):
            if packet.pts is not None:
                place = (packet.pts - (stream.start_time or 0)) * BINS_PER_SECOND // stream.rate
                if 0 <= place < bins:
                    sizes[place] += packet.size
    return sizes


def busiest_excerpt(stems: list[Path]) -> tuple[int, npt.NDArray[np.bool_]]:
    """First bin of the excerpt with most to hear of those small enough, and which stems it keeps ``[stems]``.

    Most to hear: the sum over stems of the square root of the share of the excerpt in which they sound, so that
    many stems count for more than few long ones.

    Raises:
        ValueError: no excerpt is small enough.
    """
    sounding = [sounding_bins(path) for path in stems]
    bins = min(map(len, sounding))
    shares = excerpt_sums([active[:bins] for active in sounding]) / EXCERPT_BINS
    kept = shares >= LEAST_SHARE
    sizes = (excerpt_sums([bytes_of_bins(path, bins) for path in stems]) * kept).sum(axis=0)
    if sizes.min() > MOST_BYTES:
        raise ValueError(f"{stems[0].parent}: its smallest excerpt has {sizes.min()} bytes: raise MOST_BYTES")
    start = int(np.where(sizes <= MOST_BYTES, np.sqrt(shares).sum(axis=0), -1).argmax())
    return start, kept[:, start]


def excerpt_sums(rows: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.int64]:
    """Sums of each row over every stretch of an excerpt's length ``[rows, starts]``."""
    sums = np.cumsum(np.pad(np.stack(rows).astype(np.int64), ((0, 0), (1, 0))), axis=1)
    return sums[:, EXCERPT_BINS:] - sums[:, :-EXCERPT_BINS]


def cut_packets(source: Path, target: Path, start: int, bins: int) -> None:
    """Copy the AAC packets of an excerpt into a new file that begins at the exact sample.

    One packet more goes in front, with times below zero: the file's edit list has players drop what it decodes to.
    The end is that of the last packet, so up to 1023 samples late.
    """
    # No version of the library in the file; and an edit list finer than its default of milliseconds.
    options = {"fflags": "+bitexact", "movie_timescale": "48000"}
    with av.open(str(source)) as reader, av.open(str(target), "w", format="ipod", options=options) as writer:
        stream = reader.streams.audio[0]
        copy = writer.add_stream_from_template(stream)
        size = stream.rate // BINS_PER_SECOND
        first = (stream.start_time or 0) + start * size
        for packet in reader.demux(stream):
            if packet.pts is None or not first - 2 * AAC_FRAME < packet.pts < first + bins * size:
                continue
            packet.pts -= first
            packet.dts = packet.pts
            packet.stream = copy
            writer.mux(packet)


def write_mono(source: Path, target: Path, start: int, bins: int) -> None:
    """Decode an excerpt and write the mean of its channels as 16 bit FLAC."""
    wave, rate = decode(source)
    size = rate // BINS_PER_SECOND
    wave = wave[:, start * size : (start + bins) * size]
    mono = np.clip(np.rint(wave.mean(axis=0, dtype=np.float64) * 32768), -32768, 32767).astype(np.int16)
    sf.write(target, mono, rate, format="FLAC", subtype="PCM_16")


if __name__ == "__main__":
    main()
