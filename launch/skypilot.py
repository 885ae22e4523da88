"""A SkyPilot task, which finds the cheapest cloud that has the machines."""

from typing import Any

from t0x.launch.job import PREEMPTED_EXIT_CODE, Job
from t0x.plan.slices import parse_machines


def make_task(
    job: Job,
    *,
    topology: str | None = None,
    accelerators: str | None = None,
    nodes: int = 1,
    spot: bool = False,
    max_restarts: int = 3,
) -> dict[str, Any]:
    """A SkyPilot task on a TPU slice or on GPU nodes.

    Args:
      job: what to run.
      topology: TPU slice, "v5e:16x16"; or
      accelerators: GPUs of a node, SkyPilot's "H100:8".
      nodes: number of GPU nodes.
      spot: use spot machines; `sky jobs launch` then replaces those that are taken away.
      max_restarts: restarts after the run's own failures.

    Raises:
      ValueError: neither or both of `topology` and `accelerators` are given.
    """
    if (topology is None) == (accelerators is None):
        raise ValueError("give either --topology (TPU) or --accelerators (GPU)")
    resources: dict[str, Any] = {"use_spot": spot}
    if topology is not None:
        tpu = parse_machines(topology)
        resources |= {
            "infra": "gcp",
            "accelerators": f"tpu-{tpu.accelerator_type}:1",
            "accelerator_args": {"tpu_vm": True, "runtime_version": tpu.chip.runtime_version},
        }
        flags = ["--multiprocess_gpu"]
    else:
        resources["accelerators"] = accelerators
        # SkyPilot tells a node its rank and the addresses of all.
        flags = [
            "--multiprocess_gpu",
            '--coordinator_address="$(echo "$SKYPILOT_NODE_IPS" | head -n1):8476"',
            "--process_count=$SKYPILOT_NUM_NODES",
            "--process_index=$SKYPILOT_NODE_RANK",
        ]
    resources["job_recovery"] = {
        "max_restarts_on_errors": max_restarts,
        "recover_on_exit_codes": [PREEMPTED_EXIT_CODE],
    }
    requirement = job.requirement("tpu" if topology else "gpu")
    return {
        "name": job.name,
        "num_nodes": nodes if accelerators else 1,
        "resources": resources,
        **({"envs": dict(job.environment)} if job.environment else {}),
        "setup": "\n".join(
            [
                "set -e",
                "pip install --quiet uv",
                "test -x ~/t0x/bin/python || uv venv --quiet --python 3.12 ~/t0x",
                f"uv pip install --quiet --python ~/t0x/bin/python '{requirement}'",
                "export PATH=~/t0x/bin:$PATH",
                *job.setup,
            ]
        ),
        "run": "\n".join(["export PATH=~/t0x/bin:$PATH", " ".join([job.command_line(), *flags])]),
    }
