"""BIG-bench: multiple-choice tasks from google/BIG-bench's JSON files, for rank classification.

Importing this module registers, without parsing a file, what lies at
`$T0X_BIGBENCH_DIR/<task>/task.json` (by default `$T0X_DATA_DIR/bigbench`):

- `t0_bigbench_score_eval`: the fourteen tasks that T0 was evaluated on (arXiv 2110.08207,
  figure 5). They are registered with or without files, which are looked for when a task is read.
- `bigbench_score_eval`: every task there that has answer choices.

A task is one dataset with one prompt, the one that its file describes. A file without examples
stands for its subtasks, folders below it with files of their own: each of them is a dataset
(`logical_deduction/three_objects`), and BIG-bench's score of the task is the mean of theirs.
`register` adds a task, or a subtask, by its folder.

Prompts are those of BIG-bench 1.0.0 (bigbench/api/json_task.py), byte for byte, in any number of
shots: choices that are appended to an input are shuffled, always from the same seed. Choices with
the best target score are right, several of them too.
"""

import functools
import json
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import seqio
from absl import logging

from t0x.prompts.template import Metadata, RenderError, Template
from t0x.rank_classification import RIGHT_ANSWERS
from t0x.registration import Dataset, DatasetTasks, register_dataset, register_mixture
from t0x.sources.openers import DATA_DIR_VARIABLE

DIRECTORY_VARIABLE = "T0X_BIGBENCH_DIR"
FILE = "task.json"
# BIG-bench has no splits: every example is for evaluation.
SPLIT = "validation"
SEED = 42
ORIGIN = "https://github.com/google/BIG-bench, bigbench/benchmark_tasks"

T0_TASKS = (
    "code_line_description",
    *(
        f"conceptual_combinations/{subtask}"
        for subtask in (
            "contradictions",
            "emergent_properties",
            "fanciful_fictional_combinations",
            "homonyms",
            "invented_words",
            "surprising_uncommon_combinations",
        )
    ),
    "formal_fallacies_syllogisms_negation",
    "hindu_knowledge",
    "known_unknowns",
    "language_identification",
    "logic_grid_puzzle",
    *(f"logical_deduction/{subtask}" for subtask in ("five_objects", "seven_objects")),
    "logical_deduction/three_objects",
    "misconceptions",
    "movie_dialog_same_or_different",
    "novel_concepts",
    "strategyqa",
    "vitaminc_fact_verification",
    "winowhy",
)


@dataclass(frozen=True)
class Format:
    """How a file turns examples into text: its fields of these names, or BIG-bench's defaults."""

    task_prefix: str = ""
    example_input_prefix: str = "\nQ: "
    example_output_prefix: str = "\nA: "
    choice_prefix: str = "\n  choice: "
    append_choices_to_input: bool = True
    few_shot_example_separator: str = "\n"

    def question(self, text: str, choices: Iterable[str]) -> str:
        """An example without its answer; the order of the choices depends on their texts alone."""
        choices = sorted(choices) if self.append_choices_to_input else []
        listed = "".join(f"{self.choice_prefix}{choices[place]}" for place in _order(len(choices)))
        return f"{self.example_input_prefix}{text}{listed}{self.example_output_prefix}"


@functools.cache
def _order(choices: int) -> list[int]:
    """BIG-bench shuffles the choices of every example from the same seed."""
    return np.random.RandomState(SEED).permutation(choices).tolist()


@dataclass(frozen=True)
class Example:
    """An example of a file: its input, the score of each choice, and texts that solve it."""

    text: str
    scores: Mapping[str, float]
    answers: tuple[str, ...]

    @property
    def best(self) -> list[str]:
        """Choices with the best score, none where the scores favour no choice."""
        worst, top = min(self.scores.values(), default=0), max(self.scores.values(), default=0)
        if top <= (worst if len(self.scores) > 1 else 0):
            return []
        return [choice for choice, score in self.scores.items() if score == top]


def read_task(folder: Path, shots: int = 0) -> list[dict[str, Any]]:
    """The rows of a task.

    Args:
      folder: holds task.json.
      shots: solved examples before each question, drawn from the same file.

    Returns:
      Rows {inputs, choices, best}; `best` are the choices with the highest target score. It is
      empty for an example that cannot be ranked.

    Raises:
      FileNotFoundError: there is no file.
      ValueError: the file or an example is not in BIG-bench's format; names file and example.
    """
    file = folder / FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"BIG-bench task '{folder.name}': no {FILE} in {folder}; copy the task's folder there "
            f"from {ORIGIN}, or set {DIRECTORY_VARIABLE}"
        )
    form, examples = _parse_file(file)
    questions = [form.question(example.text, example.scores) for example in examples]
    prompts = _solve_before(questions, examples, shots, form, file) if shots else questions
    return [
        {
            "inputs": form.task_prefix + prompt,
            "choices": [choice.strip() for choice in example.scores],
            "best": [choice.strip() for choice in example.best],
        }
        for prompt, example in zip(prompts, examples, strict=True)
    ]


def _solve_before(
    questions: Sequence[str], examples: Sequence[Example], shots: int, form: Format, file: Path
) -> list[str]:
    """Every question after `shots` others with their answers, drawn as BIG-bench draws them."""
    if len(examples) <= shots:
        raise ValueError(f"{file}: {len(examples)} examples are too few for {shots} shots")
    if unsolved := [place for place, example in enumerate(examples) if not example.answers]:
        raise ValueError(f"{file}: example {unsolved[0]}: no choice is right, no shot can be made")
    rng = np.random.RandomState(SEED)
    prompts = []
    for place, question in enumerate(questions):
        drawn = rng.choice(len(examples) - 1, shots, replace=False)
        others = [int(other) + (other >= place) for other in drawn]  # Never the question itself.
        answers = [examples[other].answers for other in others]
        parts = [
            questions[other] + given[rng.choice(len(given))]
            for other, given in zip(others, answers, strict=True)
        ]
        prompts.append(form.few_shot_example_separator.join([*parts, question]))
    return prompts


def _parse_file(file: Path) -> tuple[Format, list[Example]]:
    """The format, and every different example."""
    try:
        record = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("examples"), list):
        subtasks = ", ".join(sorted(path.parent.name for path in file.parent.glob(f"*/{FILE}")))
        hint = f"register its subtasks: {subtasks}" if subtasks else "it is no BIG-bench JSON task"
        raise ValueError(f"{file}: field 'examples' is no list; {hint}")
    settings = {name: record[name] for name in vars(Format()) if record.get(name) is not None}
    # As BIG-bench reads it: the file of logic_grid_puzzle says "false" in quotes, which is true.
    settings["append_choices_to_input"] = bool(record.get("append_choices_to_input", True))
    for name, value in settings.items():
        if not isinstance(value, type(getattr(Format(), name))):
            raise ValueError(f"{file}: field '{name}' is {value!r:.40}")
    examples: dict[str, Example] = {}
    for number, example in enumerate(record["examples"]):
        problem = _problem_of(example)
        if problem:
            raise ValueError(f"{file}: example {number}: {problem}")
        # The benchmark counts an example that is listed twice once.
        examples.setdefault(json.dumps(example), _parse_example(example))
    repeated = len(record["examples"]) - len(examples)
    if repeated:
        logging.warning("%s: %d repeated examples left out", file, repeated)
    graded = sum(len({*item.scores.values()}) > 2 for item in examples.values())
    if graded:
        logging.warning(
            "%s: %d examples grade their choices; only the best are right", file, graded
        )
    return Format(**settings), list(examples.values())


def _parse_example(example: Mapping[str, Any]) -> Example:
    parsed = Example(example["input"], example.get("target_scores") or {}, ())
    target = example.get("target", parsed.best[:1])
    answers = [target] if isinstance(target, str) else target
    return replace(parsed, answers=tuple(answers))


def _problem_of(example: Any) -> str | None:
    if not isinstance(example, dict) or not isinstance(example.get("input"), str):
        return "field 'input' is no text"
    scores = example.get("target_scores") or {}
    if not isinstance(scores, dict):
        return "field 'target_scores' does not map choices to scores"
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in scores.values()):
        return "field 'target_scores' has a score that is no number"
    return None if all(map(str.strip, scores)) else "field 'target_scores' has an empty choice"


@dataclass(frozen=True)
class JsonPrompt(Template):
    """A task's own prompt: rows come rendered, nothing is cut and no text separates parts."""

    def apply(
        self, row: Mapping[str, Any], truncate: bool = True, highlight_variables: bool = False
    ) -> list[str]:
        """[input, target] of a row of `read_task`; RenderError where no choice is the best."""
        del truncate, highlight_variables
        if not row["best"]:
            raise RenderError("no choice is right")
        return [row["inputs"], RIGHT_ANSWERS.join(row["best"])]

    def get_answer_choices_list(self, row: Mapping[str, Any]) -> list[str]:
        """The row's choices, in the order of the file."""
        return row["choices"]

    def get_fixed_answer_choices_list(self) -> None:
        """None: choices are the row's own."""

    def problem(self) -> None:
        """None: there is nothing to compile."""

    def fields(self) -> frozenset[str]:
        """Names that the prompt expects of a row."""
        return frozenset(["inputs", "choices", "best"])


class _Rows(Sequence):
    """A task's rows, read whole when the first is asked for."""

    def __init__(self, task: str, folder: Path | None, shots: int) -> None:
        self._task, self._folder, self._shots = task, folder, shots

    @functools.cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return read_task(self._folder or directory() / self._task, self._shots)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]


_registered: dict[tuple[str, Path | None, int], DatasetTasks] = {}


def register(
    task: str,
    folder: str | Path | None = None,
    shots: int = 0,
    output_features: Mapping[str, seqio.Feature] | None = None,
) -> DatasetTasks:
    """Registers a task of BIG-bench; what is registered is returned as is.

    Args:
      task: its name, or task/subtask; becomes the subset of the dataset "bigbench".
      folder: where its task.json is; below `directory()` by default.
      shots: solved examples before each question.
      output_features: see `t0x.registration.register_prompt`.
    """
    folder = Path(folder) if folder else None
    key = (task, folder, shots)
    if key not in _registered:
        name = f"few_shot_{shots}" if shots else "zero_shot"
        rows = _Rows(task, folder, shots)
        dataset = Dataset(
            name="bigbench",
            subset=task,
            category="BIG-bench",
            splits={SPLIT: None},
            rows=lambda split: rows,
            held_out=True,
            train_size=0,
            eval_split=SPLIT,
        )
        metadata = Metadata(original_task=True, metrics=("Accuracy",))
        prompt = JsonPrompt(name, "", answer_choices="{{choices}}", metadata=metadata)
        _registered[key] = register_dataset(
            "bigbench", dataset, {name: prompt}, output_features=output_features, mixtures=False
        )
    return _registered[key]


def directory() -> Path:
    """Where tasks are looked for.

    Raises:
      FileNotFoundError: neither variable is set; says what is needed.
    """
    root = os.environ.get(DIRECTORY_VARIABLE)
    data = os.environ.get(DATA_DIR_VARIABLE)
    if not root and not data:
        raise FileNotFoundError(
            f"BIG-bench's tasks are needed: copy {ORIGIN} to a folder and set "
            f"{DIRECTORY_VARIABLE} to it"
        )
    return Path(root) if root else Path(data) / "bigbench"


def find_tasks(folder: Path) -> list[str]:
    """Names of the tasks in a folder, and of subtasks, that give answer choices; none without it.

    A file without examples stands for its subtasks.
    """
    found = []
    tasks = {file.parent for file in folder.glob(f"*/{FILE}")}
    tasks |= {file.parent.parent for file in folder.glob(f"*/*/{FILE}")}
    for task in sorted(tasks):
        whole = _mentions(task / FILE, b'"examples"')
        files = [task / FILE] if whole else sorted(task.glob(f"*/{FILE}"))
        found += [
            file.parent.relative_to(folder).as_posix()
            for file in files
            if _mentions(file, b'"target_scores"')
        ]
    return found


def _mentions(file: Path, field: bytes) -> bool:
    """Whether a file has a field, without parsing it: some are larger than all others together."""
    if not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(field) >= 0


def _register_all() -> None:
    tasks = {"t0_bigbench_score_eval": T0_TASKS}
    if os.environ.get(DIRECTORY_VARIABLE) or os.environ.get(DATA_DIR_VARIABLE):
        tasks["bigbench_score_eval"] = tuple(find_tasks(directory()))
    for mixture, names in tasks.items():
        twins = [twin for name in names for twin in register(name).score_eval]
        if twins and mixture not in seqio.MixtureRegistry.names():
            # Every example counts the same, whatever task it is of; nothing trains on them.
            register_mixture(mixture, twins, rate=lambda _: 1.0)


_register_all()
