"""The request that made a run, kept in its folder, so that any process can plan the run again and do a job of it."""

from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from dgbench.atomic import read_json, write_json
from dgbench.errors import DgbenchError
from dgbench.frozen import one_line
from dgbench.launch.plan import RunRequest

REQUEST = "request.json"
"""In a run folder: the request that made it. It names folders of this machine, so records leave it out."""


def write_request(folder: Path, request: RunRequest) -> None:
    """Keep ``request`` in a run folder, with absolute paths and without the runs folder, which is where the file lies."""
    protocol = Path(request.protocol)
    absolute = replace(
        request,
        protocol=str(protocol.absolute()) if protocol.suffix in (".yaml", ".yml") else request.protocol,
        data=None if request.data is None else request.data.absolute(),
        config=None if request.config is None else request.config.absolute(),
        cache=request.cache.absolute(),
    )
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(absolute).items()}
    del values["runs"]
    write_json(folder / REQUEST, values)


def read_request(runs: Path, folder: Path) -> RunRequest:
    """The request that made the run in ``folder``. Raises DgbenchError where the file is missing or damaged."""
    path = folder / REQUEST
    if not path.is_file():
        raise DgbenchError(f"{path}: no such file — start the run with `dgbench run` or `dgbench sweep`")
    try:
        return TypeAdapter(RunRequest).validate_python({**read_json(path), "runs": runs})
    except ValidationError as error:
        raise DgbenchError(f"{path}: {one_line(error)} — start the run again with `dgbench run`") from None
