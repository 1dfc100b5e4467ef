"""Finding methods: the packages in ``dgbench_methods``, then installed entry points of the group ``dgbench.methods``, then
``package.module:Class``.

Only the light ``__init__.py`` of a plugin is imported here. A plugin that cannot be imported is listed with its reason and harms nobody
else.
"""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgbench.errors import DgbenchError, suggest
from dgbench.info import MethodInfo

if TYPE_CHECKING:
    from dgbench.method import Method

GROUP = "dgbench.methods"


@dataclass(frozen=True)
class BrokenMethod:
    """A plugin that could not be listed, with the reason in one line."""

    name: str
    reason: str


def discover() -> dict[str, MethodInfo | BrokenMethod]:
    """Every method by name, sorted; a second plugin of the same name is reported as broken under ``name (module)``."""
    found: dict[str, MethodInfo | BrokenMethod] = {}
    for module_name in _modules():
        try:
            module = importlib.import_module(module_name)
            infos = _infos(module)
        except Exception as error:  # a foreign package may fail in any way; the reason is shown
            found[module_name] = BrokenMethod(module_name, f"{type(error).__name__}: {' '.join(str(error).split())}")
            continue
        for info in infos:
            if info.name in found:
                clash = f"{info.name} ({module_name})"
                found[clash] = BrokenMethod(clash, f"the name {info.name!r} is already taken by another plugin")
            else:
                found[info.name] = info
    return dict(sorted(found.items()))


def _modules() -> Iterator[str]:
    import dgbench_methods

    for module in pkgutil.iter_modules(dgbench_methods.__path__):
        yield f"dgbench_methods.{module.name}"
    for entry in entry_points(group=GROUP):
        yield entry.value.partition(":")[0]


def _infos(module: Any) -> tuple[MethodInfo, ...]:
    info = getattr(module, "INFO", None)
    if not isinstance(info, MethodInfo):
        raise DgbenchError(f"{module.__name__} has no INFO of type MethodInfo")
    return (info, *getattr(module, "VARIANTS", ()))


def find_method(name: str) -> MethodInfo:
    """The method called ``name``, or the class ``package.module:Class`` (which must carry ``info``). Raises DgbenchError with a
    suggestion."""
    if ":" in name:
        info = getattr(_load_target(name, name), "info", None)
        if not isinstance(info, MethodInfo):
            raise DgbenchError(f"method {name}: the class must carry `info`, a dgbench.info.MethodInfo")
        return info
    methods = discover()
    found = methods.get(name)
    if isinstance(found, MethodInfo):
        return found
    if isinstance(found, BrokenMethod):
        raise DgbenchError(f"method {name!r} cannot be loaded: {found.reason}")
    raise DgbenchError(
        f"unknown method {name!r}{suggest(name, [key for key, value in methods.items() if isinstance(value, MethodInfo)])}"
    )


def load_class(info: MethodInfo) -> "type[Method[Any]]":
    """The method's class; this imports torch."""
    cls: type[Method[Any]] = _load_target(info.target, info.name)
    return cls


def _load_target(target: str, name: str) -> Any:
    module_name, _, class_name = target.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a console script does not see modules of the working directory otherwise
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise DgbenchError(f"method {name!r}: expected package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a foreign module may fail in any way; the reason is shown
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DgbenchError(f"method {name}: cannot import {module_name}: {reason}") from error
    if not hasattr(module, class_name):
        raise DgbenchError(f"method {name}: module {module_name} has no class {class_name!r}")
    return getattr(module, class_name)


def card(info: MethodInfo) -> str | None:
    """The text of the method's card (README.md beside its ``__init__.py``), or None where it has none."""
    spec = importlib.util.find_spec(info.target.partition(":")[0].rpartition(".")[0] or info.target.partition(":")[0])
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    path = folder / "README.md" if folder else None
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else None
