"""The phantom behind a protocol: drawn once per recipe into the cache, by whoever comes first."""

from pathlib import Path
from typing import Any

from dgbench.launch.plan import RunRequest, data_folder, phantom_recipe, resolve_request
from dgbench.launch.progress import progress
from dgbench.store.lock import FolderLock


def ensure_data(request: RunRequest) -> None:
    """Draw the phantom that ``request`` needs, unless the cache has it or the request brings data of its own."""
    resolved, _, _ = resolve_request(request)
    folder, identity = data_folder(request.data, request.cache, resolved)
    if identity is not None and resolved.preset.phantom is not None:
        draw_once(phantom_recipe(resolved.preset.phantom), folder)


def is_drawn(request: RunRequest) -> bool:
    """Whether the phantom that ``request`` needs is in the cache; true for a request that brings data of its own."""
    resolved, _, _ = resolve_request(request)
    folder, identity = data_folder(request.data, request.cache, resolved)
    return identity is None or (folder / "phantom.json").is_file()


def draw_once(recipe: Any, folder: Path) -> None:
    """Draw the phantom of ``recipe`` (:class:`dgbench.data.phantom.PhantomRecipe`) into ``folder`` unless it is there; a second process
    waits."""
    if (folder / "phantom.json").is_file():
        return
    from dgbench.data.phantom import write_phantom

    total, done = sum(recipe.counts().values()), 0
    with FolderLock(folder.parent, wait=float("inf")), progress("drawing the phantom") as report:

        def on_case(center: str, _index: int) -> None:
            nonlocal done
            done += 1
            report(done, total, center)

        write_phantom(recipe, folder, on_case=on_case)
