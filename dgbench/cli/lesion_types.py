"""What grows in the cases of a table, for figures: only the phantom's recipe tells."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgbench.leaderboard.figures.board import Board
    from dgbench.protocol import Protocol


def lesion_types(protocol: "Protocol", board: "Board") -> Callable[[str], str]:
    """What grows in a case: from the recipe where every run is of the preset's own phantom, else unknown."""
    from dgbench.data.phantom import fingerprint, lesion_type
    from dgbench.launch.plan import phantom_recipe

    preset = protocol.presets.get(board.table.preset)
    size = None if preset is None else preset.phantom
    if size is None:
        return lambda _: "unknown"
    recipe = phantom_recipe(size)
    identity = fingerprint(recipe)
    if any(cell.run.spec.data.centers.get("phantom") != identity for cell in board.cells):
        return lambda _: "unknown"
    return lambda case: lesion_type(recipe, case) or "unknown"
