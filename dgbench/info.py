"""What a method says about itself without importing torch: its name, where its class is, and its configuration.

A plugin's ``__init__.py`` holds ``INFO = MethodInfo(...)`` (and ``VARIANTS`` for named configurations of the same class) and its
:class:`MethodConfig`; keys, ``--dry-run``, ``plan`` and ``methods show`` need nothing more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dgbench.errors import DgbenchError, NotApplicable, suggest
from dgbench.frozen import check_name, one_line
from dgbench.yaml_text import parse_value

Need = Literal["domain-batch", "donor", "pretrained", "external"]


@dataclass(frozen=True, kw_only=True)
class Range:
    """A search range of one configuration key, for tuning on source validation."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"


class MethodConfig(BaseModel):
    """Base of every method's configuration: immutable, validated, an unknown key is an error. ``space`` declares what tuning may search:
    a :class:`Range` or a tuple of choices per key."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {}


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """A method's entry in the registry.

    ``target`` is ``package.module:Class``. ``version`` is raised when the method's numbers change: it enters the key. ``defaults`` replaces
    defaults of ``config`` (ablations are configurations of one class). ``min_sources`` and ``dims`` make an unsupported cell "n/a".
    ``draws_factor`` multiplies the budget and is for labelled control rows only (``erm_long``). ``one_device`` says in one line why a step
    cannot be split over devices, where it cannot. ``space`` is what tuning may search instead of what ``config`` declares, for a variant
    that fixes some of it.
    """

    name: str
    target: str
    title: str
    paper: str
    year: int
    config: type[MethodConfig] = MethodConfig
    version: int = 1
    defaults: Mapping[str, Any] = field(default_factory=dict)
    needs: frozenset[Need] = frozenset()
    min_sources: int = 1
    draws_factor: int = 1
    dims: frozenset[int] = frozenset({2, 3})
    one_device: str | None = None
    space: Mapping[str, Range | tuple[Any, ...]] | None = None

    @property
    def searched(self) -> Mapping[str, Range | tuple[Any, ...]]:
        """The configuration keys that tuning may search, each with its range or choices."""
        return self.config.space if self.space is None else self.space

    def __post_init__(self) -> None:
        check_name(self.name, "method name")
        if self.target.count(":") != 1:
            raise DgbenchError(f"method {self.name}: target {self.target!r} must read package.module:Class")

    def check_dims(self, ndim: int, where: str) -> None:
        """Raise NotApplicable where the method does not work in ``ndim`` dimensions, those of what is ``where``."""
        if ndim not in self.dims:
            works = " or ".join(f"{one}D" for one in sorted(self.dims))
            raise NotApplicable(f"method {self.name} works in {works}, {where} is {ndim}D")

    def check_sources(self, n_sources: int, where: str) -> None:
        """Raise NotApplicable where the method needs more than the ``n_sources`` centers that there are ``where``."""
        if n_sources < self.min_sources:
            raise NotApplicable(
                f"method {self.name} needs at least {self.min_sources} source centers, with {where} there are {n_sources}"
            )

    def configure(self, overrides: Mapping[str, str] | None = None) -> MethodConfig:
        """The configuration with ``overrides`` (texts from the command line) applied; DgbenchError for an unknown key or unfit value."""
        overrides = overrides or {}
        known = self.config.model_fields
        for key in overrides:
            if key not in known:
                raise DgbenchError(f"--set {key}: method {self.name!r} has no such key{suggest(key, known)}")
        try:
            return self.config.model_validate(
                {**self.defaults, **{key: parse_value(text) for key, text in overrides.items()}}
            )
        except ValidationError as error:
            raise DgbenchError(f"method {self.name!r}: {one_line(error)}") from None
