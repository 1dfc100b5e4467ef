"""``dgbench cost``."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from dgbench.cli import options
from dgbench.errors import DgbenchError


class ConventionName(StrEnum):
    """How operations are counted."""

    table_vi = "table-vi"
    macs = "macs"
    flops = "flops"


def cost(
    method: Annotated[str, typer.Option("--method", help="Method, or several with commas, or `all`.")],
    settings: options.Set = None,
    convention: Annotated[
        ConventionName,
        typer.Option(
            "--convention",
            help="table-vi: the training network with all heads, counted as in the paper's Table VI; macs, flops: the deployed network.",
        ),
    ] = ConventionName.table_vi,
    protocol: options.Protocol = "pancreas-tumor",
    preset: options.Preset = "paper",
    form: options.Format = options.ListFormat.table,
) -> None:
    """Parameters and operations (1e9) of a method's networks, the sum of its stages, for one crop each. Nothing is trained or read."""
    from dgbench.evaluation.run_cost import method_cost
    from dgbench.info import MethodInfo
    from dgbench.launch.plan import split_overrides
    from dgbench.protocol import load_protocol
    from dgbench.registry import discover, find_method

    contract = load_protocol(protocol)
    preset_overrides, method_overrides = split_overrides(settings or [])
    resolved = contract.resolve(preset, preset_overrides)
    names = method.split(",")
    if names == ["all"]:
        names = [name for name, found in discover().items() if isinstance(found, MethodInfo)]
    if len(names) > 1 and method_overrides:
        raise DgbenchError(f"--set {next(iter(method_overrides))}=…: name one method, settings belong to one")
    n_sources = len(contract.centers) - 1
    rows = []
    for name in names:
        info = find_method(name)
        whole = method_cost(info, info.configure(method_overrides), resolved, n_sources)[convention.value]
        rows.append(
            {
                "method": info.name,
                "params": whole["params"],
                "gflops": round(whole["gflops"], 6),
                "convention": convention.value,
                "stages": whole["stages"],
            }
        )
    if form is options.ListFormat.json:
        typer.echo(json.dumps(rows[0] if len(rows) == 1 else rows, indent=2))
        return
    options.print_rows(
        [
            {
                "method": row["method"],
                "parameters": f"{row['params']:,}",
                "GFLOPs" if convention is not ConventionName.macs else "GMACs": f"{row['gflops']:.2f}",
                **{
                    f"{stage} ({'×'.join(map(str, one['input'][2:]))})": f"{one['gflops']:.2f}"
                    for stage, one in row["stages"].items()
                },
            }
            for row in rows
        ],
        form,
    )
    typer.echo(
        f"\n{contract.name}, preset {preset}, {n_sources} source centers, convention {convention.value}: "
        + (
            "the training network with all heads; a multiply-accumulate is one operation"
            if convention is ConventionName.table_vi
            else "the deployed network; a multiply-accumulate is "
            + ("one operation" if convention is ConventionName.macs else "two operations")
        )
    )
