"""The command line. Each command imports what it needs only when it runs; nobody imports this module."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from manifests.errors import ConfigError, MGELDMError
from mgeldm.logs import log_to_stderr

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from mgeldm.joint import MGELDM

OK, FAILED_ITEMS, USAGE = 0, 1, 2

T = TypeVar("T")
Command = Callable[[Sequence[str]], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 done with failed items, 2 wrong usage or input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return OK if arguments else USAGE
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        from mgeldm import __version__

        print(__version__)
        return OK
    if name not in COMMANDS:
        print(f"mgeldm: no command {name!r}; see `mgeldm --help`", file=sys.stderr)
        return USAGE
    log_to_stderr()
    try:
        return COMMANDS[name][1](rest)
    except MGELDMError as error:
        print(f"mgeldm {name}: {error}", file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"mgeldm {name}: {error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print(f"mgeldm {name}: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name.ljust(width)}  {text}" for name, (text, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mgeldm COMMAND ...   (mgeldm COMMAND --help shows its options and an example)",
            "",
            "From multitrack corpora to latent shards to a joint model of mix, submix and source.",
            "",
            *lines,
        ]
    )


def _parser(name: str, example: str, text: str | None = None) -> "ArgumentParser":
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=f"mgeldm {name}",
        description=f"{text or COMMANDS[name][0]}. Example: {example}",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser


def _parsed(parser: "ArgumentParser", arguments: Sequence[str]) -> "Namespace":
    """The options, configurations made. Raises ConfigError, in one line, for what cannot be."""
    from mgeldm.usage import read_options

    return read_options(parser, arguments)


def _options(parser: "ArgumentParser", *kinds: type) -> None:
    """Add the fields of configuration dataclasses as flags, and ``--config FILE`` to read them from YAML."""
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    for kind in kinds:
        parser.add_class_arguments(kind)


def _made(kind: type[T], parsed: "Namespace") -> T:
    """The configuration dataclass from parsed flags."""
    return kind(**{field.name: parsed[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def _show(summary: dict[str, Any], as_json: bool) -> None:
    """Print a result: JSON, or one line a value."""
    if as_json:
        print(json.dumps(summary))
        return
    width = max(len(key) for key in summary)
    for key, value in summary.items():
        if isinstance(value, float):
            value = f"{value:.4g}"
        elif isinstance(value, dict):
            value = ", ".join(f"{name}: {count}" for name, count in value.items()) or "none"
        elif isinstance(value, list | tuple):
            value = "".join(f"\n  {': '.join(map(str, item))}" for item in value) or "none"
        print(f"{key.replace('_', ' ').ljust(width)}  {value}")


def _scan(arguments: Sequence[str]) -> int:
    from manifests.problems import is_failure
    from manifests.remote import parse_root
    from pipelines.runner import RunnerConfig
    from pipelines.scan import ScanConfig, preview, scan

    parser = _parser("scan", "mgeldm scan slakh2100 /data/slakh my-layout.yaml /data/mine --out songs.parquet")
    parser.add_argument(
        "sources", nargs="+", metavar="CORPUS ROOT", help="corpus name or layout YAML, and its folder or URL"
    )
    parser.add_argument("--out", type=Path, required=True, help="manifest to write")
    parser.add_argument("--dry-run", action="store_true", help="count songs, files and bytes, read no audio")
    _options(parser, ScanConfig, RunnerConfig)
    parsed = _parsed(parser, arguments)
    if len(parsed.sources) % 2:
        raise ConfigError(f"sources are pairs of CORPUS and ROOT, got {len(parsed.sources)} words")
    pairs = [(name, parse_root(root)) for name, root in zip(parsed.sources[::2], parsed.sources[1::2], strict=True)]
    if parsed.dry_run:
        _show(preview(pairs), parsed.json)
        return OK
    summary = scan(pairs, parsed.out, config=_made(ScanConfig, parsed), runner=_made(RunnerConfig, parsed))
    _show(asdict(summary), parsed.json)
    return FAILED_ITEMS if any(is_failure(code) for code in summary.problems) else OK


def _corpus(arguments: Sequence[str]) -> int:
    from manifests.corpora.check import check, describe, describe_all, summary
    from manifests.remote import parse_root

    parser = _parser("corpus", "mgeldm corpus check my-layout.yaml /data/mine")
    parser.add_argument(
        "action",
        choices=["list", "show", "check"],
        help="list the corpora that `scan` knows by name; show the layout of one; check what it takes of a folder",
    )
    parser.add_argument("corpus", nargs="?", help="corpus name or layout YAML, for show and check")
    parser.add_argument("root", nargs="?", help="folder or URL of the corpus, for check")
    parser.add_argument("--seconds", type=float, default=1.0, help="check no longer than this; 0: to the end")
    parsed = _parsed(parser, arguments)
    words = [word for word in (parsed.corpus, parsed.root) if word is not None]
    if len(words) != (expected := ["list", "show", "check"].index(parsed.action)):
        raise ConfigError(f"{parsed.action} takes {['nothing', 'CORPUS', 'CORPUS and ROOT'][expected]} after it")
    if parsed.action == "list":
        _show(describe_all(), parsed.json)
        return OK
    if parsed.action == "show":
        found = asdict(describe(parsed.corpus))
        layout = "" if parsed.json else found.pop("layout")
        _show(found, parsed.json)
        print(f"\n{layout}" if layout else "", end="\n" if layout else "")
        return OK
    checked = check(parsed.corpus, parse_root(parsed.root), seconds=parsed.seconds)
    print(json.dumps(asdict(checked)) if parsed.json else summary(checked))
    return FAILED_ITEMS if checked.failed else OK


def _songs(arguments: Sequence[str]) -> int:
    parser = _parser("songs", "mgeldm songs filter songs.parquet --where \"corpus == 'moisesdb'\" --out small.parquet")
    parser.add_argument("action", choices=["stats", "filter", "lint"], help="figures; a smaller manifest; a check")
    parser.add_argument("manifest", type=Path, help="manifest of `mgeldm scan`, or one that somebody else wrote")
    parser.add_argument("--page", type=Path, help="stats: HTML page to write, with plots")
    parser.add_argument("--where", help="filter: SQL over the columns, hours, instruments, has_problem('leak'), ...")
    parser.add_argument("--out", type=Path, help="filter: manifest to write")
    parser.add_argument("--audio", action="store_true", help="lint: also look whether the files are there")
    parsed = _parsed(parser, arguments)
    for option, action in {"page": "stats", "where": "filter", "out": "filter", "audio": "lint"}.items():
        if parsed[option] and parsed.action != action:
            raise ConfigError(f"--{option} belongs to `mgeldm songs {action}`")
    return {"stats": _songs_stats, "filter": _songs_filter, "lint": _songs_lint}[parsed.action](parsed)


def _songs_stats(parsed: "Namespace") -> int:
    from manifests.song_stats import song_stats, table

    stats = song_stats(parsed.manifest)
    if parsed.page:
        from pipelines.report import report

        report(parsed.manifest, parsed.page)
    print(json.dumps(asdict(stats)) if parsed.json else table(stats))
    return OK


def _songs_filter(parsed: "Namespace") -> int:
    from manifests.queries import filter_songs

    if not parsed.where or not parsed.out:
        raise ConfigError("filter needs --where EXPRESSION and --out FILE")
    _show(asdict(filter_songs(parsed.manifest, parsed.where, parsed.out)), parsed.json)
    return OK


def _songs_lint(parsed: "Namespace") -> int:
    from manifests.lint import lint_songs

    findings = list(lint_songs(parsed.manifest, audio=parsed.audio))
    if parsed.json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            print(f"{finding.code} {finding.song_id or parsed.manifest}: {finding.detail}")
        print(f"{len(findings):,} findings" if findings else "nothing wrong")
    return FAILED_ITEMS if findings else OK


def _split(arguments: Sequence[str]) -> int:
    from pipelines.split import SplitConfig, split, table

    if arguments and arguments[0] == "explain":
        return _split_explain(arguments[1:])
    parser = _parser("split", "mgeldm split songs.parquet --out splits.parquet --window_s 20.48 --classes s_a")
    parser.add_argument("songs", type=Path, help="manifest of `mgeldm scan` (or: split explain WINDOW_ID --help)")
    parser.add_argument("--out", type=Path, help="plan to write")
    parser.add_argument("--dry-run", action="store_true", help="show what would be chosen, write nothing")
    _options(parser, SplitConfig)
    parsed = _parsed(parser, arguments)
    if not parsed.out and not parsed.dry_run:
        raise ConfigError("split needs --out FILE, or --dry-run")
    summary = split(parsed.songs, None if parsed.dry_run else parsed.out, config=_made(SplitConfig, parsed))
    print(json.dumps(asdict(summary)) if parsed.json else table(summary))
    return OK


def _split_explain(arguments: Sequence[str]) -> int:
    from pipelines.explain import explain, told

    parser = _parser(
        "split", "mgeldm split explain slakh2100/train/Track00001@20 --plan splits.parquet --songs songs.parquet"
    )
    parser.prog = "mgeldm split explain"
    parser.add_argument("window", help="window id, or SONG_ID@SECONDS; it need not be in the plan")
    parser.add_argument("--plan", type=Path, required=True, help="plan of `mgeldm split`")
    parser.add_argument("--songs", type=Path, required=True, help="manifest that the plan was drawn from")
    parsed = _parsed(parser, arguments)
    found = explain(parsed.window, parsed.plan, parsed.songs)
    print(json.dumps(asdict(found)) if parsed.json else told(found))
    return OK


def _encode(arguments: Sequence[str]) -> int:
    from manifests.remote import parse_root
    from pipelines.encode import encode, preview
    from pipelines.encode_config import EncodeConfig
    from pipelines.runner import RunnerConfig

    parser = _parser("encode", "mgeldm encode splits.parquet --songs songs.parquet --out DATA")
    parser.add_argument("splits", type=Path, help="plan of `mgeldm split`")
    parser.add_argument("--songs", type=Path, required=True, help="manifest that the plan was drawn from")
    parser.add_argument("--out", required=True, metavar="DATA", help="data set to write: a folder or an fsspec URL")
    parser.add_argument("--dry-run", action="store_true", help="count units, windows, hours, bytes, write nothing")
    parser.add_argument(
        "--calibration-s", type=float, default=20.0, help="with --dry-run: seconds to measure this device; 0: do not"
    )
    _options(parser, EncodeConfig, RunnerConfig)
    parsed = _parsed(parser, arguments)
    config, out = _made(EncodeConfig, parsed), parse_root(parsed.out)
    if parsed.dry_run:
        counted = preview(parsed.splits, parsed.songs, out, config, calibration_s=parsed.calibration_s)
        _show(counted, parsed.json)
        return OK
    summary = encode(parsed.splits, parsed.songs, out, config=config, runner=_made(RunnerConfig, parsed))
    _show(asdict(summary), parsed.json)
    return FAILED_ITEMS if summary.failures else OK


def _shards(arguments: Sequence[str]) -> int:
    from mgeldm import shards_cli

    return shards_cli.run(arguments)


def _train(arguments: Sequence[str]) -> int:
    from training.launch import launch

    _show(launch(arguments), "--json" in arguments)
    return OK


def _train_codec(arguments: Sequence[str]) -> int:
    from training.codec import CodecTrainConfig, train_codec

    parser = _parser("train-codec", "mgeldm train-codec songs.parquet --out codec-run --steps 20000")
    parser.add_argument("songs", type=Path, help="manifest of `mgeldm scan`")
    parser.add_argument("--out", type=Path, required=True, help="run folder, which is the codec folder too")
    _options(parser, CodecTrainConfig)
    parsed = _parsed(parser, arguments)
    _show(train_codec(parsed.songs, parsed.out, config=_made(CodecTrainConfig, parsed)), parsed.json)
    return OK


def _train_embedder(arguments: Sequence[str]) -> int:
    from training.embedder import EmbedderTrainConfig, train_embedder

    parser = _parser("train-embedder", "mgeldm train-embedder songs.parquet --out embedder-run --steps 2000")
    parser.add_argument("songs", type=Path, help="manifest of `mgeldm scan`")
    parser.add_argument("--out", type=Path, required=True, help="run folder, which is the embedder folder too")
    _options(parser, EmbedderTrainConfig)
    parsed = _parsed(parser, arguments)
    _show(train_embedder(parsed.songs, parsed.out, config=_made(EmbedderTrainConfig, parsed)), parsed.json)
    return OK


def _task(name: str) -> Command:
    def run(arguments: Sequence[str]) -> int:
        from mgeldm.files import FileConfig, preview_files, run_on_files
        from mgeldm.outputs import OutputConfig
        from mgeldm.sampling import SamplingConfig

        parser = _parser(name, f'mgeldm {name} song.wav --prompt "drums" --model RUN/checkpoint --out DIR')
        parser.add_argument(
            "audio", type=Path, nargs="+", help="audio files of any rate, length and format, or folders of them"
        )
        _model_options(parser, SamplingConfig, OutputConfig, FileConfig)
        parsed = _parsed(parser, arguments)
        options = _made(SamplingConfig, parsed), _made(OutputConfig, parsed), _made(FileConfig, parsed)
        model = _model(parsed)
        if parsed.dry_run:
            found = preview_files(name, model, parsed.audio, parsed.prompt, parsed.out, *options)
            return _show_preview(asdict(found), parsed.json)
        results = run_on_files(name, model, parsed.model, parsed.audio, parsed.prompt, parsed.out, *options)
        _show_files(asdict(results), parsed.out, parsed.json)
        return FAILED_ITEMS if results.failures else OK

    return run


def _generate(arguments: Sequence[str]) -> int:
    from mgeldm.files import FileConfig, generate_files, preview_generate
    from mgeldm.outputs import OutputConfig
    from mgeldm.sampling import SamplingConfig

    parser = _parser(
        "generate", 'mgeldm generate --prompt "drums and bass" --seconds 20 --model RUN/checkpoint --out DIR'
    )
    parser.add_argument("--seconds", type=float, default=10.24, help="length of the mix")
    parser.add_argument("--batch", type=int, default=OutputConfig().batch, help="prompts that are sampled at a time")
    _model_options(parser, SamplingConfig, FileConfig)
    parsed = _parsed(parser, arguments)
    options = _made(SamplingConfig, parsed), OutputConfig(batch=parsed.batch), _made(FileConfig, parsed)
    model = _model(parsed)
    if parsed.dry_run:
        found = preview_generate(model, parsed.prompt, parsed.seconds, parsed.out, *options)
        return _show_preview(asdict(found), parsed.json)
    results = generate_files(model, parsed.model, parsed.prompt, parsed.seconds, parsed.out, *options)
    _show_files(asdict(results), parsed.out, parsed.json)
    return OK


def _model_options(parser: "ArgumentParser", *kinds: type) -> None:
    parser.add_argument("--prompt", action="append", required=True, help="what to play, in words; repeatable")
    parser.add_argument(
        "--model",
        default="default",
        help="checkpoint folder of `mgeldm train`, or a hub id OWNER/NAME; by default the small one that is shipped",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for audio files and results.json")
    parser.add_argument(
        "--codec", default="default", help="codec folder or hub id, if not that in the checkpoint or the one shipped"
    )
    parser.add_argument("--embedder", default="default", help="embedder folder or hub id, likewise")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision", default="float32", choices=["float32", "bfloat16"], help="of the network; the rest is float32"
    )
    parser.add_argument("--compile", action="store_true", help="compile the network: minutes that long work pays back")
    parser.add_argument(
        "--dry-run", action="store_true", help="count inputs, files, evaluations, bytes and time; write nothing"
    )
    _options(parser, *kinds)


def _model(parsed: "Namespace") -> "MGELDM":
    from mgeldm.joint import MGELDM

    return MGELDM.from_pretrained(
        parsed.model,
        **{name: parsed[name] for name in ("codec", "embedder", "device", "precision", "compile")},
    )


def _show_preview(found: dict[str, Any], as_json: bool) -> int:
    """Print what a command would do; the exit status is that of failed items where inputs cannot be read."""
    failures = found.pop("failures")
    if as_json:
        print(json.dumps(found | {"failures": failures}))
    else:
        unreadable = [(failure["code"], failure["message"]) for failure in failures]
        outputs = [(file,) for file in found.pop("outputs")]
        _show({**found, "unreadable": unreadable, "outputs": outputs}, as_json)
    return FAILED_ITEMS if failures else OK


def _show_files(results: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(results))
        return
    for result in results["results"]:
        for file in result["outputs"].values():
            print(out / file)
    for failure in results["failures"]:
        print(f"failed: {failure['message']}")


def _convert(arguments: Sequence[str]) -> int:
    from mgeldm.convert import convert

    parser = _parser("convert", "mgeldm convert unwrapped_DiT.ckpt --out CHECKPOINT")
    parser.add_argument("file", type=Path, help="the authors' unwrapped_DiT.ckpt, or an autoencoder's checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint or codec folder to write")
    parser.add_function_arguments(convert, skip={"file", "out"})
    parsed = _parsed(parser, arguments)
    _show(convert(**{key: value for key, value in parsed.items() if key != "json"}), parsed.json)
    return OK


def _report(arguments: Sequence[str]) -> int:
    from pipelines.report import report

    parser = _parser("report", "mgeldm report demo-out --out page.html")
    parser.add_argument("thing", type=Path, help="manifest, or folder of a demo, a run or results")
    parser.add_argument("--out", type=Path, required=True, help="HTML page to write")
    parsed = _parsed(parser, arguments)
    _show({"page": str(report(parsed.thing, parsed.out))}, parsed.json)
    return OK


def _demo(arguments: Sequence[str]) -> int:
    from manifests.problems import is_failure
    from mgeldm.demo import DemoConfig, demo, table

    parser = _parser("demo", "mgeldm demo --out demo-out")
    parser.add_argument("--out", type=Path, required=True, help="folder for every artefact and report.html")
    _options(parser, DemoConfig)
    parsed = _parsed(parser, arguments)
    summary = demo(parsed.out, _made(DemoConfig, parsed))
    print(json.dumps(summary) if parsed.json else table(summary))
    return FAILED_ITEMS if any(is_failure(code) for code in summary["counts"]["problems"]) else OK


COMMANDS: dict[str, tuple[str, Command]] = {
    "demo": ("The whole road on two small corpora, with a report page", _demo),
    "corpus": ("The corpora that scan knows, their layouts, and what of a folder a layout takes", _corpus),
    "scan": ("Corpora on disk to a measured manifest, songs.parquet", _scan),
    "songs": ("Figures, filters and a check of a manifest", _songs),
    "split": ("Manifest to a plan of windows and splits, splits.parquet", _split),
    "encode": ("Plan to WebDataset shards of latents and embeddings", _encode),
    "shards": ("Check, show, join, choose from and clean data sets", _shards),
    "train": ("Train a joint model from shards", _train),
    "extract": ("A named source out of mixes", _task("extract")),
    "impute": ("A named source that fits into submixes", _task("impute")),
    "accompany": ("A submix that goes with sources", _task("accompany")),
    "generate": ("A mix from words", _generate),
    "convert": ("The paper's weights, or a stable-audio-tools autoencoder, to a folder of ours", _convert),
    "report": ("One HTML page about a manifest, a run or results", _report),
    "train-codec": ("Train an Oobleck VAE on the songs of a manifest", _train_codec),
    "train-embedder": ("Train a text/audio embedder on the songs of a manifest", _train_embedder),
}


if __name__ == "__main__":
    sys.exit(main())
