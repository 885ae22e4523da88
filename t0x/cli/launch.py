"""`t0x launch`: takes a run to TPU VMs, GKE, SLURM, SkyPilot or processes of this machine."""

import enum
import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from t0x.cli import shared

if TYPE_CHECKING:
    from t0x.launch.job import Job

app = typer.Typer(
    help="Run train, eval or infer on a TPU slice, a cluster, or in several local processes.",
    no_args_is_help=True,
)

Topology = Annotated[str, typer.Option("--topology", help="TPU slice, as v5e:16x16.")]
DryRun = Annotated[bool, typer.Option("--dry_run", help="Print what would run; run nothing.")]
Spot = Annotated[bool, typer.Option("--spot", help="Machines that may be taken away, cheaper.")]
Out = Annotated[Path | None, typer.Option("--out", help="File to write; named after the job.")]


class TpuAction(enum.StrEnum):
    """What to do with a TPU VM."""

    START = "start"
    WATCH = "watch"
    TAIL = "tail"
    STOP = "stop"


def _read_job(
    job: Annotated[
        Path | None, typer.Option("--job", help="YAML file of the options below.", exists=True)
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the machines or jobs.")] = None,
    gin_file: Annotated[str | None, typer.Option("--gin_file", help="Run configuration.")] = None,
    model_dir: Annotated[
        str | None, typer.Option("--model_dir", help="Output, gs://… or shared.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="train (default), eval, infer.")
    ] = None,
    gin_bindings: shared.GinBindings = None,
    package: Annotated[
        str | None, typer.Option("--package", help="What pip installs: t0x, a wheel.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE, for the run.")] = None,
    setup: Annotated[
        list[str] | None, typer.Option("--setup", help="Shell command to run before.")
    ] = None,
) -> "Job":
    from t0x.launch.job import read_job

    pairs = [item.partition("=") for item in env or ()]
    for item_name, separator, _ in pairs:
        if not separator:
            raise ValueError(f"--env {item_name} must be NAME=VALUE")
    return read_job(
        job,
        {
            "name": name,
            "gin_file": gin_file,
            "model_dir": model_dir,
            "mode": mode,
            "bindings": gin_bindings,
            "package": package,
            "environment": {key: value for key, _, value in pairs},
            "setup": setup,
        },
    )


def _with_job(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the options of `_read_job`, but for some, to a command.

    The command's parameter `describe` returns the job when called, or raises what is wrong with it;
    its keywords are the options as given.
    """
    shared = inspect.signature(_read_job).parameters.values()
    options = [parameter for parameter in shared if parameter.name not in without]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters.values()
        parameters = [parameter for parameter in own if parameter.name != "describe"]
        parameters += [option.replace(kind=option.KEYWORD_ONLY) for option in options]

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            described = {option.name: arguments.pop(option.name) for option in options}
            command(describe=functools.partial(_read_job, **described), **arguments)

        run.__signature__ = inspect.Signature(parameters)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return add


def _submit(text: str, out: Path | None, default: str, tool: list[str], dry_run: bool) -> None:
    """Writes a file and hands it to the tool that runs it; prints both in a dry run."""
    from t0x.launch.commands import CommandRunner
    from t5x.run.files import write_whole

    path = out or Path(default)
    if dry_run:
        print(text, end="" if text.endswith("\n") else "\n")
    else:
        write_whole(path, text)
    CommandRunner(dry_run).run([*tool, str(path)])


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def local(
    context: typer.Context,
    processes: Annotated[int, typer.Option("--processes", help="Number of processes.")] = 2,
    devices_per_process: Annotated[
        int, typer.Option("--devices_per_process", help="CPU devices of each process.")
    ] = 1,
    gpus: Annotated[
        bool, typer.Option("--gpus", help="One GPU a process, no CPU devices.")
    ] = False,
    mode: Annotated[str, typer.Option("--mode", help="train, eval or infer.")] = "train",
    log_dir: Annotated[
        Path | None, typer.Option("--log_dir", help="Where processes 1, 2, … write.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Run `python -m t5x.MODE` in several processes that train together.

    All other options go to t5x: --gin_file, --gin.NAME=VALUE, …
    """
    from t0x.launch.local import LocalProcesses

    run = LocalProcesses(processes, None if gpus else devices_per_process, log_dir=log_dir)
    sys.exit(run.run(mode, context.args, dry_run=dry_run))


@app.command(cls=shared.GinCommand)
@_with_job()
def tpu(
    describe: functools.partial,
    zone: Annotated[str, typer.Option("--zone", help="Google Cloud zone.")],
    action: Annotated[TpuAction, typer.Argument(help="start, watch, tail or stop.")] = (
        TpuAction.START
    ),
    topology: Topology = "v5e:16x16",
    project: Annotated[str | None, typer.Option("--project", help="Google Cloud project.")] = None,
    spot: Spot = False,
    queued: Annotated[bool, typer.Option("--queued/--direct", help="Wait for machines.")] = True,
    dry_run: DryRun = False,
) -> None:
    """Create a TPU slice, install t0x on it and run there, by gcloud.

    start creates, installs and runs; watch does that and then replaces machines that are taken
    away until the run ends; tail follows its output; stop deletes the machines.
    """
    from t0x.launch.commands import CommandRunner
    from t0x.launch.tpu import TpuVm

    runner = CommandRunner(dry_run)
    if action in (TpuAction.TAIL, TpuAction.STOP):
        name = describe.keywords["name"]
        if name is None:
            raise ValueError("--name is missing: which machines?")
        machines = TpuVm(name, topology, zone, project, spot, queued, runner=runner)
        machines.tail() if action is TpuAction.TAIL else machines.stop()
        return
    run = describe()
    machines = TpuVm(run.name, topology, zone, project, spot, queued, runner=runner)
    machines.launch(run)
    if action is TpuAction.WATCH:
        machines.watch(run)


@app.command(cls=shared.GinCommand)
@_with_job()
def gke(
    describe: functools.partial,
    image: Annotated[str, typer.Option("--image", help="Container image.")] = "python:3.12",
    topology: Topology = "v5e:16x16",
    slices: Annotated[int, typer.Option("--slices", help="Number of slices.")] = 1,
    spot: Spot = False,
    max_restarts: Annotated[int, typer.Option("--max_restarts", help="After failures.")] = 10,
    service_account: Annotated[
        str | None, typer.Option("--service_account", help="Kubernetes service account.")
    ] = None,
    out: Out = None,
    dry_run: DryRun = False,
) -> None:
    """Run on Google Kubernetes Engine as a JobSet, through kubectl."""
    from t0x.launch.documents import write_yaml
    from t0x.launch.gke import make_manifest

    run = describe()
    manifest = make_manifest(
        run,
        topology,
        image=image,
        slices=slices,
        spot=spot,
        max_restarts=max_restarts,
        service_account=service_account,
    )
    tool = ["kubectl", "apply", "-f"]
    _submit(write_yaml(manifest), out, f"{run.name}.yaml", tool, dry_run)


@app.command(cls=shared.GinCommand)
@_with_job("package")
def slurm(
    describe: functools.partial,
    nodes: Annotated[int, typer.Option("--nodes", help="Number of nodes.")] = 1,
    gpus_per_node: Annotated[int, typer.Option("--gpus_per_node", help="GPUs of a node.")] = 8,
    cpus_per_task: Annotated[int, typer.Option("--cpus_per_task", help="Cores a process.")] = 8,
    time: Annotated[str, typer.Option("--time", help="Time limit, as sbatch takes it.")] = (
        "24:00:00"
    ),
    partition: Annotated[str | None, typer.Option("--partition")] = None,
    account: Annotated[str | None, typer.Option("--account")] = None,
    out: Out = None,
    dry_run: DryRun = False,
) -> None:
    """Run on GPU nodes of a SLURM cluster, where t0x is installed already, through sbatch."""
    from t0x.launch.slurm import make_script

    run = describe()
    script = make_script(
        run,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_task=cpus_per_task,
        time=time,
        partition=partition,
        account=account,
    )
    _submit(script, out, f"{run.name}.sh", ["sbatch"], dry_run)


@app.command(cls=shared.GinCommand)
@_with_job()
def skypilot(
    describe: functools.partial,
    topology: Annotated[str | None, typer.Option("--topology", help="TPU slice.")] = None,
    accelerators: Annotated[
        str | None, typer.Option("--accelerators", help="GPUs of a node, as H100:8.")
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", help="Number of GPU nodes.")] = 1,
    spot: Spot = False,
    out: Out = None,
    dry_run: DryRun = False,
) -> None:
    """Run on a TPU slice or GPU nodes wherever SkyPilot finds them cheapest."""
    from t0x.launch.documents import write_yaml
    from t0x.launch.skypilot import make_task

    run = describe()
    task = make_task(
        run,
        topology=topology,
        accelerators=accelerators,
        nodes=nodes,
        spot=spot,
    )
    _submit(write_yaml(task), out, f"{run.name}.yaml", ["sky", "jobs", "launch"], dry_run)
