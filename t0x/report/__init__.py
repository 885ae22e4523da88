"""Reports on rank classification: statistics over prompts as a table, CSV, Markdown and HTML.

Reads what evaluation leaves under `<run>/rank_classification/<step>/`; never runs a model.
"""

from t0x.report.bias import BiasMeasure, measure_bias
from t0x.report.generations import Generated, load_generations
from t0x.report.page import write_html
from t0x.report.published import Published, load_published
from t0x.report.summary import DatasetSummary, summarise, wilson_interval
from t0x.report.table import print_table
from t0x.report.writers import write_bias_csv, write_csv, write_markdown, write_prompts_csv
from t0x.results.format import Example
from t0x.results.reading import TaskResult, find_unfinished, load_results

__all__ = [
    "BiasMeasure",
    "DatasetSummary",
    "Example",
    "Generated",
    "Published",
    "TaskResult",
    "find_unfinished",
    "load_generations",
    "load_published",
    "load_results",
    "measure_bias",
    "print_table",
    "summarise",
    "wilson_interval",
    "write_bias_csv",
    "write_csv",
    "write_html",
    "write_markdown",
    "write_prompts_csv",
]
