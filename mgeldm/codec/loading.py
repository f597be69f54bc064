"""Finding a codec: the one shipped with the package, a folder, or a repository of the Hugging Face hub."""

import copy
from functools import lru_cache
from pathlib import Path

from mgeldm.codec import stable_audio
from mgeldm.codec.autoencoder import CONFIG_FILE, AutoencoderCodec
from mgeldm.model_folder import Stamp, find_folder, stamp

DEFAULT_CODEC = "default"
_SHIPPED = Path(__file__).parent / "oobleck-16k-mono"


def load_codec(name: str = DEFAULT_CODEC) -> AutoencoderCodec:
    """The codec ``name``: "default" (shipped), a folder of ours or of stable-audio-tools, or a hub id OWNER/NAME.

    Only a hub id that is no folder here is ever fetched. A codec is read once, and again where its folder changed; each
    caller gets a module of its own, on the CPU, to move and to change.

    Raises:
        CheckpointError: there is no such codec, or it is damaged or of another make.
    """
    folder = codec_folder(name)
    return copy.deepcopy(_read(folder.absolute(), stamp(folder)))


def codec_folder(name: str) -> Path:
    """The folder that the name of a codec stands for, as in `load_codec`. Raises CheckpointError."""
    if name == DEFAULT_CODEC:
        return _SHIPPED
    weights = [[file] for file in stable_audio.WEIGHTS_FILES]
    return find_folder(name, "codec", (stable_audio.CONFIG_FILE, CONFIG_FILE), weights)


@lru_cache(maxsize=2)
def _read(folder: Path, _: Stamp) -> AutoencoderCodec:
    """What copies are made of; nobody else gets it. To build it and to hash its weights takes seconds, a copy none."""
    return AutoencoderCodec.load(folder)
