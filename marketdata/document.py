"""A YAML document as plain values, with the line of each and `${NAME}` filled in.

Only what a configuration needs: mappings with text keys, lists, texts, numbers, true, false, null.
A key that comes twice is a fault, where YAML's own loaders silently let the last one win.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from marketdata.errors import Fault

KeyPath = tuple[str | int, ...]

_PREFIX = "tag:yaml.org,2002:"
_PLAIN = {_PREFIX + name for name in ("null", "bool", "int", "float")}
_TEXT = {_PREFIX + name for name in ("str", "timestamp")}
_NAME = "([A-Za-z_][A-Za-z0-9_]*)"
# `${NAME}` must be able to stand without quotes in `{token: ${NAME}}`, where YAML would take its
# brace for its own: while YAML reads, private characters stand for the braces.
_WRITTEN = re.compile(rf"\$\{{{_NAME}\}}")
_HIDDEN = re.compile(f"\ue000{_NAME}\ue001")


def dotted(path: KeyPath) -> str:
    """A path as messages write it.

    >>> dotted(("exchanges", "BYBIT", "pairs", 3))
    'exchanges.BYBIT.pairs[3]'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{key_name(part)}" for part in path)
    return text.removeprefix(".") or "the file"


def key_name(key: str) -> str:
    """A key as messages write it: `token:secret` without a blank is one, and isn't repeated."""
    word = re.match(r"[\w-]*", key)
    return key if word is None or word[0] == key else f"{word[0]}…"


class Document:
    """The values of a document.

    Attributes
    ----------
    values
        The root, None for an empty document.
    faults
        What is wrong with the document itself.
    lost
        Paths whose value is None in `values` because of such a fault.
    substituted
        Paths of texts that came from the environment, with the text as the file has it.

    What an alias stands for is known by the path of its anchor: see `origin`.
    """

    def __init__(self, text: str, environ: Mapping[str, str]) -> None:
        self.values: Any = None
        self.faults: list[Fault] = []
        self.lost: set[KeyPath] = set()
        self.substituted: dict[KeyPath, str] = {}
        self._environ = environ
        self._lines: dict[KeyPath, int] = {(): 1}
        self._finished: dict[int, Any] = {}
        self._anchors: dict[int, KeyPath] = {}
        self._aliases: dict[KeyPath, KeyPath] = {}
        self._open: set[int] = set()
        try:
            hidden = _WRITTEN.sub("\ue000\\1\ue001", text)
            root = yaml.compose(hidden, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            # What these two repeat may be a secret that begins with * or !.
            named = isinstance(error, yaml.composer.ComposerError)
            problem = "an alias or a document that doesn't belong" if named else error.problem
            if "tag handle" in (problem or ""):
                problem = "a tag (!…)"
            line = mark.line + 1 if mark is not None else None
            self._fault((), f"broken YAML: {problem}", "YAML", line)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self._fault((), "a character that can't be printed", "printable text", line)
        except RecursionError:
            self._fault((), "hundreds of levels", "a mapping of a few levels", 1)
        except (ValueError, OverflowError):
            # PyYAML lets them pass where an escape or a version is out of range.
            self._fault((), "broken YAML: a number that is too large", "YAML", None)
        else:
            self.values = self._value(root, ()) if root is not None else None

    def origin(self, path: KeyPath) -> KeyPath:
        """Where the file has what is at a path: elsewhere, if an alias leads there."""
        for end in range(len(path), 0, -1):
            anchor = self._aliases.get(path[:end])
            if anchor is not None:
                return self.origin(anchor + path[end:])
        return path

    def line(self, path: KeyPath) -> int:
        """The line of a path, or of what holds it where it isn't in the file."""
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def _fault(self, path: KeyPath, found: str, valid: str, line: int | None) -> None:
        self.faults.append(Fault(dotted(path), line, found, valid))

    def _lose(self, path: KeyPath, found: str, valid: str) -> None:
        self.lost.add(path)
        self._fault(path, found, valid, self.line(path))

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._lose(path, "an alias of what it is in", "a value")
            return None
        if id(node) in self._finished:
            self._aliases[path] = self._anchors[id(node)]
        else:
            self._anchors[id(node)] = path
            self._open.add(id(node))
            known = isinstance(node, yaml.MappingNode)
            self._finished[id(node)] = (
                self._mapping(node, path) if known else self._list(node, path)
            )
            self._open.remove(id(node))
        return self._finished[id(node)]

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._fault(path, "a key that is no text", "text keys", line)
                continue
            key = _HIDDEN.sub(r"${\1}", key_node.value)
            if not key.isprintable():
                self._fault(path, "a key with characters that can't be printed", "text keys", line)
                continue
            below = (*path, key)
            if key in values:
                found = f"the key a second time (first on line {self._lines[below]})"
                self._fault(below, found, "each key once", line)
                continue
            self._lines[below] = line
            values[key] = self._value(value_node, below)
        return values

    def _list(self, node: yaml.Node, path: KeyPath) -> list[Any]:
        values = []
        for number, item in enumerate(node.value):
            self._lines[*path, number] = item.start_mark.line + 1
            values.append(self._value(item, (*path, number)))
        return values

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        if node.tag in _TEXT:
            return self._filled_in(node.value, path)
        if node.tag in _PLAIN:
            # An explicit tag (`!!int x`) may not fit its text.
            with contextlib.suppress(ValueError, KeyError):
                return yaml.constructor.SafeConstructor().construct_object(node)
        self._lose(path, "a tag (!…)", "a plain value, in quotes where it starts with !")
        return None

    def _filled_in(self, text: str, path: KeyPath) -> str | None:
        wanted = _HIDDEN.findall(text)
        if not wanted:
            return self._printable(text, path)
        missing = [name for name in wanted if not self._environ.get(name)]
        if missing:
            found = f"${{{missing[0]}}}, which the environment doesn't have"
            self._lose(path, found, f"a variable that is set, {missing[0]}=…")
            return None
        self.substituted[path] = _HIDDEN.sub(r"${\1}", text)
        return self._printable(_HIDDEN.sub(lambda match: self._environ[match[1]], text), path)

    def _printable(self, text: str, path: KeyPath) -> str | None:
        # No name, path or address has others; a NUL or half a surrogate would break what opens it.
        if text.isprintable():
            return text
        self._lose(path, "a text with characters that can't be printed", "printable text")
        return None
