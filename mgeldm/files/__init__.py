"""The tasks over files: audio in, audio and one `results.json` out. One model, any number of inputs of any length.

Inputs are read, sampled and written as streams, several at a time. What is done is a row with a key over all that
decided it, so that the same command goes on where it was; a file under its final name is always whole, and no file that
is not a command's own is ever written over.
"""

from mgeldm.files.job import generate_files, run_on_files
from mgeldm.files.naming import find_inputs, output_names, prompt_names, slug
from mgeldm.files.order import FileConfig
from mgeldm.files.preview import Preview, preview_files, preview_generate
from mgeldm.files.results import RESULTS_FILE, FileResult, FileResults, amend

__all__ = [
    "RESULTS_FILE",
    "FileConfig",
    "FileResult",
    "FileResults",
    "Preview",
    "amend",
    "find_inputs",
    "generate_files",
    "output_names",
    "preview_files",
    "preview_generate",
    "prompt_names",
    "run_on_files",
    "slug",
]
