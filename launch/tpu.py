"""TPU VMs through gcloud: create, install, run on every worker, follow, restart, stop."""

import dataclasses
import shlex
import time

from t0x.launch.commands import CommandRunner
from t0x.launch.job import PREEMPTED_EXIT_CODE, Job
from t0x.plan.slices import Slice, parse_machines

_POLL_SECONDS = 60.0
_GONE = ("PREEMPTED", "TERMINATED", "STOPPED", "SUSPENDED", "SUSPENDING", "FAILED")
# What the workers' runtime images bring is Python 3.10; uv fetches one that t0x accepts.
_INSTALL = """\
set -euo pipefail
python3 -m pip install --quiet --user uv
test -x ~/t0x/bin/python || ~/.local/bin/uv venv --quiet --python 3.12 ~/t0x
~/.local/bin/uv pip install --quiet --python ~/t0x/bin/python {requirement}
export PATH=~/t0x/bin:$PATH
{setup}
"""
# A worker starts again what was told to stop (exit code {preempted}) and, some times, what failed:
# when one machine's process dies the others' end too, and all of them meet again.
_RUN = """\
cat > ~/t0x.sh <<'END_OF_T0X'
export PATH=~/t0x/bin:$PATH
{exports}
rm -f ~/t0x.status
failures=0
while true; do
  {command}
  code=$?
  if [ $code -eq 0 ]; then break; fi
  if [ $code -ne {preempted} ]; then failures=$((failures + 1)); fi
  if [ $failures -gt {max_restarts} ]; then break; fi
  sleep 10
done
echo $code > ~/t0x.status
END_OF_T0X
test ! -f ~/t0x.pid || kill -- -$(cat ~/t0x.pid) 2> /dev/null || true
setsid nohup bash ~/t0x.sh > ~/t0x.log 2>&1 < /dev/null &
echo $! > ~/t0x.pid
"""


@dataclasses.dataclass(frozen=True)
class TpuVm:
    """The machines of one slice.

    Attributes:
      name: of the TPU VM and of its queued resource.
      topology: "v5e:16x16", see `t0x.plan.slices`.
      zone: Google Cloud zone.
      project: Google Cloud project; gcloud's own default when None.
      spot: cheaper machines that may be taken away.
      queued: ask through a queued resource and wait, rather than at once or not at all.
      max_restarts: how often a worker starts a failed run again.
      runner: runs gcloud.
    """

    name: str
    topology: str
    zone: str
    project: str | None = None
    spot: bool = False
    queued: bool = True
    max_restarts: int = 3
    runner: CommandRunner = dataclasses.field(default_factory=CommandRunner)

    @property
    def slice(self) -> Slice:
        """The slice asked for."""
        return parse_machines(self.topology)

    def _gcloud(self, *words: str) -> list[str]:
        project = [f"--project={self.project}"] if self.project else []
        return ["gcloud", "compute", "tpus", *words, f"--zone={self.zone}", *project]

    def _ssh(self, script: str, worker: str = "all") -> list[str]:
        command = f"bash -c {shlex.quote(script)}"
        return self._gcloud(
            "tpu-vm", "ssh", self.name, f"--worker={worker}", f"--command={command}"
        )

    def create(self, poll_seconds: float = _POLL_SECONDS) -> None:
        """Creates the machines and returns when they are there.

        Raises:
          RuntimeError: Google Cloud has none to give.
        """
        machine = [f"--accelerator-type={self.slice.accelerator_type}"]
        spot = ["--spot"] if self.spot else []
        if not self.queued:
            version = f"--version={self.slice.chip.runtime_version}"
            self.runner.run(self._gcloud("tpu-vm", "create", self.name, *machine, version, *spot))
            return
        version = f"--runtime-version={self.slice.chip.runtime_version}"
        node = f"--node-id={self.name}"
        self.runner.run(
            self._gcloud("queued-resources", "create", self.name, node, *machine, version, *spot)
        )
        while not self.runner.dry_run:
            state = self.queue_state()
            if state == "ACTIVE":
                return
            if state in _GONE:
                raise RuntimeError(
                    f"queued resource {self.name} is {state}: {self.zone} gave no {self.topology}; "
                    f"remove it with 't0x launch tpu stop --name {self.name} --zone {self.zone}' "
                    "and try another zone"
                )
            print(f"{self.name}: {state or 'unknown'}, asking again in {poll_seconds:g} s")
            time.sleep(poll_seconds)

    def queue_state(self) -> str:
        """State of the queued resource, "ACTIVE" when the machines are there."""
        words = ("queued-resources", "describe", self.name, "--format=value(state.state)")
        code, text = self.runner.read(self._gcloud(*words))
        return "" if code else text

    def state(self) -> str:
        """State of the machines, "READY" when they run; "" when there are none."""
        words = ("tpu-vm", "describe", self.name, "--format=value(state)")
        code, text = self.runner.read(self._gcloud(*words))
        return "" if code else text

    def install(self, job: Job) -> None:
        """Installs the package on every worker and runs the job's setup there."""
        if job.package.endswith(".whl") and "://" not in job.package:
            self.runner.run(
                self._gcloud("tpu-vm", "scp", job.package, f"{self.name}:", "--worker=all")
            )
        requirement = job.requirement("tpu", wheel_dir="./")
        script = _INSTALL.format(requirement=shlex.quote(requirement), setup="\n".join(job.setup))
        self.runner.run(self._ssh(script.rstrip()))

    def start(self, job: Job) -> None:
        """Starts the job on every worker, in the background."""
        script = _RUN.format(
            exports="\n".join(job.exports()),
            command=job.command_line("--multiprocess_gpu"),
            max_restarts=self.max_restarts,
            preempted=PREEMPTED_EXIT_CODE,
        )
        self.runner.run(self._ssh(script.rstrip()))

    def tail(self) -> None:
        """Follows what worker 0 prints."""
        self.runner.run(self._ssh("tail -n 50 -F ~/t0x.log", worker="0"))

    def stop(self) -> None:
        """Deletes the machines, and the queued resource if there is one."""
        if self.queued:
            words = ("queued-resources", "delete", self.name, "--force", "--quiet")
        else:
            words = ("tpu-vm", "delete", self.name, "--quiet")
        self.runner.run(self._gcloud(*words))

    def exit_code(self) -> int | None:
        """What the job ended with; None while it runs."""
        code, text = self.runner.read(self._ssh("cat ~/t0x.status 2>/dev/null", worker="0"))
        last = text.splitlines()[-1].strip() if text else ""
        return int(last) if code == 0 and last.isdigit() else None

    def launch(self, job: Job, poll_seconds: float = _POLL_SECONDS) -> None:
        """Creates the machines if there are none, installs, starts."""
        if self.runner.dry_run or self.state() != "READY":
            self.create(poll_seconds)
        self.install(job)
        self.start(job)

    def watch(self, job: Job, poll_seconds: float = _POLL_SECONDS) -> None:
        """Waits for the end of the job; machines that are taken away are replaced.

        Raises:
          RuntimeError: the job failed.
        """
        while not self.runner.dry_run:
            state = self.state()
            if state == "READY":
                code = self.exit_code()
                if code == 0:
                    print(f"{self.name}: finished")
                    return
                if code is not None:
                    raise RuntimeError(
                        f"{self.name} ended with exit code {code}; see it with "
                        f"'t0x launch tpu tail --name {self.name} --zone {self.zone}'"
                    )
            elif not state or state in _GONE:
                print(f"{self.name}: {state or 'gone'}; asking for other machines", flush=True)
                self._remove_remains()
                self.launch(job, poll_seconds)
            time.sleep(poll_seconds)

    def _remove_remains(self) -> None:
        # What was taken away may be deleted already: only a name that is still in use must go.
        if self.state() or (self.queued and self.queue_state()):
            self.stop()
