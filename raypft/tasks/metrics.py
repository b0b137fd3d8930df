"""Metrics by name and version: gold and answers of one language in, percent out. No torch here.

Of choice and text tasks gold and answers are label names or texts; of tags tasks a list of tags per sentence; of span
tasks gold is a list of answer texts and the answer one text.
"""

from __future__ import annotations

import functools
import math
import re
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, cast

from raypft.catalogue import is_own, load_own, own_hash, own_name, told
from raypft.errors import UserError, nearest

ENGLISH = ("en", "eng_Latn")
"""The codes of English, the pivot language of a task that names none."""
WORD_SEPARATOR = " $$ "
"""Between the words of a tagged sentence that is written out as text (ToPro, vanilla mT5)."""
ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "hi": None,
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": "ال",  # MLQA's other alternative, with ^ at its end, can never match
    "zh": None,
}
"""What MLQA takes out of an answer, by language."""

CHUNK = re.compile("O|[BIESLUMW](-.+)?")
"""A tag of BIO, IOB1 (whose B only parts neighbours), IOBES, BILOU or BMES: a place in an entity, then its type."""
PLACES = {"L": "E", "U": "S", "M": "I", "W": "S"}
"""Places of BILOU and BMES as IOBES calls them, which seqeval knows."""
UNIVERSAL = set(re.findall(r"\w+", "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X"))
"""The part-of-speech tags of Universal Dependencies."""

Tags = Sequence[Sequence[str]]


def accuracy(gold: Sequence[str], answers: Sequence[str], language: str = "en") -> float:
    """Share of equal pairs, in percent; 0 to 100."""
    return 100.0 * sum(g == a for g, a in zip(gold, answers, strict=True)) / len(gold)


def entity_f1(gold: Tags, answers: Tags, language: str = "en") -> float:
    """F1 of whole entities, micro-averaged, by seqeval as XTREME uses it; 0 to 100. Its tags: `check_chunks`.

    Of universal part-of-speech tags (UDPOS) seqeval takes the first letter for the chunk tag and neighbours of one tag
    for one entity; XTREME's UDPOS scores are of this kind.
    """
    from seqeval.metrics import f1_score  # noqa: PLC0415  (brings scikit-learn)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tags that are no entities, sentences without any
        score = f1_score([_iobes(tags) for tags in gold], [_iobes(tags) for tags in answers])
        return 100.0 * float(cast(float, score))  # a list only where every class is asked for


def _iobes(tags: Sequence[str]) -> list[str]:
    return [PLACES.get(tag[:1], tag[:1]) + tag[1:] if tag[1:2] in ("", "-") else tag for tag in tags]


def check_chunks(names: Iterable[str]) -> None:
    """Whether entities can be read from tags of these names; seqeval would read others as it can.

    Raises:
        UserError: a tag that is neither O nor a place and a type (B-PER), and not all are universal part-of-speech
            tags.
    """
    odd = next((name for name in names if not CHUNK.fullmatch(name)), None)
    if odd is not None and not set(names) <= UNIVERSAL:
        raise UserError(
            f'entity_f1 reads tags such as B-PER, I-PER and O (BIO, IOBES, BILOU); found "{odd}"; '
            "rename it in the source's labels, or use token_f1"
        )


def token_accuracy(gold: Tags, answers: Tags, language: str = "en") -> float:
    """Share of words with the right tag, in percent; 0 to 100."""
    pairs = _words(gold, answers)
    return 100.0 * sum(g == a for g, a in pairs) / len(pairs)


def token_f1(gold: Tags, answers: Tags, language: str = "en") -> float:
    """F1 of each tag, O included, averaged with the tag's share of gold words as weight; percent, 0 to 100."""
    return _weighted_f1(_words(gold, answers))


def topro_official(gold: Tags, answers: Tags, language: str = "en") -> float:
    """`token_f1` with gold and answers exchanged: weights are the shares of answered tags; 0 to 100.

    Source: boleima/ToPro, run_prompt_tag.py, the numbers of its encoder models. A tagger that says O only scores
    2p/(1+p) where p is the share of O in gold; `entity_f1` gives it 0.
    """
    return _weighted_f1([(a, g) for g, a in _words(gold, answers)])


def topro_mt5_official(gold: Tags, answers: Tags, language: str = "en") -> float:
    """2a/(1+a) where a is the share of words whose gold tag is part of the answered text; 0 to 100.

    Source: boleima/ToPro, metrics.py, the numbers of its mT5 models: no answer ever counts as a false positive, so
    precision is 1; gold O is found in "B-LOC" and gold X in "AUX".
    """
    pairs = _words(gold, answers)
    share = sum(g in a for g, a in pairs) / len(pairs)
    return 100.0 * 2 * share / (1 + share)


def span_f1(gold: Sequence[str], answers: Sequence[str], language: str = "en") -> float:
    """F1 over the pairs of tag and word in texts "TAG: word $$ TAG: word", wherever in its text a pair stands; percent,
    0 to 100. What is not one tag and one word around one colon is no pair, of gold as of answers.

    Source: boleima/ToPro, metrics.py, the numbers of its vanilla mT5 rows. Gold is the target as it was cut for
    training: what was cut off is not missed.
    """
    hits = asked = said = 0
    for gold_text, answer_text in zip(gold, answers, strict=True):
        right, given = _pairs(gold_text), _pairs(answer_text)
        hits += (right & given).total()
        asked, said = asked + right.total(), said + given.total()
    return 100.0 * 2 * hits / (asked + said) if hits else 0.0


def _pairs(text: str) -> Counter[tuple[str, ...]]:
    pairs = (part.split(":") for part in text.split(WORD_SEPARATOR) if part.count(":") == 1)
    return Counter(tuple(map(str.strip, pair)) for pair in pairs)


def exact_match(gold: Tags, answers: Sequence[str], language: str = "en") -> float:
    """Share of answers equal to a gold one after SQuAD v1.1's normalisation (English in every language); 0 to 100."""
    return _best(lambda g, a: float(g == a), _squad, gold, answers)


def f1(gold: Tags, answers: Sequence[str], language: str = "en") -> float:
    """Mean word overlap with the nearest gold answer after SQuAD v1.1's normalisation; 0 to 100."""
    return _best(_overlap, _squad, gold, answers)


def mlqa_exact_match(gold: Tags, answers: Sequence[str], language: str = "en") -> float:
    """`exact_match` after MLQA's normalisation, which knows the language's articles and cuts Chinese at characters.

    Raises:
        UserError: a language that MLQA does not have.
    """
    return _best(lambda g, a: float(g == a), functools.partial(_mlqa, language=language), gold, answers)


def mlqa_f1(gold: Tags, answers: Sequence[str], language: str = "en") -> float:
    """`f1` after MLQA's normalisation, see `mlqa_exact_match`.

    Raises:
        UserError: a language that MLQA does not have.
    """
    return _best(_overlap, functools.partial(_mlqa, language=language), gold, answers)


def _words(gold: Tags, answers: Tags) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for tags, answered in zip(gold, answers, strict=True):
        pairs += zip(tags, answered, strict=True)
    return pairs


def _weighted_f1(pairs: Sequence[tuple[str, str]]) -> float:
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    both = Counter(a for a, b in pairs if a == b)
    # F1 of a tag is 2 hits / (its count in both); its weight its share of the first
    return 100.0 * sum(count * 2 * both[tag] / (count + second[tag]) for tag, count in first.items()) / len(pairs)


def _best(
    score: Callable[[list[str], list[str]], float],
    normal: Callable[[str], list[str]],
    gold: Tags,
    answers: Sequence[str],
) -> float:
    """The mean of the best scores against the gold answers; a question without any is answered right by no words, as
    SQuAD 2.0's evaluation has it (Rajpurkar et al. 2018)."""
    best = []
    for texts, answer in zip(gold, answers, strict=True):
        said = normal(answer)
        best.append(max(score(normal(text), said) for text in texts) if texts else float(not said))
    return 100.0 * sum(best) / len(gold)


def _overlap(gold: list[str], answer: list[str]) -> float:
    common = (Counter(gold) & Counter(answer)).total()
    return 2.0 * common / (len(gold) + len(answer)) if common else 0.0


def _squad(text: str) -> list[str]:
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _mlqa(text: str, language: str) -> list[str]:
    if language not in ARTICLES:
        known = ", ".join(sorted(ARTICLES))
        raise UserError(f'metric: MLQA has no normalisation for "{language}"; known: {known}; use exact_match or f1')
    shown = (c for c in text.lower() if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    bare = "".join(shown)
    articles = ARTICLES[language]
    words = (re.sub(articles, " ", bare) if articles else bare).split()
    if language != "zh":
        return words
    pieces: list[str] = []
    for word in words:
        pieces += re.findall("[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+", word)
    return pieces


Metric = Callable[..., float]
OF_WRITTEN = ("span_f1",)
"""Metrics of whole texts, which only a readout that writes sentences with their tags has."""
METRICS: dict[str, tuple[int, Metric]] = {
    "accuracy": (1, accuracy),
    "entity_f1": (1, entity_f1),
    "token_accuracy": (1, token_accuracy),
    "token_f1": (1, token_f1),
    "topro_official": (1, topro_official),
    "topro_mt5_official": (1, topro_mt5_official),
    "span_f1": (1, span_f1),
    "exact_match": (1, exact_match),
    "f1": (1, f1),
    "mlqa_exact_match": (1, mlqa_exact_match),
    "mlqa_f1": (1, mlqa_f1),
}


def metric(name: str, known: Iterable[str] = METRICS) -> tuple[str, Metric]:
    """The metric's id with its version, and its function (gold, answers, language="en") -> percent.

    Args:
        name: of a metric here, or a user's own file or module with a function `metric`; its version is then a hash of
        the file. known: the names to choose from, such as a task kind's.

    Raises:
        UserError: unknown name (the nearest is named), or the user's file can't be used.
    """
    if is_own(name):
        return f"{own_name(name)}@{own_hash('metric', name)[:8]}", _own_metric(name)
    if name not in known:
        raise UserError(f'metric: "{name}" is unknown; {nearest(name, known)}')
    version, function = METRICS[name]
    return f"{name}@{version}", function


def pivot_in(result: Mapping[str, Any]) -> str | None:
    """The pivot language that a result names; English in one of a version that named none."""
    return result["pivot"] if "pivot" in result else pivot_of(result["scores"])


def mean_without(pivot: str | None) -> str:
    """What tables call the mean over the languages that are not the pivot."""
    return f"mean without {'en' if pivot is None or pivot in ENGLISH else pivot}"


def _own_metric(name: str) -> Metric:
    """A user's own metric, which may raise or return anything."""
    function = load_own("metric", name, "metric")
    if not callable(function):
        raise UserError(f"metric: {name}: metric is no function (gold, answers, language) -> percent")

    def score(gold: Sequence[Any], answers: Sequence[Any], language: str = "en") -> float:
        try:
            percent = function(gold, answers, language=language)
        except UserError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise UserError(f"metric: {name} failed: {told(error)}") from None
        if isinstance(percent, bool) or not isinstance(percent, Real) or not math.isfinite(percent):
            raise UserError(f"metric: {name} returned {percent!r}; expected a number, percent from 0 to 100")
        return float(percent)

    return score


def pivot_of(languages: Iterable[str]) -> str | None:
    """English, as these languages call it, None where it is not among them."""
    return next((language for language in languages if language in ENGLISH), None)
