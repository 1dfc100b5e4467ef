"""The phantom behind a protocol: drawn once per recipe into the cache, by whoever comes first."""

from dgbench.launch.plan import RunRequest, data_folder, phantom_recipe, resolve_request
from dgbench.launch.progress import progress
from dgbench.store.lock import FolderLock


def ensure_data(request: RunRequest) -> None:
    """Draw the phantom that ``request`` needs, unless the cache has it or the request brings data of its own."""
    resolved, _, _ = resolve_request(request)
    folder, identity = data_folder(request, resolved)
    if identity is None or (folder / "phantom.json").is_file() or resolved.preset.phantom is None:
        return
    from dgbench.data.phantom import CENTERS, write_phantom

    recipe = phantom_recipe(resolved.preset.phantom)
    total, done = resolved.preset.phantom.cases * len(CENTERS), 0
    with FolderLock(folder.parent, wait=float("inf")), progress("drawing the phantom") as report:

        def on_case(center: str, _index: int) -> None:
            nonlocal done
            done += 1
            report(done, total, center)

        write_phantom(recipe, folder, on_case=on_case)
