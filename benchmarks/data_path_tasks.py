"""Tasks of benchmarks/data_path.py: every prompt of three datasets, many times over."""

import seqio

import t0x.tasks.p3  # noqa: F401 - registers the prompts that are copied
from t0x.registration import register_mixture, register_prompt, task_infos

DATASETS = ("dream", "cosmos_qa", "ag_news")
COUNTS = (50, 325, 330)

originals = [
    (name, info)
    for name, info in sorted(task_infos().items())
    if info.dataset.name in DATASETS and not info.score_eval
]
names = []
for number in range(max(COUNTS)):
    copy, place = divmod(number, len(originals))
    name, info = originals[place]
    task = seqio.TaskRegistry.get(name)
    names += register_prompt(f"{name}_{copy:02}", info, task.output_features)[:1]
for count in COUNTS:
    register_mixture(f"data_path_{count}", names[:count])
