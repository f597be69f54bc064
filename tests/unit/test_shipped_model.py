"""The joint model that is shipped: whole, of the shipped codec and embedder, and told by its prompts."""

import re
from pathlib import Path

import mgeldm
from mgeldm import MGELDM
from mgeldm.codec import load_codec
from mgeldm.embedder import load_embedder

CARD = Path(mgeldm.__file__).parent / "model" / "tiny-16k" / "README.md"


def test_it_goes_with_what_is_shipped_and_its_card() -> None:
    model = MGELDM.from_pretrained(device="cpu")
    assert model.config.codec["identity"] == load_codec().identity
    assert model.config.embedder["identity"] == load_embedder().identity
    assert re.findall("`([0-9a-f]{64})`", CARD.read_text()) == [model.identity]
