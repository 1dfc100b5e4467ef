"""Plugins on disk, for ``dgbench methods new`` and ``dgbench methods check``: writing one, and finding one by its path."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dgbench.atomic import write_text
from dgbench.errors import DgbenchError
from dgbench.frozen import check_name

if TYPE_CHECKING:
    from dgbench.info import MethodInfo

_INIT = '''"""{title}: what it says about itself; imports no torch."""

from pydantic import Field

from dgbench.info import MethodConfig, MethodInfo, Range


class {cls}Config(MethodConfig):
    """Settings: `--set strength=0.3`."""

    strength: float = Field(0.5, ge=0, description="largest change of log gamma; 0 is erm")
    space = {{"strength": Range(low=0.1, high=1.0)}}


INFO = MethodInfo(
    name="{name}",
    target="{package}.method:{cls}",
    title="{title}",
    paper="unpublished",
    year={year},
    config={cls}Config,
)
'''

_METHOD = '''"""{title}: a random gamma curve for every case and step, to be replaced by your own idea."""

import torch

from dgbench.method import Batch, Method, StepContext
from {package} import INFO, {cls}Config


class {cls}(Method[{cls}Config]):
    """See the card."""

    info = INFO

    def augment(self, batch: Batch, ctx: StepContext) -> Batch:
        image = batch.image.clamp(0, 1)
        draw = torch.rand(len(image), generator=ctx.generator("gamma"), device=image.device)
        gamma = torch.exp(self.config.strength * (2 * draw - 1))
        return batch.with_image(image ** gamma.view(-1, *[1] * (image.ndim - 1)))
'''

_CARD = """# {name}

{title}: one sentence on what it does and why it should help at an unseen center.

| | |
|---|---|
| source | authors, *title*, venue and year |
| needs | nothing; any number of sources, 2D and 3D |
| forward passes per step | 1 per case |
| added at inference | nothing |

## What is computed
`x' = x ^ exp(s · u)`, u uniform in [-1, 1], drawn for each case and step.

## Configuration
| key | default | meaning |
|---|---|---|
| `strength` | 0.5 | largest change s of log gamma; 0 is `erm` |

## Choices
What the paper leaves open, what was chosen, and what the released code does differently.
"""


def write_plugin(name: str, folder: Path, year: int) -> tuple[Path, str]:
    """A plugin ``name`` below ``folder`` that runs as it is; its folder, and how ``--method`` takes it.

    Raises DgbenchError for a name that is no Python name or is taken, or a folder that exists.
    """
    from dgbench.registry import discover

    check_name(name, "method name")
    if not name.isidentifier():
        raise DgbenchError(f"method name {name!r}: must be a Python name, such as random_gamma")
    if name in discover():
        raise DgbenchError(f"method name {name!r} is taken — `dgbench methods show {name}`")
    target = folder / name
    if target.exists():
        raise DgbenchError(f"{target} exists — choose another name, or remove it")
    package = ".".join([*_packages_above(folder), name])
    words = {
        "name": name,
        "cls": "".join(part.capitalize() for part in name.split("_")),
        "title": name.replace("_", " ").capitalize(),
        "package": package,
        "year": year,
    }
    for file, text in (("__init__.py", _INIT), ("method.py", _METHOD), ("README.md", _CARD)):
        write_text(target / file, text.format(**words))
    return target, name if package.startswith("dgbench_methods.") else f"{package}.method:{words['cls']}"


def find_plugin(target: str) -> "MethodInfo":
    """The entry of a method by name, by ``package.module:Class``, or by the path of a plugin's folder or single file."""
    from dgbench.info import MethodInfo
    from dgbench.registry import find_method

    path = Path(target)
    if not (path.exists() and (len(path.parts) > 1 or path.suffix == ".py" or (path / "__init__.py").exists())):
        return find_method(target)
    file = path / "__init__.py" if path.is_dir() else path
    if file.suffix != ".py" or not file.is_file():
        raise DgbenchError(f"{target}: neither a Python file nor a folder with __init__.py")
    file = file.absolute()
    above = _packages_above(file.parent)
    names = above if path.is_dir() else [*above, file.stem]
    sys.path.insert(0, str(file.parents[len(above)] if above else file.parent))
    try:
        module = import_module(".".join(names))
    except Exception as error:  # a plugin may fail in any way; the reason is shown
        raise DgbenchError(f"{target}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    candidates = [getattr(module, "INFO", None), *(getattr(value, "info", None) for value in own)]
    infos = [info for info in candidates if isinstance(info, MethodInfo)]
    if not infos:
        raise DgbenchError(f"{target}: neither INFO nor a class with `info`, a dgbench.info.MethodInfo")
    return infos[0]


def _packages_above(folder: Path) -> list[str]:
    """Names of the packages that ``folder`` is or lies in, outermost first."""
    names: list[str] = []
    folder = folder.absolute()
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    return names
