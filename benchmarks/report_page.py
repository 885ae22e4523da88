"""Time and size of a report on an evaluation as large as the paper's, made up from a seed.

Writes results of 11 datasets × 10 prompts × 500 examples for each of two checkpoints, reads them
and writes the page. Prints one JSON line: CPU seconds to read and to write, the page's bytes, and
their ratio to the 10 MB that a page may have.

    python benchmarks/report_page.py
    python benchmarks/report_page.py --prompts 100 --examples 300
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from t0x import report
from t0x.results import format

WORDS = ("harbour", "lamp", "read", "seven", "green", "old", "sold", "who", "near", "while", "of")
LIMIT = 10_000_000


def write_task(
    root: str, step: int, dataset: int, prompt: int, examples: int, rng: random.Random
) -> None:
    """Writes one task's two files: two to four choices, scores somewhat better than chance."""
    choices = ("Yes", "No", "Maybe", "Never")[: 2 + dataset % 3]
    lines, right = [], 0
    for row in range(examples):
        label = random.Random(row * 31 + dataset).randrange(len(choices))
        scores = [rng.gauss(-6, 1) for _ in choices]
        scores[label] += 0.8
        prediction = scores.index(max(scores))
        right += prediction == label
        inputs = " ".join(rng.choices(WORDS, k=rng.randint(60, 300)))
        example = format.Example(row, inputs, choices, tuple(scores), prediction, label)
        lines.append(example.line())
    name = f"dataset_{dataset}_prompt_{prompt}_score_eval"
    summary = format.Summary(
        task=name,
        dataset=f"dataset_{dataset}",
        subset=None,
        template=f"prompt {prompt}",
        category="NLI",
        seen="held-out dataset",
        examples=examples,
        accuracy=right / examples,
        chance=1 / len(choices),
        skipped={},
        step=step,
        split="validation",
    )
    Path(format.examples_path(root, step, name)).write_text("".join(lines))
    Path(format.summary_path(root, step, name)).write_text(summary.text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=int, default=11)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--checkpoints", type=int, default=2)
    options = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as root:
        for number in range(options.checkpoints):
            step = 1000 * (number + 1)
            Path(format.step_dir(root, step)).mkdir(parents=True)
            for dataset in range(options.datasets):
                for prompt in range(options.prompts):
                    write_task(root, step, dataset, prompt, options.examples, rng)
        start = time.process_time()
        results = report.load_results([root])
        loaded = time.process_time()
        page = Path(root, "report.html")
        report.write_html(results, page)
        written = time.process_time()
        size = page.stat().st_size
    print(
        json.dumps(
            {
                "benchmark": "report_page",
                "examples": sum(result.examples for result in results),
                "read_cpu_seconds": round(loaded - start, 2),
                "write_cpu_seconds": round(written - loaded, 2),
                "bytes": size,
                "ratio_to_limit": round(size / LIMIT, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
