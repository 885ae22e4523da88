"""The command line that train, eval, infer and precompile share: flags, gin, logs, exit codes."""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gin
import jax
from absl import app, flags, logging

from t5x import gin_utils
from t5x.checkpoints.queue import finish_writing
from t5x.run import interruption, precheck, preemption, values
from t5x.run.console import console, summarise_error

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines upstream's flags, and --verbose."""
    flags.DEFINE_multi_string("gin_file", [], "Gin file; several override one another in order.")
    flags.DEFINE_multi_string("gin_bindings", [], "One gin binding; also --gin.NAME=VALUE.")
    flags.DEFINE_list("gin_search_paths", ["."], "Folders of gin files, searched before t5x's own.")
    flags.DEFINE_string("tfds_data_dir", None, "Folder of prepared TensorFlow Datasets.")
    flags.DEFINE_list("seqio_additional_cache_dirs", [], "Folders of SeqIO's offline caches.")
    flags.DEFINE_boolean("dry_run", False, "Parse and print the configuration, then stop.")
    flags.DEFINE_boolean(
        "multiprocess_gpu",
        False,
        "Join a run of several processes, TPU hosts or GPUs; "
        "SLURM, Cloud TPU and GKE are asked for what is not said here.",
    )
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
    flags.DEFINE_integer("process_count", None, "Number of processes.")
    flags.DEFINE_integer("process_index", None, "Index of this process.")
    flags.DEFINE_integer("initialization_timeout", 300, "Seconds to wait for the others.")
    flags.DEFINE_integer("heartbeat_timeout", 60, "Seconds of silence after which one is lost.")
    flags.DEFINE_integer("shard_id", None, "Shard that infer takes, in place of infer.shard_id.")
    flags.DEFINE_boolean("verbose", False, "Show logs and tracebacks on the terminal.")


def spell_flag(word: str) -> str:
    """A word of the command line, with a flag's hyphens as the underscores it is defined with."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    underscored = name.replace("-", "_")
    if underscored not in FLAGS and underscored.removeprefix("no") not in FLAGS:
        return word
    return f"--{underscored}{equals}{value}"


def run(entry_point: Callable[..., Any], argv: Sequence[str] | None = None) -> None:
    """Configures `entry_point` by the command line's gin files and calls it (see `run_chosen`)."""
    run_chosen(lambda: entry_point, argv)


def check(entry_point: str) -> None:
    """Ends the process where the command line and its gin files, as mere text, show a mistake.

    For modules to call before they import what takes seconds.

    Args:
      entry_point: name of the function that `run` will be given.
    """
    _parse_flags(None)
    paths = [*FLAGS.gin_search_paths, *gin_utils.find_search_paths()]
    try:
        gin_utils.require_files(paths, FLAGS.gin_file)
        if not FLAGS.dry_run:
            precheck.require_macros(entry_point, FLAGS.gin_file, FLAGS.gin_bindings, paths)
    except (FileNotFoundError, ValueError) as error:
        console.fail(error)
        sys.exit(1)


def _parse_flags(argv: Sequence[str] | None) -> None:
    """Parses the command line, which sends logs to a file; ends the process if it is wrong."""
    if "gin_file" not in FLAGS:
        define_flags()
    try:
        words = gin_utils.rewrite_gin_args(sys.argv if argv is None else argv)
        rest = FLAGS([spell_flag(word) for word in words])
        if len(rest) > 1:
            raise app.UsageError(f"unknown argument '{rest[1]}'; settings are --gin.NAME=VALUE")
        if not FLAGS.gin_file:
            raise app.UsageError("--gin_file=FILE is missing; try --gin_file=t0_mini.gin")
    except (flags.Error, app.UsageError, ValueError) as error:
        console.usage_error(str(error))
        sys.exit(2)
    console.verbose = FLAGS.verbose
    if not FLAGS.verbose:
        console.capture()
    logging.set_verbosity(logging.INFO)


def run_chosen(choose: Callable[[], Callable[..., Any]], argv: Sequence[str] | None = None) -> None:
    """Parses the command line, then configures and calls the entry point that `choose` returns.

    Ends the process with exit code 1 and one line on stderr when anything goes wrong; 2 when the
    command line itself is at fault.
    """
    _parse_flags(argv)
    try:
        _run(choose())
    except preemption.Preempted as stop:
        console.say(summarise_error(stop))
        sys.stdout.flush()
        # Process 0 serves the others: all leave together.
        jax.distributed.shutdown()
        os._exit(preemption.EXIT_CODE)
    except KeyboardInterrupt:
        interruption.leave_at_once()  # the second time
        print("interrupted", file=console.errors, flush=True)
        finish_writing(timeout=60)
        sys.stdout.flush()
        os._exit(interruption.EXIT_CODE)
    except Exception as error:
        console.fail(error)
        # Worker threads of a failed run (metrics, checkpoints) must not keep it alive, but a
        # checkpoint that is nearly written is worth a minute.
        finish_writing(timeout=60)
        sys.stdout.flush()
        os._exit(1)


def _run(entry_point: Callable[..., Any]) -> None:
    arguments = {} if FLAGS.shard_id is None else {"shard_id": FLAGS.shard_id}
    if arguments.keys() - inspect.signature(entry_point).parameters:
        raise ValueError(f"--shard_id is for infer, {entry_point.__name__} has no such parameter")
    if FLAGS.multiprocess_gpu or FLAGS.coordinator_address:
        jax.distributed.initialize(
            FLAGS.coordinator_address,
            FLAGS.process_count,
            FLAGS.process_index,
            initialization_timeout=FLAGS.initialization_timeout,
            heartbeat_timeout_seconds=FLAGS.heartbeat_timeout,
        )
    import seqio  # takes seconds

    if FLAGS.tfds_data_dir:
        seqio.set_tfds_data_dir_override(FLAGS.tfds_data_dir)
    seqio.add_global_cache_dirs(FLAGS.seqio_additional_cache_dirs)
    configured = gin.configurable(entry_point)
    gin_utils.parse_gin_flags(
        [*FLAGS.gin_search_paths, *gin_utils.find_search_paths()],
        FLAGS.gin_file,
        FLAGS.gin_bindings,
    )
    values.check()
    values.require_bindings(entry_point, FLAGS.gin_file)
    if FLAGS.dry_run:
        console.say(gin_utils.get_gin_config_str())
        return
    configured(**arguments)
