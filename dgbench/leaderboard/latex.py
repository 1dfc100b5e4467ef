"""Sheets as LaTeX for a paper: one ``table*`` each, for ``\\input``; what the numbers are of stands in the caption, never in a comment."""

import re
from collections.abc import Iterable, Sequence

from dgbench.leaderboard.sheets import Sheet, beside_notes, printable

PREAMBLE = r"% needs \usepackage{booktabs} and \usepackage{graphicx}"
QUOTE = r"\textquotesingle{}"
BETWEEN = "\0"
ESCAPES = {
    BETWEEN: "{}",
    "\\": r"\textbackslash{}",
    **{char: f"\\{char}" for char in "{}$&#%_"},
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",
    "*": "{*}",
    "—": "---",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "√": r"$\surd$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "…": r"\dots{}",
    "τ": r"$\tau$",
    "μ": r"$\mu$",
    "§": r"\S{}",
    **{char: f"$^{{{plain}}}$" for char, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ", "0123456789n", strict=True)},
}
"""``[`` and ``*`` would be arguments of the ``\\\\`` before them. Letters of other scripts stay as they are, for XeLaTeX and LuaLaTeX."""


def to_latex(sheets: Iterable[Sheet]) -> str:
    """The sheets as LaTeX; every cell is escaped, notes stand below their table."""
    return "\n\n".join([PREAMBLE, *map(_table, sheets)]) + "\n"


def _table(sheet: Sheet) -> str:
    first, *others = map(_escaped, sheet.heading)
    below = list(sheet.footer)
    lines = [
        r"\begin{table*}[htbp]",
        r"\centering",
        f"\\caption{{\\textbf{{{first}}}{''.join(f'; {o}' for o in others)}}}",
    ]
    if sheet.columns:
        shown, notes = beside_notes(sheet)
        below = [*notes, *below]
        kinds = "".join("r" if sheet.columns[position] in sheet.numeric else "l" for position in shown)
        lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%", f"\\begin{{tabular}}{{{kinds}}}"]
        lines += [r"\toprule", _line(_escaped(sheet.columns[position]) for position in shown), r"\midrule"]
        lines += [_line(_cell(sheet, row, position) for position in shown) for row in sheet.rows]
        lines += [r"\bottomrule", r"\end{tabular}}"]
    lines += [f"\\par\\smallskip{{\\footnotesize\\raggedright {_escaped(line)}\\par}}" for line in below]
    return "\n".join([*lines, r"\end{table*}"])


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(sheet: Sheet, row: Sequence[str], position: int) -> str:
    """Commands keep their straight quotes; numbers get the sign of a minus."""
    column, text = sheet.columns[position], row[position]
    if column in sheet.code:
        return f"\\texttt{{{_escaped(text).replace(chr(39), QUOTE)}}}"
    return _escaped(re.sub(r"(?<![\w.])-(?=\d)", "−", text) if column in sheet.numeric else text)


def _escaped(text: str) -> str:
    """Two hyphens stay two: between them stands what is printable nowhere else."""
    apart = re.sub("-(?=-)", f"-{BETWEEN}", printable(text))
    return "".join(ESCAPES.get(char, char) for char in apart)
