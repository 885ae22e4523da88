"""The same jobs as an Apache Beam pipeline: on Dataflow, Spark, Flink, or Beam's own runner."""

from collections.abc import Callable, Sequence

from t0x.prepare.jobs import Job, run_job
from t0x.prepare.request import Request


def run_on_beam(options: Sequence[str]) -> Callable[..., None]:
    """A runner (see `t0x.prepare.command.Runner`) that is a Beam pipeline.

    Jobs leave their records in the store, which every worker must reach; a job that Beam does again
    writes the same bytes.

    Args:
      options: Beam's own, as on its command line: "--runner=DataflowRunner", "--project=…".

    Raises:
      ModuleNotFoundError: Beam is not installed; names the extra.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"--runner beam needs {error.name}: pip install 't0x[cache]'"
        ) from error

    def run(request: Request, jobs: Sequence[Job], report: Callable[[int, int], None]) -> None:
        if not jobs:
            return
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            _ = (
                pipeline
                | "jobs" >> beam.Create(list(jobs))
                | "spread" >> beam.Reshuffle()
                | "run" >> beam.Map(_run, request)
            )

    return run


def _run(job: Job, request: Request) -> None:
    run_job(request, job, lambda *_: None)
