"""The base of every configuration object, what may be a name, and what was wrong in one line."""

import re

from pydantic import BaseModel, ConfigDict, ValidationError

from dgbench.errors import DgbenchError

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_OF_WINDOWS = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?|.*\.", re.IGNORECASE)
"""Names that cannot be those of folders there: devices, and those that end with a dot."""


def check_name(name: str, what: str) -> str:
    """``name`` itself if it can be a folder name on every system; else a DgbenchError that says what is allowed."""
    if not SAFE_NAME.fullmatch(name):
        raise DgbenchError(
            f"{what} {name!r} cannot be used: letters, digits, '_', '-' and '.' only, at most 64, starting with a letter or digit"
        )
    if _OF_WINDOWS.fullmatch(name):
        raise DgbenchError(f"{what} {name!r} cannot be used: no folder can have this name on Windows")
    return name


class Frozen(BaseModel):
    """Base of every configuration object: immutable; an unknown key is an error, and so is a number that is infinite or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def one_line(error: ValidationError) -> str:
    """A pydantic error as one line: each wrong place with its reason."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'value'}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors()
    )
