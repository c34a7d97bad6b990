"""Errors caused by the user: one message that says what is wrong, where, and what to do."""

import difflib
import re
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """A mistake in a command, a config or a file.

    Commands print its message without a traceback and exit with status 2.
    """


def printable(text: str, *, keep: str = "\n\t") -> str:
    """Escapes control characters, except those in `keep`, and bytes that are not UTF-8.

    File names may contain them, and a terminal would obey or reject them.
    """
    return re.sub(
        "[^ -~]", lambda m: m[0] if m[0].isprintable() or m[0] in keep else repr(m[0])[1:-1], text
    )


def some(items: Sequence[str]) -> str:
    """Returns the first ten items, separated by commas, and '…' for the others."""
    return ", ".join([*items[:10], *("…" for _ in items[10:11])])


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Returns the error for an unknown name, with the nearest valid one."""
    return _with_nearest(f"Unknown {kind} '{name}'.", name, valid)


def no_argument(owner: str, name: str, valid: Iterable[str]) -> UserError:
    """Returns the error for an argument that a plugin, such as "Method 'pm'", does not have."""
    return _with_nearest(f"{owner} has no argument '{name}'.", name, valid)


def _with_nearest(problem: str, name: str, valid: Iterable[str]) -> UserError:
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UserError(f"{problem}{hint} Valid: {', '.join(valid) or 'none'}.")


def require_known(kind: str, name: str, valid: Iterable[str]) -> None:
    """Raises `unknown` for a name that is not valid."""
    if name not in valid:
        raise unknown(kind, name, valid)
