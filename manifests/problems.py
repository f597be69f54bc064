"""Problem codes: what can be wrong with a song or a stem, and what follows from it.

Nothing wrong is ever dropped: a song stays in the manifest with its problems, and the plan counts what it passed over.
"""

from enum import StrEnum


class Effect(StrEnum):
    """What a problem means for the use of the song."""

    SONG = "song"
    """The whole song cannot be used."""
    STEM = "stem"
    """The stem cannot be used; the song can, without it, as long as two stems remain."""
    NOTE = "note"
    """Nothing is lost; a person may want to know."""


PROBLEMS: dict[str, tuple[Effect, str]] = {
    "metadata": (Effect.SONG, "a metadata file is missing or cannot be parsed"),
    "excluded": (Effect.SONG, "the corpus itself leaves this song out"),
    "worker_died": (Effect.SONG, "measuring the song ended the process that did it, again and again"),
    "unknown_subset": (Effect.SONG, "the layout does not say which subset this folder is"),
    "mixture_only": (Effect.SONG, "the corpus has mixtures only, no stems"),
    "no_stems": (Effect.SONG, "no stem file was found"),
    "single_stem": (Effect.SONG, "fewer than two usable stems: there is no submix"),
    "listed_twice": (Effect.STEM, "metadata names this stem, or its file, twice; the first is taken"),
    "missing": (Effect.STEM, "the file is listed but not on disk"),
    "bad_name": (Effect.STEM, "the path is not UTF-8, so that no table can hold it; rename the file"),
    "outside_root": (Effect.STEM, "the path leaves the root of the corpus"),
    "unreadable": (Effect.STEM, "the file cannot be decoded"),
    "truncated": (Effect.STEM, "the file ends before its header says"),
    "longer": (Effect.STEM, "the file goes on where its header says that it ends"),
    "empty": (Effect.STEM, "the file holds no samples"),
    "not_finite": (Effect.STEM, "samples are NaN or infinite"),
    "silent": (Effect.STEM, "no 100 ms frame is active"),
    "known_defect": (Effect.STEM, "the stem is known not to be what its label says: noise, missing audio, a whole mix"),
    "changed": (Effect.STEM, "the file is not the one that was scanned"),
    "clipped": (Effect.NOTE, "samples stand at full scale in runs"),
    "dc_offset": (Effect.NOTE, "the mean of the samples is far from 0"),
    "narrow_band": (Effect.NOTE, "nothing in the upper frequencies: upsampled or lossily coded"),
    "sum_differs": (Effect.NOTE, "the stems do not sum to the mixture, though this corpus says that they do"),
    "misaligned": (Effect.NOTE, "the mixture is shifted against the sum of the stems, or its polarity is inverted"),
    "repeated_stem": (Effect.NOTE, "two stems of the song hold the same audio"),
    "duplicate": (Effect.NOTE, "another song holds the same audio"),
    "near_duplicate": (
        Effect.NOTE,
        "another song sounds almost the same, or another corpus has the same work in this subset",
    ),
    "leak": (Effect.NOTE, "the same audio or the same work stands in another subset too"),
    "unequal_length": (Effect.NOTE, "stems, or the mixture, differ in length; what is shorter is padded"),
    "mixture_unreadable": (Effect.NOTE, "the mixture file cannot be used; the mix is the sum of the stems"),
    "known_flaw": (
        Effect.NOTE,
        "something is known to be imperfect in the song or the stem, by errata or by listening",
    ),
    "bleed": (Effect.NOTE, "the corpus says that other instruments are heard in the stem, or in those of the song"),
    "unmapped_label": (Effect.NOTE, "the label is not in the vocabulary; it is kept as it is"),
    "unlabelled": (Effect.NOTE, "metadata does not name the instrument of a stem; it is taken for 'other'"),
    "no_audio": (Effect.NOTE, "metadata names a stem that has no audio file"),
}
_NO_FAULT = frozenset({"excluded", "mixture_only", "single_stem", "silent", "known_defect"})


def effect(code: str) -> Effect:
    """The effect of a problem code. Raises KeyError for a code that is not in `PROBLEMS`."""
    return PROBLEMS[code][0]


def is_failure(code: str) -> bool:
    """Whether something failed that a person may want to mend; not what is true of the recording or a mere note."""
    return effect(code) is not Effect.NOTE and code not in _NO_FAULT
