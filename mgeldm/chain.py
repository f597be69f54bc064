"""Imputing one source after another: each is made for what there is by then, in the codec's form."""

import io
from collections.abc import Callable, Sequence
from typing import IO

from torch import Tensor

from mgeldm.audio import Wave
from mgeldm.engine import Engine, Lane, Wish
from mgeldm.outputs import OutputConfig, Track
from mgeldm.sampling import SamplingConfig
from mgeldm.signals import Adder, Signal, Spool
from mgeldm.tasks import IMPUTE


class Chain:
    """A submix that grows by a source for each prompt. Close it in the end."""

    def __init__(
        self,
        engine: Engine,
        submix: Signal,
        prompts: Sequence[str],
        words: Sequence[Tensor],
        sampling: SamplingConfig,
        *,
        earlier: Sequence[str] = (),
        batch: int = 1,
        room: Callable[[], IO[bytes]] = io.BytesIO,
    ) -> None:
        """Begin.

        Args:
            engine: What samples.
            submix: What the first source is made for.
            prompts: One for each source.
            words: Their embeddings ``[D]``.
            sampling: How to sample.
            earlier: Prompts whose sources are in the submix: one that comes again begins from other noise.
            batch: Chunks that are sampled at a time, where they do not depend on each other.
            room: Makes a file that the grown submix is kept in.
        """
        self.submix = submix
        """What the next source is made for. Whoever has a later one may set it, and go on from there."""
        self._engine, self._prompts, self._words, self._sampling = engine, list(prompts), words, sampling
        self._earlier, self._output, self._room = list(earlier), OutputConfig(batch=batch), room
        self._spool: Spool | None = None

    def lane(self, number: int, source: Track | None = None, mix: Track | None = None) -> Lane:
        """Sample the source of a prompt for the submix as it is, and add it.

        ``source`` and ``mix`` (source and submix) go to whoever wants them. Raises AudioError as `Engine.lane`.
        """
        submix, prompt = self.submix, self._prompts[number]
        form, adder = submix.form, Adder(submix)
        spool = Spool(self._room(), form, submix.origin) if number + 1 < len(self._prompts) else None

        def take(block: Wave) -> None:
            if source:
                source.push(block)
            if mix or spool:
                total = adder.push(block)
                if mix:
                    mix.push(total)
                if spool:
                    spool.write(total)

        wish = Wish(
            prompt=prompt,
            words=self._words[number],
            tracks={"source": Track(take, form, form)},
            repeat=[*self._earlier, *self._prompts[:number]].count(prompt),
        )
        try:
            yield from self._engine.lane(IMPUTE, submix, form.frames, [wish], self._sampling, self._output)
        except BaseException:
            if spool:
                spool.close()
            raise
        for track in (source, mix):
            if track:
                track.finish()
        if spool:
            self.close()
            self._spool, self.submix = spool, spool.signal()

    def close(self) -> None:
        """Give up the room that was taken."""
        if self._spool:
            self._spool.close()
            self._spool = None
