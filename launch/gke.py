"""A JobSet manifest for Google Kubernetes Engine."""

from typing import Any

from t0x.launch.job import PREEMPTED_EXIT_CODE, Job
from t0x.plan.slices import parse_machines


def make_manifest(
    job: Job,
    topology: str,
    *,
    image: str,
    slices: int = 1,
    spot: bool = False,
    max_restarts: int = 10,
    service_account: str | None = None,
) -> dict[str, Any]:
    """A JobSet with one Kubernetes job per slice, a pod per machine, all of which start and fail
    together.

    Args:
      job: what to run.
      topology: slice, "v5e:16x16".
      image: container image with t0x in it, or a Python image in which it is then installed.
      slices: number of slices; more than one trains over the data-centre network.
      spot: run on spot nodes.
      max_restarts: restarts after failures; a pod that was told to stop does not count.
      service_account: Kubernetes service account that may read and write MODEL_DIR.

    Raises:
      ValueError: the topology is unknown or `slices` is not positive.
    """
    if slices < 1:
        raise ValueError(f"--slices {slices} must be at least 1")
    tpu = parse_machines(topology)
    container = {
        "name": "t5x",
        "image": image,
        "command": ["bash", "-c", _script(job)],
        "env": [{"name": name, "value": value} for name, value in job.environment.items()],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
        "resources": {
            "requests": {"google.com/tpu": tpu.chips_per_host},
            "limits": {"google.com/tpu": tpu.chips_per_host},
        },
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        # Time to write a checkpoint after SIGTERM.
        "terminationGracePeriodSeconds": 60,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": tpu.chip.gke_accelerator,
            "cloud.google.com/gke-tpu-topology": tpu.shape,
            **({"cloud.google.com/gke-spot": "true"} if spot else {}),
        },
        "containers": [container],
    }
    if spot:
        pod["tolerations"] = [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        ]
    if service_account:
        pod["serviceAccountName"] = service_account
    workers = {
        "parallelism": tpu.hosts,
        "completions": tpu.hosts,
        "completionMode": "Indexed",
        # One pod that fails ends the slice's job, and with it the set, which starts again whole.
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"operator": "In", "values": [PREEMPTED_EXIT_CODE]},
                },
                {
                    "action": "FailJob",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
            ]
        },
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": max_restarts,
                "rules": [
                    {
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": slices, "template": {"spec": workers}}
            ],
        },
    }


def _script(job: Job) -> str:
    install = f"pip install --quiet '{job.requirement('tpu')}'"
    return "\n".join(
        [
            "set -euo pipefail",
            f"python -c 'import t5x' 2> /dev/null || {install}",
            *job.setup,
            # exec: SIGTERM must reach Python, not the shell around it.
            f"exec {job.command_line('--multiprocess_gpu')}",
        ]
    )
