"""The command line of training, for `mgeldm train` and for each process of `torchrun -m training`."""

import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.errors import ConfigError
from manifests.remote import parse_root
from mgeldm.usage import read_options
from training.config import TrainConfig, load_recipe, recipe_path

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

EXAMPLES = """\
Example: mgeldm train tiny --data DATA --out RUN --steps 2000 --stream.batch 32.
Two GPUs: torchrun --nproc-per-node 2 -m training base --data DATA --out RUN.
A Ray cluster: mgeldm train base --ray --nodes 2 --gpus-per-node 8 --data DATA --out RUN"""


def launch(arguments: Sequence[str], prog: str = "mgeldm train") -> dict[str, Any]:
    """Train, or with ``--dry-run`` tell what training would do. Returns what is to be shown.

    Raises:
        ConfigError: an option, the recipe or what they ask for is wrong.
        ShardError: a data set cannot be used.
        CheckpointError: the run folder holds another run.
    """
    parser = _parser(prog)
    recipe = recipe_path(read_options(parser, arguments).recipe)
    load_recipe(recipe)  # whatever is wrong with it is said with its name
    # The recipe is read before the flags, so that a flag replaces the recipe's value.
    parsed = read_options(parser, ["--config", str(recipe), *arguments])
    config = TrainConfig(**{field.name: parsed[field.name] for field in fields(TrainConfig)})
    data = [weighted(text) for text in parsed.data]
    if not parsed.ray and (parsed.nodes, parsed.gpus_per_node, parsed.cpu_workers, parsed.address) != (1, 1, 0, None):
        raise ConfigError(
            "--nodes, --gpus-per-node, --cpu-workers and --address go with --ray; else start processes by torchrun"
        )
    if parsed.dry_run:
        from training.dry_run import Calibrate, dry_run

        # Of several processes only the first shows anything, and needs the machine for itself.
        calibrate: Calibrate = parsed.calibrate if os.environ.get("RANK", "0") == "0" else "never"
        return dry_run(config, data, calibrate=calibrate, processes=_processes(parsed))
    if parsed.calibrate != "auto":
        raise ConfigError(f"--calibrate {parsed.calibrate} goes with --dry-run")
    if parsed.ray:
        from training.on_ray import train_on_ray

        return asdict(
            train_on_ray(
                config,
                data,
                parsed.out,
                resume=parsed.resume == "auto",
                address=parsed.address,
                nodes=parsed.nodes,
                gpus_per_node=parsed.gpus_per_node,
                cpu_workers=parsed.cpu_workers,
            )
        )
    from training.loop import train

    return asdict(train(config, data, parsed.out, resume=parsed.resume == "auto"))


def weighted(text: str) -> tuple[Path | str, float | None]:
    """``DATA`` or ``DATA=WEIGHT``. Raises ConfigError."""
    path, sign, weight = text.rpartition("=")
    # A "=" further up in a path or URL is part of it.
    if not sign or "/" in weight or Path(text).exists():
        return parse_root(text), None
    try:
        return parse_root(path), float(weight)
    except ValueError:
        raise ConfigError(f"--data {text}: the weight after '=' is not a number") from None


def _parser(prog: str) -> "ArgumentParser":
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        description=f"Train a joint model from shards. {EXAMPLES}",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("recipe", help="recipe YAML, or the name of one that is shipped (tiny, small, base, t1, ...)")
    parser.add_argument("--data", action="append", required=True, metavar="DATA[=WEIGHT]", help="data set; repeatable")
    parser.add_argument("--out", type=Path, required=True, help="run folder: checkpoints, metrics, state")
    parser.add_argument(
        "--resume", choices=["auto", "never"], default="auto", help="go on from the state in the run folder, if any"
    )
    parser.add_argument(
        "--no-resume", dest="resume", action="store_const", const="never", default="auto", help="as --resume never"
    )
    parser.add_argument("--dry-run", action="store_true", help="show sizes, data, memory and time; train nothing")
    parser.add_argument(
        "--calibrate", choices=["auto", "always", "never"], default="auto", help="time 20 steps in a dry run"
    )
    parser.add_argument("--ray", action="store_true", help="train on the Ray cluster; --out is a folder all nodes see")
    parser.add_argument("--address", help="with --ray: its HOST:PORT, or auto; without, RAY_ADDRESS or this machine")
    parser.add_argument("--nodes", type=int, default=1, help="with --ray: machines")
    parser.add_argument("--gpus-per-node", type=int, default=1, help="with --ray: GPUs, each with a process of its own")
    parser.add_argument("--cpu-workers", type=int, default=0, help="with --ray: so many processes without GPUs instead")
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(TrainConfig)
    return parser


def _processes(parsed: "Namespace") -> int:
    if parsed.ray:
        from training.on_ray import process_count

        return process_count(parsed.nodes, parsed.gpus_per_node, parsed.cpu_workers)
    return int(os.environ.get("WORLD_SIZE", "1"))
