"""Turns a text and its answer choices into the tokens to score, cut where they are too long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import seqio

from t0x.evaluation.packing import Choices

# Choices repeat from row to row, inputs do not: this many different ones are kept.
CHOICES_KEPT = 65_536


@dataclass(frozen=True)
class Encoded:
    """An example's tokens, and what had to be cut.

    Attributes:
      tokens: of the input and of each choice.
      input_cut: whether the input was longer than the limit.
      choices_cut: how many choices were.
    """

    tokens: Choices
    input_cut: bool
    choices_cut: int


class ChoiceEncoder:
    """Encodes with the features of a task, as its SeqIO preprocessors and converter would.

    Args:
      features: "inputs" and "targets", each with its vocabulary and whether EOS ends it.
      limits: most tokens of an input and of a choice, EOS included; what is longer loses its end,
        EOS too, as under SeqIO. No limit where the name is missing or None.
    """

    def __init__(
        self, features: Mapping[str, seqio.Feature], limits: Mapping[str, int | None]
    ) -> None:
        self._features = features
        self.limits = dict(limits)
        self._choices: dict[str, tuple[np.ndarray, bool]] = {}

    def encode(self, inputs: str, choices: Sequence[str]) -> Encoded:
        input_tokens, input_cut = self._encode(inputs, "inputs")
        targets = [self._encode_choice(choice) for choice in choices]
        tokens = Choices(input_tokens, [target for target, _ in targets])
        return Encoded(tokens, input_cut, sum(cut for _, cut in targets))

    def _encode_choice(self, text: str) -> tuple[np.ndarray, bool]:
        known = self._choices.get(text)
        if known is None:
            if len(self._choices) >= CHOICES_KEPT:
                self._choices.clear()
            known = self._choices[text] = self._encode(text, "targets")
        return known

    def _encode(self, text: str, name: str) -> tuple[np.ndarray, bool]:
        feature = self._features[name]
        ids = feature.vocabulary.encode(text)
        if feature.add_eos:
            ids = [*ids, feature.vocabulary.eos_id]
        limit = self.limits.get(name)
        return np.asarray(ids[:limit], np.int32), limit is not None and len(ids) > limit


@dataclass(frozen=True)
class CutCounts:
    """What was cut over many examples."""

    inputs: int = 0
    choices: int = 0

    def plus(self, encoded: Encoded) -> "CutCounts":
        return replace(
            self,
            inputs=self.inputs + encoded.input_cut,
            choices=self.choices + encoded.choices_cut,
        )
