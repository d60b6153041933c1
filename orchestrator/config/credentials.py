"""What may not be written down: passwords, keys and tokens, by the names of their keys and inside addresses. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from actors.errors import UserError

REDACTED = "<redacted>"
_PASSWORD = r"secrets?|pass(word|wd|phrase)s?|pwd"
_NAMED = re.compile(
    rf"(^|_)((api|access|account|auth|private|secret)?(keys?|tokens?)|{_PASSWORD}|auth(orization)?|bearer|credentials?)(_|$)"
)
_NUMBER_TOO = re.compile(rf"(^|_)({_PASSWORD})(_|$)")
"""A number of tokens is no token, but a password may be a number."""
_WITH_PASSWORD = re.compile(r"://[^/@]*:(?!\d{1,5}/)[^@]*@")
"""A password may hold a slash; a port is none."""
_IN_QUERY = re.compile(r"://[^?]*\?(.+)")


def redacted(tree: Any) -> Any:
    """Return plain values in which credentials are replaced."""
    if isinstance(tree, dict):
        return {
            key: _hidden(value, str(key)) if _is_named(str(key)) else redacted(value) for key, value in tree.items()
        }
    if isinstance(tree, list):
        return [redacted(value) for value in tree]
    return REDACTED if isinstance(tree, str) and has_password(tree) else tree


def has_password(address: str) -> bool:
    """Whether an address holds a password, or a credential in its query."""
    query = _IN_QUERY.search(address)
    names = [pair.partition("=")[0] for pair in query[1].split("&")] if query else []
    signed = [name for name in names if name.lower() in ("sig", "x-amz-signature", "x-goog-signature")]
    return bool(_WITH_PASSWORD.search(address) or signed or any(_is_named(name) for name in names))


def refuse_redacted(plain: Mapping[str, Any]) -> None:
    """Refuse to go on with a config from which credentials were left out when it was written.

    Raises:
        UserError: names the first such key of the plain values.
    """
    for key in _redacted_keys(plain):
        raise UserError(
            f"{key}: got {REDACTED!r}, since credentials are not written down with a run, expected the value; give the "
            f"`unlocked train` command again with it, or write ${{oc.env:NAME}} in its place in the run's config.yaml"
        )


def _redacted_keys(tree: Any, path: str = "") -> Iterator[str]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _redacted_keys(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _redacted_keys(value, f"{path}.{index}")
    elif tree == REDACTED:
        yield path


def _hidden(value: Any, key: str) -> Any:
    """Return what stands in place of everything below a key that names a credential."""
    if isinstance(value, dict):
        return {name: _hidden(below, key) for name, below in value.items()}
    if isinstance(value, list):
        return [_hidden(below, key) for below in value]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return REDACTED if isinstance(value, str) or (is_number and _NUMBER_TOO.search(_words(key))) else value


def _is_named(key: str) -> bool:
    return bool(_NAMED.search(_words(key)))


def _words(key: str) -> str:
    """Return a key in lower case, its words joined by underscores."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|-", "_", key).lower()
