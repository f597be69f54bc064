"""Ways to break files and songs: each maker gets the path of what it breaks and the `Place` that it lies in."""

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile
import yaml

from tests.support.sounds import sound, write_sound, write_streams
from tests.support.trees import moisesdb_song

RATE = 16_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a broken song lies."""

    song: Path
    """The song's folder, in which everything is sound until a maker comes."""
    outside: Path
    """A folder outside the root with sounds and metadata that could be read by mistake."""


Maker = Callable[[Path, Place], object]


# Bytes.


@cache
def coded(suffix: str, *, seconds: float = 2.0, subtype: str | None = None) -> bytes:
    """A whole sound file."""
    with TemporaryDirectory() as folder:
        wave = sound("coded", seconds=seconds, rate=RATE)
        return write_sound(Path(folder, f"coded{suffix}"), wave, RATE, subtype).read_bytes()


def garbage(size: int) -> bytes:
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()


def patched(data: bytes, marker: bytes, offset: int, layout: str, value: int) -> bytes:
    """``data`` with ``value`` packed ``offset`` bytes behind the first ``marker``."""
    at = data.index(marker) + len(marker) + offset
    return data[:at] + struct.pack(layout, value) + data[at + struct.calcsize(layout) :]


def overwritten(data: bytes, filler: bytes) -> bytes:
    """``data`` with ``filler`` in its middle."""
    middle = len(data) // 2
    return data[:middle] + filler + data[middle + len(filler) :]


def flac_saying(frames: int, seconds: float = 2.0) -> bytes:
    """A FLAC file whose header says that it is ``frames`` long."""
    data = coded(".flac", seconds=seconds)
    fields = int.from_bytes(data[18:26], "big") >> 36 << 36 | frames
    return data[:18] + fields.to_bytes(8, "big") + data[26:]


def wav_saying(offset: int, layout: str, value: int) -> bytes:
    """A WAV file with another value in its format chunk."""
    return patched(coded(".wav"), b"fmt ", offset, layout, value)


def wav_of_bytes(size: int) -> bytes:
    """A WAV file of 64,000 bytes of samples that says it has ``size``."""
    return patched(coded(".wav"), b"data", 0, "<I", size)


def many_samples() -> bytes:
    """An M4A file whose index says that one chunk has 150 million samples: 4 GB for who believes it."""
    data = patched(patched(coded(".m4a"), b"stsz", 4, ">I", 4), b"stsz", 8, ">I", 150_000_000)
    return patched(data, b"stsc", 12, ">I", 150_000_000)


def id3(frames: bytes, size: int) -> bytes:
    """The head of an ID3 tag that says it has ``size`` bytes, and ``frames``."""
    return b"ID3\x03\x00\x00" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + frames


def mp3_with_picture() -> bytes:
    picture = b"\0image/png\0\x03\0" + garbage(1_000_000)
    frame = b"APIC" + struct.pack(">I", len(picture)) + b"\0\0" + picture
    return id3(frame, len(frame)) + coded(".mp3")


def broadcast_wav() -> bytes:
    data = coded(".wav")
    return data[:12] + b"bext" + struct.pack("<I", 602) + bytes(602) + data[12:]


# One file.


def write(make: Callable[[], bytes]) -> Maker:
    return lambda path, _: path.write_bytes(make())


def text(content: str | bytes) -> Maker:
    return lambda path, _: path.write_bytes(content.encode() if isinstance(content, str) else content)


def samples(
    change: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], subtype: str = "FLOAT", rate: int = RATE
) -> Maker:
    """A file of two seconds after ``change``."""
    wave = sound("samples", seconds=2)[0].astype(np.float64)
    return lambda path, _: soundfile.write(path, change(wave), rate, subtype)


def with_value(value: float) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    return lambda wave: np.where(np.arange(len(wave)) == 100, value, wave)


def headed(format_: str) -> Maker:
    """A WAV file with another kind of header."""
    return lambda path, _: soundfile.write(path, sound("headed", seconds=2)[0], RATE, "PCM_24", format=format_)


def sparse_wav(path: Path, _: Place) -> None:
    path.write_bytes(wav_of_bytes(0xFFFFFF00))
    os.truncate(path, (1 << 32) - 200)


def sparse_rf64(path: Path, _: Place) -> None:
    headed("RF64")(path, _)
    data = patched(path.read_bytes(), b"ds64", 12, "<Q", 1 << 40)
    path.write_bytes(patched(data, b"ds64", 20, "<Q", 1 << 39))
    os.truncate(path, 1 << 40)


def video(path: Path, _: Place) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _frame in range(10):
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))


def streams(count: int, share: float = 1.0) -> Maker:
    """The first ``share`` of a container of ``count`` stereo streams."""

    def make(path: Path, _: Place) -> None:
        waves = [sound("streams", index, rate=44_100, channels=2, seconds=1) for index in range(count)]
        data = write_streams(path, waves, 44_100).read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return make


# Out of the root.


def link(target: str) -> Maker:
    """A link; "OUTSIDE" in ``target`` stands for the folder there, "SELF" for the link's own name."""

    def make(path: Path, place: Place) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target.replace("OUTSIDE", str(place.outside)).replace("SELF", path.name))

    return make


def link_through_folder(path: Path, place: Place) -> None:
    (path.parent / "way").symlink_to(place.outside)
    path.symlink_to("way/secret.wav")


def playlist(path: Path, place: Place) -> None:
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:{place.outside}/secret.m4a\n#EXT-X-ENDLIST\n")


def concat_script(path: Path, place: Place) -> None:
    path.write_text(f"ffconcat version 1.0\nfile {place.outside}/secret.m4a\n")


def resource_fork(path: Path, place: Place) -> None:
    """Sound Designer 2 keeps the header in a file beside the samples, which libsndfile looks for."""
    path.write_bytes(garbage(1000))
    path.with_name(f"._{path.name}").symlink_to(place.outside / "secret.wav")


def samples_elsewhere(path: Path, place: Place) -> None:
    """An M4A file whose data reference is a QuickTime alias of another file."""
    data, name = coded(".m4a"), b"secret.m4a"
    alias = bytes(6) + struct.pack(">H", 2) + bytes(142)
    for kind, value in ((2, os.fsencode(place.outside) + b"/" + name), (0, os.fsencode(place.outside)), (9, name)):
        alias += struct.pack(">hH", kind, len(value)) + value + bytes(len(value) % 2)
    alias += struct.pack(">hH", -1, 0)
    here, there = b"\0\0\0\x0curl \0\0\0\x01", struct.pack(">I", len(alias) + 12) + b"alis" + bytes(4) + alias
    grown = len(there) - len(here)
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        (size,) = struct.unpack(">I", data[data.index(box) - 4 : data.index(box)])
        data = patched(data, box, -8, ">I", size + grown)
    path.write_bytes(data.replace(here, there))


# No file.


def pipe(path: Path, _: Place) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def folder(path: Path, _: Place) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def file(path: Path, _: Place) -> None:
    shutil.rmtree(path)
    path.touch()


def nothing(path: Path, _: Place) -> None:
    path.unlink()


def socket_file(path: Path, _: Place) -> None:
    # From its folder: the address of a socket must be short.
    with chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


# Songs.


def copied(*names: str) -> Maker:
    """More files in the song."""

    def make(path: Path, _: Place) -> None:
        for name in names:
            shutil.copy(path / "drums.wav", path / name)

    return make


def only(*names: str) -> Maker:
    """Nothing but these files in the song."""
    return lambda path, _: [child.unlink() for child in path.iterdir() if child.name not in names]


def all_silent(path: Path, _: Place) -> None:
    for child in path.iterdir():
        soundfile.write(child, np.zeros(RATE), RATE)


def mixture_alone(path: Path, _: Place) -> None:
    (path / "drums.wav").rename(path / "mixture.wav")
    (path / "bass.wav").unlink()


def folder_links(path: Path, _: Place) -> None:
    for name, target in (("up", ".."), ("here", "."), ("gone", "gone")):
        (path / name).symlink_to(target)


# Metadata.


def tracks(*more: tuple[str, object]) -> Maker:
    """``data.json`` of two sound tracks of MoisesDB and ``more``; "OUTSIDE" stands for the folder there."""

    def make(path: Path, place: Place) -> None:
        listed: list[tuple[str, Any, str]] = [("drums", "d", "hi-hat"), ("bass", "b", "bass guitar")]
        moisesdb_song(path.parent, [*listed, *((name, track, "piano") for name, track in more)])
        path.write_text(path.read_text().replace("OUTSIDE", str(place.outside)))

    return make


def edited(old: str, new: str) -> Maker:
    return lambda path, _: path.write_text(path.read_text().replace(old, new))


def mark_ahead(path: Path, _: Place) -> None:
    """A byte order mark, as some editors write it."""
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def medleydb_stems(change: Callable[[dict[str, Any]], object]) -> Maker:
    """The metadata of MedleyDB after ``change`` of its stems; "OUTSIDE" stands for the folder there."""

    def make(path: Path, place: Place) -> None:
        metadata = yaml.safe_load(path.read_text())
        change(metadata["stems"])
        path.write_text(yaml.safe_dump(metadata).replace("OUTSIDE", str(place.outside)))

    return make


def third(filename: object) -> Maker:
    """A third stem."""
    return medleydb_stems(lambda stems: stems.update(S03={"filename": filename, "instrument": "piano"}))


def json_extension(extension: str) -> Maker:
    return lambda path, _: path.write_text(path.read_text().replace('"wav"', json.dumps(extension)))


def bomb(depth: int = 10, width: int = 9) -> str:
    """YAML of a few lines that is ``width ** depth`` texts to who writes it out."""
    rows = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    return "\n".join(["a0: &a0 [ha, ha]", *rows, ""])


def merge_bomb(depth: int = 10, width: int = 9) -> str:
    """YAML of a few lines that is ``width ** depth`` keys to who merges them."""
    rows = [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * width)}]}}" for n in range(1, depth)]
    return "\n".join(["m0: &m0 {k: v}", *rows, ""])


# Access, and changes while a file is read.


def file_of_sound(path: Path, _: Place) -> None:
    write_sound(path, sound("file", seconds=0.5), RATE)


def denied(make: Maker | None = None) -> Maker:
    """What ``make`` made, or what is there, with no right left."""

    def deny(path: Path, place: Place) -> None:
        if make:
            make(path, place)
        path.chmod(0)

    return deny


def grown(path: Path, _: Place) -> None:
    path.write_bytes(path.read_bytes() + bytes(1000))


def shrunk(path: Path, _: Place) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def replaced(path: Path, _: Place) -> None:
    """Another file under the name, as a synchronising program puts it there."""
    os.replace(write_sound(path.with_name("new.wav"), sound("new", seconds=0.75), RATE), path)


# Roots and layouts.


def made_folder(path: Path) -> Path:
    path.mkdir()
    return path


def made_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def linked_subset(root: Path) -> None:
    """A root whose folder of training songs is elsewhere."""
    root.mkdir()
    (root / "train").symlink_to(made_folder(root.with_name("elsewhere")))


def misnamed(root: Path) -> Path:
    """A copy with a name that is no UTF-8."""
    return shutil.copytree(root, root.with_name(os.fsdecode(b"caf\xe9")))
