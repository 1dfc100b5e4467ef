"""Tables as LaTeX: what stands in them, and that no cell can break them or run anything."""

import re
from pathlib import Path

import pytest
from leaderboard_runs import compiled

from dgbench.cli import call
from dgbench.leaderboard.latex import to_latex
from dgbench.leaderboard.sheets import Sheet
from dgbench.leaderboard.tables import leaderboard_sheets

SHEET = Sheet(
    heading=("One_two", "--seeds 1"),
    columns=("rank", "method", "DSC", "command", "notes"),
    rows=(
        ("1", "erm_balanced", "46.7 ± 0.2", "run --set 'a'", "smoke"),
        ("2", "snr", "-1.5 [-2, 1]", "", "smoke"),
        ("–", "b-1", "", "", ""),
    ),
    footer=("end – of it",),
    numeric=frozenset({"rank", "DSC"}),
    code=frozenset({"command"}),
)
GOLDEN = r"""% needs \usepackage{booktabs} and \usepackage{graphicx}

\begin{table*}[htbp]
\centering
\caption{\textbf{One\_two}; -{}-seeds 1}
\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%
\begin{tabular}{rlrl}
\toprule
rank & method & DSC & command \\
\midrule
1 & erm\_balanced & 46.7 $\pm$ 0.2 & \texttt{run -{}-set \textquotesingle{}a\textquotesingle{}} \\
2 & snr & $-$1.5 {[}$-$2, 1] & \texttt{} \\
-- & b-1 &  & \texttt{} \\
\bottomrule
\end{tabular}}
\par\smallskip{\footnotesize\raggedright erm\_balanced, snr: smoke\par}
\par\smallskip{\footnotesize\raggedright end -- of it\par}
\end{table*}
"""


def test_golden() -> None:
    assert to_latex([SHEET]) == GOLDEN


@pytest.mark.parametrize(
    "hostile", [r"\input{/etc/passwd}", "a}b{c", "x % y & z # $1 ^ ~ _", "[2pt]", "*", "<|>`", "line\nend\x1b[31m"]
)
def test_no_cell_is_more_than_text(hostile: str) -> None:
    plain = to_latex([Sheet(heading=("x",), columns=("a", "b"), rows=(("1", "x"),), footer=("x",))])
    made = to_latex([Sheet(heading=(hostile,), columns=("a", "b"), rows=((hostile, hostile),), footer=(hostile,))])
    assert len(made.splitlines()) == len(plain.splitlines())
    ours = {*re.findall(r"\\[a-zA-Z]+", plain), r"\textbackslash", r"\textasciicircum", r"\textasciitilde"}
    ours |= {r"\textless", r"\textgreater", r"\textbar", r"\textasciigrave"}
    assert set(re.findall(r"\\[a-zA-Z]+", made)) <= ours
    bare = re.sub(r"\\[{}$&#%_]", "", made)
    assert bare.count("{") == bare.count("}")
    for char in "%&$#":
        assert bare.count(char) == re.sub(r"\\[{}$&#%_]", "", plain).count(char)
    (row,) = (line for line in bare.splitlines() if line.endswith(r" \\") and not line.startswith("a & b"))
    assert not row.startswith(("[", "*"))


def test_the_leaderboard_says_in_captions_what_it_is_of(two_seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheets = leaderboard_sheets(compiled(two_seeds))
    made = to_latex(sheets)
    assert made.count(r"\begin{table*}") == made.count(r"\end{table*}") == len(sheets)
    caption = next(line for line in made.splitlines() if line.startswith(r"\caption"))
    assert caption.startswith(r"\caption{\textbf{PHANTOM DATA --- not patient data}; Leaderboard")
    for line in ("threshold 0.5", "policy default", "seeds 0, 1", "Official ranking"):
        assert line in caption
    assert call(["leaderboard", "--runs", str(two_seeds), "--format", "latex"]) == 0
    assert capsys.readouterr().out.strip() == made.strip()


def test_tables_of_the_paper_are_printed_too(two_seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["leaderboard", "--runs", str(two_seeds), "--table", "VI"]
    assert call([*arguments, "--format", "latex"]) == 0
    assert "Counterpart of Table VI" in capsys.readouterr().out
