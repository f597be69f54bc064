"""The actions of `mgeldm shards`, each with options of its own. Like the command line, nobody else imports it."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from manifests.errors import ConfigError
from mgeldm.cli import FAILED_ITEMS, OK, USAGE, Command, _parsed, _parser, _show

_DATA = "data set of `mgeldm encode`: a folder or an fsspec URL"


def run(arguments: Sequence[str]) -> int:
    """Run the action that the first word names."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, ACTIONS))
        lines = [f"  {name.ljust(width)}  {text}" for name, (text, _) in ACTIONS.items()]
        print("\n".join(["usage: mgeldm shards ACTION ...   (ACTION --help shows its options)", "", *lines]))
        print("\nExample: mgeldm shards verify DATA")
        if arguments:
            sys.exit(OK)  # as the help of every other command
        return USAGE
    if arguments[0] not in ACTIONS:
        known = ", ".join(ACTIONS)
        print(f"mgeldm shards: no action {arguments[0]!r}; there are {known}", file=sys.stderr)
        return USAGE
    return ACTIONS[arguments[0]][1](arguments[1:])


def _verify(arguments: Sequence[str]) -> int:
    from manifests.remote import parse_root
    from pipelines.verify import verify
    from pipelines.verify_plan import Reencode

    parser = _parser("shards verify", "mgeldm shards verify DATA --splits splits.parquet", ACTIONS["verify"][0])
    parser.add_argument("data", metavar="DATA", help=_DATA)
    parser.add_argument("--splits", type=Path, help="plan that every window must stand in, once, as planned")
    parser.add_argument("--songs", type=Path, help="manifest of the plan: some windows are encoded anew and compared")
    parser.add_argument(
        "--reencode", type=float, help="share of the windows to encode anew, by the manifest; by default 0.01"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which")
    parser.add_argument("--codec", default="default", help="codec folder, if not the one shipped")
    parser.add_argument("--embedder", default="default", help="embedder folder, if not the one shipped")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parsed = _parsed(parser, arguments)
    if parsed.reencode is not None and not parsed.songs:
        raise ConfigError(f"--reencode {parsed.reencode:g} needs the manifest of the plan; give --songs, too")
    again = None
    if parsed.songs:
        again = Reencode(
            songs=parsed.songs,
            share=0.01 if parsed.reencode is None else parsed.reencode,
            seed=parsed.seed,
            codec=parsed.codec,
            embedder=parsed.embedder,
            device=parsed.device,
        )
    report = verify(parse_root(parsed.data), parsed.splits, again)
    shown = asdict(report)
    if not parsed.json:
        again_shown = shown.pop("reencoded")
        if again_shown:
            shown |= {f"reencoded_{name}": value for name, value in again_shown.items() if name != "problems"}
    _show(shown, parsed.json)
    return FAILED_ITEMS if report.problems else OK


def _info(arguments: Sequence[str]) -> int:
    from manifests.remote import parse_root
    from pipelines.describe import info

    parser = _parser("shards info", "mgeldm shards info DATA", ACTIONS["info"][0])
    parser.add_argument("data", metavar="DATA", help=_DATA)
    parsed = _parsed(parser, arguments)
    found = info(parse_root(parsed.data))
    if not parsed.json:
        found["roots"], found["missing"] = ([(name,) for name in found[key]] for key in ("roots", "missing"))
    _show(found, parsed.json)
    return OK if found["complete"] else FAILED_ITEMS


def _show_sample(arguments: Sequence[str]) -> int:
    from manifests.remote import parse_root
    from pipelines.show import show

    parser = _parser("shards show", "mgeldm shards show DATA KEY --out DIR", ACTIONS["show"][0])
    parser.add_argument("data", metavar="DATA", help=_DATA)
    parser.add_argument("key", metavar="KEY", help="window id")
    parser.add_argument("--out", type=Path, required=True, help="folder for WAV files and the picture")
    parser.add_argument("--codec", default="default", help="codec folder, if not the one shipped")
    parsed = _parsed(parser, arguments)
    shown = show(parse_root(parsed.data), parsed.key, parsed.out, codec=parsed.codec)
    if parsed.json:
        print(json.dumps(asdict(shown)))
        return OK
    for track in shown.tracks:
        levels = [
            f"{'-inf' if level is None else format(level, '.1f')} dBFS"
            for level in (track.rms_dbfs, track.encoded_dbfs)
        ]
        print(f"{parsed.out / track.file}  {track.role}  {track.text}  {levels[0]} (encoded at {levels[1]})")
    print(parsed.out / shown.picture)
    return OK


def _merge(arguments: Sequence[str]) -> int:
    from manifests.remote import parse_root
    from pipelines.combine import merge

    parser = _parser("shards merge", "mgeldm shards merge DATA DATA2 --out BOTH", ACTIONS["merge"][0])
    parser.add_argument("data", metavar="DATA", nargs="+", help="data sets; their shards must stay where they are")
    parser.add_argument("--out", required=True, metavar="DATA", help="data set to write: a folder or an fsspec URL")
    parsed = _parsed(parser, arguments)
    summary = asdict(merge([parse_root(data) for data in parsed.data], parse_root(parsed.out)))
    _show(summary if parsed.json else summary | {"roots": [(root,) for root in summary["roots"]]}, parsed.json)
    return OK


def _select(arguments: Sequence[str]) -> int:
    from manifests.remote import parse_root
    from pipelines.combine import select

    example = "mgeldm shards select DATA --where \"subset == 'train' and 'drums' in instruments\" --out DRUMS"
    parser = _parser("shards select", example, ACTIONS["select"][0])
    parser.add_argument("data", metavar="DATA", help=f"{_DATA}; its shards must stay where they are")
    parser.add_argument("--where", required=True, help="SQL over the index: corpus, subset, song_id, ...")
    parser.add_argument("--out", required=True, metavar="DATA", help="data set to write: a folder or an fsspec URL")
    parsed = _parsed(parser, arguments)
    summary = asdict(select(parse_root(parsed.data), parsed.where, parse_root(parsed.out)))
    _show(summary if parsed.json else summary | {"roots": [(root,) for root in summary["roots"]]}, parsed.json)
    return OK


def _gc(arguments: Sequence[str]) -> int:
    from manifests.remote import parse_root
    from pipelines.clean import gc

    parser = _parser("shards gc", "mgeldm shards gc DATA --dry-run", ACTIONS["gc"][0])
    parser.add_argument("data", metavar="DATA", help=f"{_DATA}, into which no job writes now")
    parser.add_argument("--dry-run", action="store_true", help="print what would be removed, remove nothing")
    parser.add_argument(
        "--unused",
        action="store_true",
        help="also whole shards that the index does not name; sets that were merged or selected from this one before "
        "it was encoded by another plan may read them still",
    )
    parsed = _parsed(parser, arguments)
    summary = gc(parse_root(parsed.data), dry_run=parsed.dry_run, unused=parsed.unused)
    if parsed.json:
        print(json.dumps(asdict(summary)))
        return OK
    for leftover in summary.removed:
        print(f"{leftover.file}  {leftover.bytes:,} bytes  {leftover.reason}")
    would = "would be removed" if parsed.dry_run else "removed"
    print(f"{len(summary.removed):,} files, {summary.bytes:,} bytes {would}")
    return OK


ACTIONS: dict[str, tuple[str, Command]] = {
    "verify": ("Check every shard against sidecar, index, card and, if given, plan and audio", _verify),
    "info": ("What a data set holds", _info),
    "show": ("Decode one sample to WAV files and draw it", _show_sample),
    "merge": ("One data set of several, by index only: no shard is copied", _merge),
    "select": ("A data set of some samples of another, by index only: no shard is copied", _select),
    "gc": ("Remove what killed jobs left behind", _gc),
}
