"""The models of encode: codec and embedder on one device, fed in batches that fit its memory."""

import logging
from collections.abc import Callable
from typing import TypeAlias

import torch

from mgeldm.codec import Codec, load_codec
from mgeldm.devices import check_compiler, choose_device, keep_freed_memory
from mgeldm.embedder import Embedder, load_embedder
from pipelines.clock import Clock

EMBED_BATCHES = 4
"""Windows of the embedder for each signal in a batch of the codec."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Function: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

logger = logging.getLogger(__name__)


class Forwards:
    """Codec and embedder, loaded once a process."""

    def __init__(self, codec: str, embedder: str, device: str, *, batch: int, precision: str, compiled: bool) -> None:
        """Load the models. Raises CheckpointError and ConfigError."""
        keep_freed_memory()
        self.device = choose_device(device)
        self.codec: Codec = load_codec(codec).to(self.device)
        self.embedder: Embedder = load_embedder(embedder).to(self.device)
        self.clock = Clock(self.device)
        self._dtype = _DTYPES[precision]
        # A CPU takes one signal on each core: more only fall out of its cache, and the size of a batch decides the
        # last bits of a sum.
        self.batch = batch if self.device.type == "cuda" else 1
        encode = self.codec.encode
        if compiled:
            check_compiler(self.device)
            encode = torch.compile(encode)
        self._codec = InParts("codec", self._cast(encode), self.batch, padded=compiled)
        self._embedder = InParts("embedder", self._cast(self.embedder.embed_audio), EMBED_BATCHES * batch)
        # What a model says of digital silence, by its name and the shape of the signal.
        self._silence: dict[tuple[str, torch.Size], torch.Tensor] = {}

    def latents(self, waves: torch.Tensor) -> torch.Tensor:
        """``[B, channels, T]`` on the device -> latents ``[B, C, T / hop]``, float16 on the CPU.

        Raises:
            torch.OutOfMemoryError: even one signal is too much for the device.
        """
        return self._answers(self._codec, waves)

    def embeddings(self, waves: torch.Tensor) -> torch.Tensor:
        """Mono windows ``[B, T]`` on the device -> ``[B, D]``, float16 on the CPU. Raises as `latents`."""
        return self._answers(self._embedder, waves)

    def _answers(self, model: "InParts", waves: torch.Tensor) -> torch.Tensor:
        """The model's answer to each of ``waves``; digital silence is asked for once."""
        sounds = waves.flatten(1).any(dim=1).tolist()
        if all(sounds):
            return self._run(model, waves)
        key = (model.name, waves.shape[1:])
        if key not in self._silence:
            self._silence[key] = self._run(model, torch.zeros_like(waves[:1]))[0]
        found = iter(self._run(model, waves[sounds])) if any(sounds) else iter(())
        return torch.stack([next(found) if sounding else self._silence[key] for sounding in sounds])

    @torch.inference_mode()
    def _run(self, model: "InParts", waves: torch.Tensor) -> torch.Tensor:
        with self.clock(model.name):
            return model(waves)

    def _cast(self, function: Function) -> Function:
        """The function under autocast, if that is wanted."""
        if self._dtype == torch.float32:
            return function

        def cast(waves: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, self._dtype):
                return function(waves)

        return cast


class InParts:
    """A function of a batch, called with as much of it as the device has memory for."""

    def __init__(self, name: str, function: Function, limit: int, *, padded: bool = False) -> None:
        self.name, self.limit, self._function, self._padded = name, limit, function, padded

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Results in float16 on the CPU. Out of memory halves the limit for good. Raises OutOfMemoryError at 1."""
        done: list[torch.Tensor] = []
        position = 0
        while position < len(batch):
            part = batch[position : position + self.limit]
            try:
                # A compiled function is compiled for one size.
                missing = self.limit - len(part) if self._padded else 0
                full = torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
                done.append(self._function(full)[: len(part)].half().cpu())
                position += len(part)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self.limit = len(part) // 2
                logger.warning("%s: out of memory with %d signals; goes on with %d", self.name, len(part), self.limit)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        return torch.cat(done)
