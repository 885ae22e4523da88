"""One description of a run, from which every way of launching it is made."""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

MODES = ("train", "eval", "infer", "precompile")
# What t5x ends with when it was told to stop and has saved a checkpoint: start it again. Said here
# too: importing t5x.run.preemption takes seconds, and upstream's t5x has none. A test holds them
# equal.
PREEMPTED_EXIT_CODE = 75
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Job:
    """What to run. The fields are those of a job file and the options of `t0x launch`.

    Attributes:
      name: name of the machines or jobs; lower case letters, digits and hyphens.
      gin_file: run configuration, as given to --gin_file.
      mode: train, eval, infer or precompile.
      model_dir: MODEL_DIR, which every machine must reach: gs://… or a shared disk.
      bindings: further gin bindings, "NAME=VALUE".
      package: what pip installs, "t0x" or a wheel; a local wheel is copied to the machines.
      environment: environment variables of the run.
      setup: shell commands to run before, such as `t0x prompts install`.
    """

    name: str
    gin_file: str
    model_dir: str
    mode: str = "train"
    bindings: tuple[str, ...] = ()
    package: str = "t0x"
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    setup: tuple[str, ...] = ("t0x prompts install",)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"--name '{self.name}' must be lower case letters, digits and hyphens, begin with "
                "a letter and have at most 40 characters"
            )
        if self.mode not in MODES:
            raise ValueError(f"--mode '{self.mode}' is none of {', '.join(MODES)}")
        for binding in self.bindings:
            if "=" not in binding:
                raise ValueError(f"--gin_bindings '{binding}' must be NAME=VALUE")
        bad = [name for name in self.environment if not re.fullmatch(r"[A-Za-z_]\w*", name)]
        if bad:
            raise ValueError(f"--env '{bad[0]}' is not the name of an environment variable")

    def command(self, *flags: str, python: str = "python") -> list[str]:
        """The words of the command that every machine runs."""
        bindings = [f"--gin.{binding}" for binding in self.bindings]
        return [
            *(python, "-m", f"t5x.{self.mode}", f"--gin_file={self.gin_file}"),
            f'--gin.MODEL_DIR="{self.model_dir}"',
            *bindings,
            *flags,
        ]

    def command_line(self, *flags: str, python: str = "python") -> str:
        """The command for a shell."""
        return shlex.join(self.command(*flags, python=python))

    def exports(self) -> list[str]:
        """Shell lines that set the environment."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]

    def requirement(self, extra: str, wheel_dir: str = "") -> str:
        """What pip installs, with the extra of an accelerator.

        Args:
          extra: "tpu" or "gpu".
          wheel_dir: where a local wheel lies on the machine.
        """
        if not self.package.endswith(".whl"):
            name, separator, version = self.package.partition("==")
            return f"{name}[{extra}]{separator}{version}"
        wheel = self.package if "://" in self.package else f"{wheel_dir}{Path(self.package).name}"
        return f"t0x[{extra}] @ {wheel}" if "://" in wheel else f"{wheel}[{extra}]"


def read_job(path: Path | None, options: Mapping[str, Any]) -> Job:
    """A job from a YAML file, with the options that were given on top.

    Args:
      path: YAML file of Job's fields; None for options alone.
      options: fields of Job; None and empty ones leave the file's.

    Raises:
      ValueError: unknown or missing fields; the message names file and field.
    """
    content = {}
    if path is not None:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(content, dict):
            raise ValueError(f"{path} must be a YAML mapping of fields such as name and gin_file")
    fields = {field.name for field in dataclasses.fields(Job)}
    unknown = sorted(set(content) - fields)
    if unknown:
        raise ValueError(f"{path}: unknown field '{unknown[0]}'; use {', '.join(sorted(fields))}")
    values = {**content, **{name: value for name, value in options.items() if value}}
    missing = [name for name in ("name", "gin_file", "model_dir") if not values.get(name)]
    if missing:
        where = f" in {path} or" if path else ""
        raise ValueError(f"{missing[0]} is missing; give it{where} as --{missing[0]}")
    for name in ("bindings", "setup"):
        if name in values:
            values[name] = tuple(str(item) for item in values[name])
    if "environment" in values:
        values["environment"] = {k: str(v) for k, v in dict(values["environment"]).items()}
    return Job(**values)
