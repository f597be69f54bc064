"""Names of works: what tells that songs of two corpora are one recording, or of one score.

Corpora spell the same song in different ways: ``AvaLuna - Waterduct`` and ``Ava Luna - Waterduct``, ``055 - Angels In
Amplifiers - I'm Alright`` in DSD100 and without its number in MUSDB18.
"""

import re
import unicodedata


def work(collection: str, name: str) -> str:
    """``collection``, a colon and the letters and digits of ``name``, without accents and a number of three ahead."""
    text = unicodedata.normalize("NFKD", re.sub(r"^\d{3} - ", "", name)).casefold().replace("&", "and")
    # Accents are characters of their own by now, and no letters.
    letters = re.sub(r"[\W_]", "", text)
    return f"{collection}:{letters or name}"
