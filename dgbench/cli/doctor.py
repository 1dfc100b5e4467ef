"""``dgbench doctor``: every resolved path and version, and what would stop a run."""

import shutil

import typer

from dgbench import __version__
from dgbench.cli import options


def doctor(runs: options.Runs = options.DEFAULT_RUNS, cache: options.Cache = options.DEFAULT_CACHE) -> None:
    """Show versions, devices and paths, and whether the folders can be written; exit code 2 if something would stop a run."""
    import torch

    from dgbench.errors import DgbenchError
    from dgbench.launch.environment import environment
    from dgbench.protocol import protocol_folder
    from dgbench.registry import BrokenMethod, discover
    from dgbench.store.folder import probe_writable

    found = environment()
    rows = [{"what": "dgbench", "value": __version__}, {"what": "python", "value": found["python"]}]
    rows += [{"what": name, "value": text} for name, text in found["packages"].items()]
    rows.append(
        {"what": "processor", "value": f"{found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB"}
    )
    bf16 = {True: "yes", False: "no — products are computed in fp32 and rounded", None: "unknown"}
    rows.append({"what": "bf16 instructions", "value": bf16[found["bf16_instructions"]]})
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    rows.append({"what": "GPU", "value": ", ".join(devices) or "none (runs use the CPU)"})
    rows.append({"what": "CUDA of torch", "value": torch.version.cuda or "none"})
    rows.append({"what": "protocols", "value": str(protocol_folder())})
    problems = []
    for name, folder in (("runs", runs), ("cache", options.cache_folder(cache))):
        try:
            probe_writable(folder)
            free = shutil.disk_usage(folder).free / 2**30
            rows.append({"what": name, "value": f"{folder.absolute()} ({free:.0f} GiB free)"})
        except DgbenchError as error:
            problems.append(str(error))
            rows.append({"what": name, "value": f"{folder.absolute()} — cannot be written"})
    methods = discover()
    broken = [entry for entry in methods.values() if isinstance(entry, BrokenMethod)]
    rows.append({"what": "methods", "value": f"{len(methods) - len(broken)} found, {len(broken)} broken"})
    problems += [f"method {entry.name}: {entry.reason}" for entry in broken]
    options.print_rows(rows, options.ListFormat.table)
    for problem in problems:
        typer.echo(f"problem: {problem}")
    if problems:
        raise typer.Exit(2)
