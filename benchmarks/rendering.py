"""Rendering rows, against promptsource's own loop, and whether every byte is the same.

Runs promptsource 0.2.3 under a Python that has it (3.9 or older), on the same rows and templates,
in the same run. Both sides read the rows before the clock starts, and both loops are
`template.apply(row)` over every row of every template. Processor seconds are compared. Prints one
JSON line.

    T0X_DATA_DIR=DATA python benchmarks/rendering.py --promptsource_python PYTHON3.9 [--rows 500]

DATA holds <dataset>/<subset or default>/<split>.jsonl. To make such a Python:

    python3.9 -m venv py39
    py39/bin/pip install 'setuptools<70' pandas jinja2 pyyaml requests 'datasets<3' 'numpy<2'
    py39/bin/pip install --no-deps promptsource==0.2.3
"""

import argparse
import hashlib
import json
import subprocess
import tempfile
import time
from pathlib import Path

from t0x import sources
from t0x.prompts.collection import TemplateCollection
from t0x.prompts.template import RenderError

# The rows as both sides see them; `--rows` bounds each split's.
SPLITS = ("train", "validation", "test")

# Runs under promptsource's Python: {dataset: rows} in, per template seconds and digests out.
THEIRS = """
import hashlib, json, sys, time
from promptsource.templates import DatasetTemplates
import promptsource

datasets = json.load(open(sys.argv[1]))
found = {}
for dataset, rows in datasets.items():
    name, _, subset = dataset.partition("/")
    templates = DatasetTemplates(name, subset or None)
    for template in templates.templates.values():
        made = []
        started = time.process_time()
        for row in rows:
            try:
                made.append(template.apply(row))
            except Exception as error:
                made.append(type(error).__name__)
        seconds = time.process_time() - started
        choices = []
        for row in rows:
            try:
                choices.append(template.get_answer_choices_list(row))
            except Exception as error:
                choices.append(type(error).__name__)
        digests = [hashlib.sha256(json.dumps(pair).encode()).hexdigest()
                   for pair in zip(made, choices)]
        found.setdefault(dataset, {})[template.name] = [seconds, digests]
json.dump({"folder": promptsource.__path__[0], "found": found}, open(sys.argv[2], "w"))
"""


def read_rows(dataset, limit):
    """Rows of all local splits of DATASET[/SUBSET], at most `limit` of each."""
    name, _, subset = dataset.partition("/")
    files = sources.local_splits(name, subset or None)
    if not files:
        raise FileNotFoundError(f"no rows of {dataset} under $T0X_DATA_DIR")
    opened = [sources.open_files(files[split]) for split in SPLITS if split in files]
    return [rows[i] for rows in opened for i in range(min(limit, len(rows)))]


def render(template, rows):
    """Processor seconds of the loop, and a digest of each row's parts and choices."""
    made = []
    started = time.process_time()
    for row in rows:
        try:
            made.append(template.apply(row))
        except RenderError as error:
            cause = error.__cause__
            made.append(getattr(cause, "kind", type(cause).__name__))
    seconds = time.process_time() - started
    pairs = (
        (parts, template.get_answer_choices_list(row))
        for parts, row in zip(made, rows, strict=True)
    )
    return seconds, [hashlib.sha256(json.dumps(pair).encode()).hexdigest() for pair in pairs]


def run_promptsource(python, datasets):
    """What promptsource made of the rows: its folder, {dataset: {template: [seconds, digests]}}."""
    with tempfile.TemporaryDirectory() as scratch:
        given, answer = Path(scratch, "rows.json"), Path(scratch, "answer.json")
        given.write_text(json.dumps(datasets))
        subprocess.run([python, "-c", THEIRS, given, answer], check=True, cwd=scratch)
        content = json.loads(answer.read_text())
    return Path(content["folder"]), content["found"]


def compare(ours, theirs, count):
    """Figures of one dataset: {template: [seconds, digests]} of each side over `count` rows."""
    pairs = [pair for name in theirs for pair in zip(ours[name][1], theirs[name][1], strict=True)]
    seconds = [sum(found[name][0] for name in theirs) for found in (ours, theirs)]
    return {
        "templates": len(theirs),
        "renders": count * len(theirs),
        "different": sum(mine != other for mine, other in pairs),
        "renders_per_second": round(count * len(theirs) / seconds[0]),
        "ratio": round(seconds[1] / seconds[0], 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--promptsource_python", required=True)
    parser.add_argument("--datasets", nargs="+", default=["dream", "cosmos_qa", "ag_news"])
    parser.add_argument("--rows", type=int, default=500, help="of each split")
    arguments = parser.parse_args()
    datasets = {name: read_rows(name, arguments.rows) for name in arguments.datasets}
    folder, theirs = run_promptsource(arguments.promptsource_python, datasets)
    collection = TemplateCollection([folder / "templates"])
    results = {}
    for dataset, rows in datasets.items():
        name, _, subset = dataset.partition("/")
        templates = collection.get(name, subset or None)
        ours = {template.name: render(template, rows) for template in templates.values()}
        results[dataset] = compare(ours, theirs[dataset], len(rows))
    first = arguments.datasets[0]
    print(
        json.dumps(
            {
                "benchmark": "rendering",
                "dataset": first,
                "ratio": results[first]["ratio"],
                "different": sum(result["different"] for result in results.values()),
                "datasets": results,
            }
        )
    )


if __name__ == "__main__":
    main()
