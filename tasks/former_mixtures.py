"""T0's mixtures under the names that promptsource's `seqio_tasks` gave them until January 2022.

Gin files of T0's own runs and of those after it say `from promptsource import seqio_tasks` and name
`d4_train`; where promptsource has no such module, the import leads here. "D4" is what T0 trains on.

| then | today |
|---|---|
| `d4_train` | `t0_train` |
| `d4_gpt_train` | `t0+_train` |
| `d4_gpt_sglue_train` | `t0++_train` |
| `gpt_train`, `sglue_train` | what T0+ has beyond T0, what T0++ has beyond T0+ |
| `d4_score_eval` | `t0_eval_score_eval` |
| `d4_eval` | the same prompts, generating instead of ranking |
| `d4_train_score_eval` | `t0_train_score_eval` |
| `d4_train_eval` | the prompts of original tasks that these come from, and those without choices |
| `d4_train_one_og_prompt` | `t0_train_one_og_prompt` |
| `d4_train_all_og_prompts` | `t0_train_all_og_prompts` |
| `bias_fairness_eval` | the prompts of `bias_fairness_eval_score_eval`, those without choices too |

The prompts are those of the installed promptsource (0.2.3), which has mended some since.
"""

import sys

import seqio

from t0x.registration.register import register_mixture
from t0x.registration.registry import SCORE_EVAL
from t0x.tasks import p3

RENAMED = {
    "d4_train": "t0_train",
    "d4_gpt_train": "t0+_train",
    "d4_gpt_sglue_train": "t0++_train",
    "d4_score_eval": "t0_eval_score_eval",
    "d4_train_score_eval": "t0_train_score_eval",
    "d4_train_one_og_prompt": "t0_train_one_og_prompt",
    "d4_train_all_og_prompts": "t0_train_all_og_prompts",
}

# `from promptsource.seqio_tasks import tasks` works as it did.
tasks = sys.modules[__name__]


def _names(mixture: str) -> list[str]:
    known = mixture in seqio.MixtureRegistry.names()
    return [task.name for task in seqio.MixtureRegistry.get(mixture).tasks] if known else []


def mixtures() -> dict[str, list[str]]:
    """Tasks of each mixture by its former name."""
    found = {former: _names(name) for former, name in RENAMED.items()}
    found["gpt_train"] = p3.tasks_of(["T0+"])
    found["sglue_train"] = p3.tasks_of(["T0++"])
    found["d4_eval"] = [name.removesuffix(SCORE_EVAL) for name in found["d4_score_eval"]]
    found["d4_train_eval"] = [
        name
        for name in _names("t0_train_all_og_prompts")
        if not any(part in name for part in p3.UNSELECTED)
    ]
    found["bias_fairness_eval"] = p3.evaluated_tasks("bias_fairness")
    return found


for _name, _members in mixtures().items():
    if _members:
        register_mixture(_name, _members)
