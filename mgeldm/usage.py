"""Reading a command line, and saying what is wrong with one: option, value, what may stand there."""

import argparse
import re
import types
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from manifests.errors import ConfigError, MGELDMError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
}


def read_options(parser: "ArgumentParser", arguments: Sequence[str]) -> "Namespace":
    """The options, configurations made. Raises ConfigError, in one line, for what cannot be."""
    words = list(_spelt(parser, arguments))
    try:
        return parser.instantiate(parser.parse_args(words))
    except MGELDMError:
        raise
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(f"{_told(parser, words, error)}; see `{parser.prog} --help`") from None


def expected(hint: Any) -> str:
    """What a value of a type looks like, for people; empty where that is not easily said."""
    if hint in _KINDS:
        return _KINDS[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, types.UnionType):
        kinds = [expected(kind) for kind in inner]
        return " or ".join(kinds) if all(kinds) else ""
    if origin in (tuple, list) and inner:
        kinds = [expected(kind) for kind in inner if kind is not ...]
        more = ", ..." if origin is list or ... in inner else ""
        return f"a list [{', '.join(kinds)}{more}]" if all(kinds) else ""
    return ""


def _spelt(parser: "ArgumentParser", arguments: Sequence[str]) -> Iterator[str]:
    """Options as the parser calls them: ``--save-every`` is ``--save_every``. Raises ConfigError for one unknown."""
    known = parser._option_string_actions
    rest = False
    for word in arguments:
        rest = rest or word == "--"
        name, sign, value = word.partition("=")
        if rest or not name.startswith("--"):
            yield word
            continue
        stem, plus = name.removesuffix("+"), "+" * name.endswith("+")  # jsonargparse adds to a list with --option+
        found = next((spelling for spelling in (stem, f"--{stem[2:].replace('-', '_')}") if spelling in known), None)
        if found is None:
            near = get_close_matches(stem, list(known), 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"no option {name}; {hint}see `{parser.prog} --help`")
        yield f"{found}{plus}{sign}{value}"


def _told(parser: "ArgumentParser", words: Sequence[str], error: Exception) -> str:
    """What was wrong with a command line that the parser refused, in our words as far as we know them."""
    text = " ".join(str(error).split())
    if match := re.search(r"the following arguments are required: (.+)", text):
        return f"missing: {', '.join(_shown(parser, dest) for dest in match[1].split(', '))}"
    if match := re.fullmatch(r"unrecognized arguments: (.+)", text):
        return f"{match[1]}: more than it takes"
    if match := re.match(r"""(?:Parser key "|argument )([^":\s]+)"?:\s*(.*)""", text):
        action = _action(parser, match[1])
        if action is None:
            return text
        name = _shown(parser, action.dest)
        wanted = f"one of {', '.join(map(str, action.choices))}" if action.choices else _wanted(action)
        if match[2].startswith("expected "):
            return f"{name} needs a value{f', {wanted}' if wanted else ''}"
        if "xpected" not in match[2] and "invalid" not in match[2] and "Union" not in match[2]:
            return f"{name}: {match[2]}"  # such as a file that is not there
        value = _value(words, action, match[2])
        return f"{name} {value}: it must be {wanted}" if wanted else f"{name}: {match[2]}"
    return text


def _action(parser: "ArgumentParser", name: str) -> argparse.Action | None:
    """The option or positional argument that a message names, by any of its names."""
    names = {part.lstrip("-") for part in name.split("/")}
    return next(
        (
            action
            for action in parser._actions
            if names & {action.dest, *(option.lstrip("-") for option in action.option_strings)}
        ),
        None,
    )


def _shown(parser: "ArgumentParser", dest: str) -> str:
    """An argument as a person writes it: ``--out``, or ``AUDIO``."""
    action = _action(parser, dest)
    if action is None:
        return dest
    if action.option_strings:
        return action.option_strings[-1]
    return str(action.metavar or action.dest).upper()


def _wanted(action: argparse.Action) -> str:
    return expected(getattr(action, "_typehint", None) or action.type or str)


def _value(words: Sequence[str], action: argparse.Action, reason: str) -> str:
    """What was given to an argument: what the parser says of it, else what stands on the command line."""
    if match := re.search(r"(?:Got value|Given value|invalid choice): (.+?)(?: \(choose from .*)?$", reason):
        return match[1].strip("'\"")
    for place, word in enumerate(words):
        name, sign, value = word.partition("=")
        if name in action.option_strings:
            return value if sign else " ".join(words[place + 1 : place + 2])
    return ""
