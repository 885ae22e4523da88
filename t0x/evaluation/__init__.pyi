from .evaluator import (
    BATCHES_AT_ONCE as BATCHES_AT_ONCE,
)
from .evaluator import (
    RankEvaluator as RankEvaluator,
)
from .evaluator import (
    task_split as task_split,
)
from .token_scores import (
    score_tokens as score_tokens,
)
