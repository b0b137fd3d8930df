"""Macro F1: the F1 of each label, averaged without weights; percent, 0 to 100."""

from collections import Counter
from collections.abc import Sequence


def metric(gold: Sequence[str], answers: Sequence[str], language: str = "en") -> float:
    """F1 of a label is 2 hits / (its count in gold + its count in answers)."""
    right = Counter(label for label, answer in zip(gold, answers, strict=True) if label == answer)
    in_gold, answered = Counter(gold), Counter(answers)
    each = [2 * right[label] / (in_gold[label] + answered[label]) for label in in_gold]
    return 100 * sum(each) / len(each)
