"""Every setting of portalpatch, said once: name, environment variable, default, meaning.

Read by the command line (which turns options into variables), by `_activate.activate()` and by
`python -m portalpatch --settings`. PORTALPATCH_LOG and PORTALPATCH_STDIO are
read by interpose/, when the library is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HOSTS = ("asyncio", "trio")


@dataclass(frozen=True)
class Setting:
    """One environment variable."""

    variable: str
    default: str  # as one would write it in the variable
    option: str  # the command line's, "" where there is none
    meaning: str


SETTINGS = (
    Setting(
        "PORTALPATCH",
        "0",
        "",
        "1: every Python that starts with the library preloaded turns portalpatch on by itself",
    ),
    Setting(
        "PORTALPATCH_HOST",
        "asyncio",
        "--host",
        "the loop that runs where the program runs none: " + " or ".join(HOSTS),
    ),
    Setting("PORTALPATCH_ONLY", "", "--only", "comma-separated: apply these patches and no others"),
    Setting("PORTALPATCH_WITHOUT", "", "--without", "comma-separated: patches to leave out"),
    Setting("PORTALPATCH_STATS", "0", "--stats", "1: print statistics on stderr at exit"),
    Setting(
        "PORTALPATCH_STALL",
        "",
        "--stall",
        "seconds: report code that ran longer than this without a wait; empty: never",
    ),
    Setting(
        "PORTALPATCH_MUTEX_GUARD",
        "",
        "--mutex-guard",
        "comma-separated patterns of libraries' file names (libfoo*): in these no call parks while "
        "a mutex is held",
    ),
    Setting(
        "PORTALPATCH_SIGQUIT",
        "0",
        "--sigquit",
        "1: SIGQUIT prints what everybody waits for, and goes on",
    ),
    Setting(
        "PORTALPATCH_LOG",
        "off",
        "",
        "trace on stderr: off, info (each park and resume) or debug (each decision)",
    ),
    Setting("PORTALPATCH_STDIO", "0", "", "1: calls on fds 0, 1 and 2 may park as well"),
)


class SettingError(ValueError):
    """A setting has a value that cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Activation:
    """The settings of one activation, parsed: the arguments of `portalpatch.patch_all()`."""

    host: str = "asyncio"
    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    stats: bool = False
    stall: float | None = None  # seconds
    mutex_guard: tuple[str, ...] = ()
    sigquit: bool = False


def parse(values: Mapping[str, str]) -> Activation:
    """Parse PORTALPATCH_* variables, from `os.environ` or a copy.

    Raises SettingError where a value is not one the setting can have. Whether the named patches
    exist and the host is installed is for the caller to check (see `check`).
    """
    host = values.get("PORTALPATCH_HOST", "") or "asyncio"
    if host not in HOSTS:
        raise SettingError(f"unknown host {host!r}: use {' or '.join(HOSTS)}")
    only = values.get("PORTALPATCH_ONLY", "")
    stall_text = values.get("PORTALPATCH_STALL", "")
    stall = None
    if stall_text:
        try:
            stall = float(stall_text)
        except ValueError:
            stall = -1.0
        if not stall > 0:
            raise SettingError(f"stall must be a number of seconds above 0, not {stall_text!r}")
    return Activation(
        host=host,
        only=split_names(only) if only else None,
        without=split_names(values.get("PORTALPATCH_WITHOUT", "")),
        stats=switch(values, "PORTALPATCH_STATS"),
        stall=stall,
        mutex_guard=split_names(values.get("PORTALPATCH_MUTEX_GUARD", "")),
        sigquit=switch(values, "PORTALPATCH_SIGQUIT"),
    )


def switch(values: Mapping[str, str], variable: str) -> bool:
    value = values.get(variable, "")
    if value not in ("", "0", "1"):
        raise SettingError(f"{variable} must be 0 or 1, not {value!r}")
    return value == "1"


def split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def check(activation: Activation) -> None:
    """Raise SettingError where a patch is unknown or the host is not installed."""
    import importlib.util

    from portalpatch import patches

    known = list(patches.names())
    for name in (*(activation.only or ()), *activation.without):
        if name not in known:
            raise SettingError(f"unknown patch {name!r}: known are {', '.join(sorted(known))}")
    if activation.host != "asyncio" and importlib.util.find_spec(activation.host) is None:
        raise SettingError(f"host {activation.host!r} is not installed")


def describe() -> str:
    """The table that `python -m portalpatch --settings` prints."""
    lines = []
    width = max(len(setting.variable) for setting in SETTINGS)
    for setting in SETTINGS:
        default = setting.default or "(empty)"
        option = f" [{setting.option}]" if setting.option else ""
        lines.append(f"{setting.variable:<{width}}  {default:<8} {setting.meaning}{option}")
    return "\n".join(lines)
