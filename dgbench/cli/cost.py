"""``dgbench cost``."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgbench.cli import options
from dgbench.errors import DgbenchError, NotApplicable

if TYPE_CHECKING:
    from dgbench.info import MethodInfo
    from dgbench.protocol import Protocol, ResolvedProtocol


REPEATS = 20


class ConventionName(StrEnum):
    """How operations are counted."""

    table_vi = "table-vi"
    macs = "macs"
    flops = "flops"


def cost(
    method: Annotated[str, typer.Option("--method", help="Method, or several with commas, or `all`.")],
    settings: options.Set = None,
    convention: Annotated[
        ConventionName | None,
        typer.Option(
            "--convention",
            help="table-vi (default): the training network with all heads, counted as in the paper's Table VI; macs, flops: the deployed "
            "network.",
        ),
    ] = None,
    protocol: options.Protocol = "pancreas-tumor",
    preset: options.Preset = "paper",
    time: Annotated[
        bool,
        typer.Option(
            "--time",
            help="Measure instead: a training step (in memory, and with the loader), a prediction of a crop and of a case, each by the "
            "method's own stages, peak memory, on this idle machine.",
        ),
    ] = False,
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=1, help=f"Measurements of each, with --time; default: {REPEATS}.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="With --time: folder with one folder per center, whose cases to predict; default: the phantom of the preset, or none.",
        ),
    ] = None,
    device: options.Device = None,
    threads: options.Threads = None,
    cache: options.Cache = options.DEFAULT_CACHE,
    form: options.Format = options.ListFormat.table,
) -> None:
    """Parameters and operations (1e9) of a method's networks, the sum of its stages, for one crop each. Nothing is trained or read; with
    --time, steps on random crops are."""
    from dgbench.cli.sweep import methods_of
    from dgbench.evaluation.run_cost import method_cost
    from dgbench.launch.machine import this_machine
    from dgbench.launch.settings import split_overrides
    from dgbench.launch.timing import time_methods, timed_cases
    from dgbench.protocol import load_protocol
    from dgbench.registry import find_method

    if time and convention is not None:
        raise DgbenchError(f"--convention {convention}: counts operations, --time measures — leave one out")
    if repeats is not None and not time:
        raise DgbenchError(f"--repeats {repeats}: of measurements — add --time")
    if data is not None and not time:
        raise DgbenchError(f"--data {data}: cases to time inference on — add --time")
    convention = convention or ConventionName.table_vi
    contract = load_protocol(protocol)
    preset_overrides, method_overrides = split_overrides(settings or [])
    resolved = contract.resolve(preset, preset_overrides)
    infos = [find_method(name) for name in methods_of(method)]
    if len(infos) > 1 and method_overrides:
        raise DgbenchError(f"--set {next(iter(method_overrides))}=…: name one method, settings belong to one")
    n_sources = contract.n_sources
    infos = _possible(infos, contract)
    if time:
        chosen = {info.name: (info, info.configure(method_overrides)) for info in infos}
        machine = this_machine(resolved.preset.precision, device=device, threads=threads, devices=1)
        cache = cache.expanduser()
        cases = timed_cases(resolved, data, cache)
        measured = time_methods(chosen, resolved, n_sources, machine, repeats or REPEATS, cases, cache)
        _print_times(measured, resolved, form)
        return
    rows = []
    for info in infos:
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


def _possible(infos: "list[MethodInfo]", protocol: "Protocol") -> "list[MethodInfo]":
    """The methods that can be run under ``protocol``; the others are told as n/a, with the reason. Raises DgbenchError where none can."""
    where, possible, reasons = f"protocol {protocol.name}", [], []
    for info in infos:
        try:
            info.check_dims(protocol.task.ndim, where)
            info.check_sources(protocol.n_sources, where)
        except NotApplicable as error:
            reasons.append(f"n/a: {error}")
        else:
            possible.append(info)
    if not possible:
        raise DgbenchError(reasons[0])
    for reason in reasons:
        typer.echo(reason, err=True)
    return possible


def _print_times(measured: dict[str, Any], resolved: "ResolvedProtocol", form: options.ListFormat) -> None:
    from dgbench.launch.timing import BUSY

    busy = f"{measured['busy_cores']:.1f} cores were in use before the measurement"
    if measured["busy_cores"] >= BUSY:
        typer.echo(f"warning: {busy}: these times are those of a busy machine", err=True)
    if form is options.ListFormat.json:
        typer.echo(json.dumps(measured, indent=2))
        return
    first = measured["methods"][0]
    options.print_rows(
        [
            {
                "method": row["method"],
                **{f"{name} step, ms": _quartiles(stage["training_step"]) for name, stage in row["stages"].items()},
                f"× {first['method']}": f"{row['step_ms']['median'] / first['step_ms']['median']:.2f}",
                **{f"{name} with loader, ms": _quartiles(one["loaded_step"]) for name, one in row["stages"].items()},
                "prediction, ms": _quartiles(row["prediction_ms"]),
                **({"case, s": _quartiles(row["case_ms"], 1000, 2)} if row["case_ms"] else {}),
                "peak memory, MiB": f"{row['peak_mib']:.0f}",
            }
            for row in measured["methods"]
        ],
        form,
    )
    where = ", ".join(f"{name} {value}" for name, value in measured["machine"].items() if value is not None)
    flips = f"{2**resolved.protocol.task.ndim} flips" if resolved.preset.tta else "no flips"
    cases = (
        f"case: the method's own stages on a case ({', '.join(measured['cases'])} in turns, so that the quartiles are the spread of "
        "cases), each in the ROI around the reference, as an untrained network finds none; without shared stages, masks and resampling to "
        "the scan"
        if measured["cases"]
        else "seconds per case need cases: --data DIR"
    )
    unseen = "; the GPU was not checked for other jobs" if measured["machine"]["driver"] is not None else ""
    typer.echo(
        f"\n{resolved.protocol.name}, preset {resolved.preset_name}: medians of {first['step_ms']['n']}, methods in turns (quartiles in "
        f"brackets), on random crops in memory; × of the sum of the steps; with loader: consecutive steps on crops that the loader cuts "
        f"from random volumes and augments ({_workers(resolved.preset.workers)}), each method by itself; prediction: one crop of each "
        f"stage, {flips}; {cases}; peak memory of training steps above the built method, the larger of the stages\n{where}; {busy}{unseen}"
    )


def _workers(number: int) -> str:
    return "in this process" if number == 0 else "1 worker" if number == 1 else f"{number} workers"


def _quartiles(values: dict[str, float], unit: int = 1, digits: int = 0) -> str:
    """Median and quartiles in ``unit`` milliseconds."""
    median, q25, q75 = (f"{values[name] / unit:.{digits}f}" for name in ("median", "q25", "q75"))
    return f"{median} [{q25}, {q75}]"
