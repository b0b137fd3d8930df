"""Metrics against numbers worked out by hand, the papers' formulas, scikit-learn, and the mock submission of XTREME."""

from __future__ import annotations

import itertools
import random

import pytest
from sklearn.metrics import f1_score

from raypft.errors import UserError
from raypft.tasks.kinds import KINDS
from raypft.tasks.load import load_task, task_names
from raypft.tasks.metrics import METRICS, OF_WRITTEN, _iobes, check_chunks, metric, pivot_in

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


def score(name: str, gold: list, answers: list, language: str = "en") -> float:
    """The metric of that name."""
    return metric(name)[1](gold, answers, language=language)


def noisy(share: float, seed: int = 0) -> tuple[list[list[str]], list[list[str]]]:
    """Sentences of random tags and answers, of which about `share` are random too."""
    draw = random.Random(seed)
    gold = [draw.choices(TAGS, weights=[7, 1, 1, 1, 1, 1, 1], k=draw.randint(1, 12)) for _ in range(60)]
    answers = []
    for tags in gold:
        answers.append([draw.choice(TAGS) if draw.random() < share else tag for tag in tags])
    return gold, answers


PERFECT = {
    "choice": ["a", "b"],
    "text": ["a", "b c"],
    "mlm": [[7, 8], [9]],
    "tags": [["B-PER", "I-PER", "O"], ["B-LOC"]],
    "span": [["Paris"], ["a dog", "two"]],
}


WRITTEN = ["B-PER: Anna $$ O: sleeps", "O: well"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_right_scores_100_in_every_metric_of_a_kind(kind):
    gold = PERFECT[kind]
    assert score("span_f1", WRITTEN, WRITTEN) == 100
    for name in set(KINDS[kind].metrics) - set(OF_WRITTEN):
        assert score(name, gold, [texts[-1] for texts in gold] if kind == "span" else gold) == 100, name


def test_every_metric_belongs_to_a_kind_and_every_task_names_those_of_its_kind():
    assert set(METRICS) == set().union(*(kind.metrics for kind in KINDS.values()))
    for name in task_names():
        assert set(load_task(name).metrics) <= set(load_task(name).kind.metrics)


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("O: a $$ O: b $$ B-PER: c", "O: a $$ O: b $$ B-PER: c", 100),
        ("O: a $$ O: b", "O: b $$ O: a", 100),  # the place of a pair does not count
        ("O: a $$ O: a", "O: a", 100 * 2 / 3),  # how often it stands there does
        ("O: a $$ O: b", "O: a $$ B-PER: b $$ O: c", 100 * 2 / 5),
        ("O: 10:30 $$ O: a", "O: a", 100),  # two colons: no pair, of gold either
        ("O: a", "O a $$ nonsense", 0),
        ("O: a", "", 0),
    ],
)
def test_span_f1_counts_pairs_of_tag_and_word(gold, answer, expected):
    """By hand: 2 hits / (pairs of gold + pairs of the answer)."""
    assert score("span_f1", [gold], [answer]) == pytest.approx(expected)


def test_span_f1_is_taken_over_all_sentences():
    assert score("span_f1", ["O: a $$ O: b", "B-PER: c"], ["O: a", "O: c"]) == pytest.approx(100 * 2 / 5)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(UserError) as caught:
        metric("entity_f", KINDS["tags"].metrics)
    assert str(caught.value).startswith(
        'metric: "entity_f" is unknown; did you mean "entity_f1"? known: entity_f1, span_f1, token_accuracy'
    )
    assert metric("accuracy")[0] == "accuracy@1"


@pytest.mark.parametrize("returned", ["True", "'50'", "float('nan')", "float('inf')", "None"])
def test_what_an_own_metric_returns_must_be_a_number(returned, tmp_path):
    own = tmp_path / "mine.py"
    own.write_text(f"def metric(gold, answers, language='en'):\n    return {returned}\n")
    _, function = metric(str(own), KINDS["tags"].metrics)
    with pytest.raises(UserError, match="expected a number, percent from 0 to 100"):
        function(["a"], ["a"])


def test_an_own_metric_is_a_function(tmp_path):
    (tmp_path / "mine.py").write_text("metric = 50.0\n")
    with pytest.raises(UserError, match="metric is no function"):
        metric(str(tmp_path / "mine.py"), KINDS["tags"].metrics)


def test_accuracy_counts_case():
    assert score("accuracy", ["Yes", "no", "no", "no"], ["yes", "no", "no", "NO"]) == 50


def test_gold_and_answers_of_different_length_are_refused():
    for name, gold, answers in (
        ("accuracy", ["a", "b"], ["a"]),
        ("token_accuracy", [["O", "O"]], [["O"]]),
        ("f1", [["a"], ["b"]], ["a"]),
    ):
        with pytest.raises(ValueError, match="zip"):
            score(name, gold, answers)


@pytest.mark.parametrize("told", [{"pivot": "de"}, {"pivot": None}])
def test_the_pivot_is_the_one_a_result_names_and_english_in_an_older_one(told):
    scores = {"scores": {"de": 1.0, "eng_Latn": 2.0}}
    assert pivot_in({**scores, **told}) == told["pivot"]
    assert pivot_in(scores) == "eng_Latn"
    assert pivot_in({"scores": {"de": 1.0}}) is None


# tags


def test_entity_f1_counts_whole_entities():
    gold = [["O", "B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "I-ORG"]]
    answers = [["O", "B-PER", "I-PER", "O", "O"], ["B-ORG", "O"]]
    # 3 gold entities, 2 answered, 1 of them right: P 1/2, R 1/3
    assert score("entity_f1", gold, answers) == pytest.approx(40.0)
    # a wrong type is a wrong entity; an I- after another type begins an entity
    assert score("entity_f1", [["B-PER", "I-PER"]], [["B-LOC", "I-LOC"]]) == 0
    assert score("entity_f1", [["B-PER", "I-LOC"]], [["B-PER", "B-LOC"]]) == 100


def test_entity_f1_of_udpos_joins_neighbours_of_one_tag():
    assert score("entity_f1", [["NOUN", "NOUN", "VERB"]], [["NOUN", "VERB", "VERB"]]) == 0
    assert score("token_accuracy", [["NOUN", "NOUN", "VERB"]], [["NOUN", "VERB", "VERB"]]) == pytest.approx(200 / 3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_token_f1_is_scikit_learns_weighted_f1_and_topro_exchanges_its_arguments(share):
    gold, answers = noisy(share)
    flat, said = list(itertools.chain.from_iterable(gold)), list(itertools.chain.from_iterable(answers))
    assert score("token_f1", gold, answers) == pytest.approx(100 * f1_score(flat, said, average="weighted"))
    assert score("topro_official", gold, answers) == pytest.approx(100 * f1_score(said, flat, average="weighted"))
    assert score("token_f1", gold, answers) != pytest.approx(score("topro_official", gold, answers))


def test_a_tagger_that_says_o_only_scores_by_the_formulas_of_the_fact_sheet():
    gold = [["O"] * 8 + ["B-PER", "I-PER", "I-PER"], ["B-LOC", "I-LOC", "B-ORG", "I-ORG"]]
    p = 8 / 15
    answers = [["O"] * len(tags) for tags in gold]
    scores = {name: score(name, gold, answers) for name in KINDS["tags"].metrics if name not in OF_WRITTEN}
    assert scores == {
        "entity_f1": 0,
        "token_accuracy": pytest.approx(100 * p),
        "token_f1": pytest.approx(100 * p * 2 * p / (1 + p)),
        "topro_official": pytest.approx(100 * 2 * p / (1 + p)),
        "topro_mt5_official": pytest.approx(100 * 2 * p / (1 + p)),
    }
    # the printed case: 53.3 % O gives 69.5 by both of ToPro's metrics and 37.1 in the right order
    assert (round(scores["topro_official"], 0), round(scores["token_f1"], 0)) == (70, 37)


def test_the_mt5_metric_is_2a_over_1_plus_a_and_takes_a_part_for_the_whole():
    gold, answers = [["NOUN", "VERB", "ADJ", "DET"]], [["NOUN", "VERB", "ADV", "ADV"]]
    assert score("topro_mt5_official", gold, answers) == pytest.approx(100 * 2 * 0.5 / 1.5)
    assert score("topro_mt5_official", [["O", "X"]], [["B-LOC", "AUX"]]) == 100
    assert score("topro_mt5_official", [["O", "X"]], [["B-PER", "NOUN"]]) == 0


# answers


@pytest.mark.parametrize(
    ("gold", "answer", "exact", "f1"),
    [
        (["Denver Broncos", "The Denver Broncos!"], "the denver broncos", 100, 100),
        (["the cat sat"], "cat sat down", 0, 80),
        (["10,000"], "10000", 100, 100),
        (["a b"], "b c", 0, 200 / 3),  # the article goes: "b" against "b c"
        (["an apple a day"], "the apple day", 100, 100),
        (["cat cat"], "cat", 0, 200 / 3),
        (["Paris"], "London", 0, 0),
        (["the"], "", 100, 0),  # nothing is left of either: equal, yet no word in common
        (["“quoted”"], "quoted", 0, 0),  # only ASCII punctuation goes
    ],
)
def test_squad_scores(gold, answer, exact, f1):
    assert score("exact_match", [gold], [answer]) == exact
    assert score("f1", [gold], [answer]) == pytest.approx(f1)


def test_squad_scores_are_means_over_questions_of_the_best_gold_answer():
    gold, answers = (
        [["Saint Bernadette"], ["the Main Building", "Main Building"], ["1842"]],
        ["Bernadette", "main building", "1844"],
    )
    assert score("exact_match", gold, answers) == pytest.approx(100 / 3)
    assert score("f1", gold, answers) == pytest.approx((200 / 3 + 100 + 0) / 3)


@pytest.mark.parametrize(
    ("language", "gold", "answer", "exact", "f1"),
    [
        ("en", "the “quoted” word", "quoted word", 100, 100),
        ("es", "las Islas Canarias", "islas canarias", 100, 100),
        ("de", "dem Haus", "das Haus", 100, 100),
        ("de", "the Haus", "Haus", 0, 200 / 3),  # English articles stay
        ("vi", "những con mèo", "con mèo", 100, 100),
        ("hi", "एक घर", "घर", 0, 200 / 3),
        ("hi", "घर।", "घर", 100, 100),
        ("ar", "الطرق الترابية", "طرق ترابية", 100, 100),
        ("zh", "电化电池", "电池", 0, 200 * 2 / 6),
        ("zh", "2008年 北京", "2008 年北京", 100, 100),  # blanks beside characters do not count
        ("zh", "《红楼梦》", "红楼梦", 100, 100),
        ("zh", "GPU电", "GPT电", 0, 50),  # Latin is not cut at characters
        ("ar", "والطرق", "و طرق", 100, 100),  # MLQA takes its article out of the middle of words, too
    ],
)
def test_mlqa_scores_know_the_language(language, gold, answer, exact, f1):
    assert score("mlqa_exact_match", [[gold]], [answer], language) == exact
    assert score("mlqa_f1", [[gold]], [answer], language) == pytest.approx(f1)


MOCK = {
    "ar": [("الطرق الترابية", "الطرق الترابية"), ("شمال شرق", "شمال شرق")],
    "de": [("3050 und 3350 Meter", "3050 und 3350")],
    "en": [("had sustained skin, liver, and respiratory injuries", "had sustained skin,")],
    "es": [
        (
            "unas estructuras en forma de abanico que seguían un patrón de hojas, lenguas y lóbulos",
            "unas estructuras en",
        )
    ],
    "hi": [("उत्तर पूर्व", "उत्तर पूर्व")],
    "vi": [("Đài Loan", "Đài Loan"), ("Khách Gia", "Khách Gia")],
    "zh": [("电化电池", "电化电池")],
}
"""Answers and predictions of XTREME's mock submission to MLQA."""


def test_the_mock_submission_to_mlqa_scores_what_xtreme_says():
    means = []
    for name in ("mlqa_exact_match", "mlqa_f1"):
        scores = []
        for language, pairs in MOCK.items():
            scores.append(score(name, [[gold] for gold, _ in pairs], [answer for _, answer in pairs], language))
        means.append(sum(scores) / len(scores))
    assert means == pytest.approx([57.142857142857146, 81.76870748299321])


def test_a_language_that_mlqa_does_not_have_is_one_line():
    with pytest.raises(UserError) as caught:
        score("mlqa_f1", [["a"]], ["a"], "sw")
    assert (
        str(caught.value)
        == 'metric: MLQA has no normalisation for "sw"; known: ar, de, en, es, hi, vi, zh; use exact_match or f1'
    )
    assert set(load_task("mlqa").languages) == {"ar", "de", "en", "es", "hi", "vi", "zh"}


SCHEMES = {
    "IOB1": ("I-P I-P O I-P B-P I-L", "B-P I-P O B-P B-P B-L"),
    "IOBES": ("B-P E-P O S-P S-P S-L", "B-P I-P O B-P B-P B-L"),
    "BILOU": ("B-P L-P O U-P U-P U-L", "B-P I-P O B-P B-P B-L"),
    "BMES": ("B-P M-P E-P S-P S-P S-L", "B-P I-P I-P B-P B-P B-L"),
    "BMEOW": ("B-P M-P E-P O W-P W-P", "B-P I-P I-P O B-P B-P"),
    "places alone": ("B M E O S S", "B I I O B B"),
}
"""A sentence by each scheme, and by BIO."""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_of_every_scheme_are_those_of_bio(scheme):
    written, bio = (text.split() for text in SCHEMES[scheme])
    check_chunks(written)
    assert score("entity_f1", [written], [bio]) == 100
    joined = [tag.replace("B", "I") if i else tag for i, tag in enumerate(bio)]
    assert score("entity_f1", [written], [joined]) < 100


def test_an_answer_that_is_no_tag_is_left_as_it_was_written():
    """Text-to-text models say what they like."""
    given = ["MISC", "LOC", "U", "", "L-P", "W-", "o"]
    assert _iobes(given) == ["MISC", "LOC", "S", "", "E-P", "S-", "o"]


def test_neighbours_of_one_type_are_two_entities():
    assert score("entity_f1", [["U-P", "U-P", "O"]], [["B-P", "L-P", "O"]]) == 0
    assert score("entity_f1", [["S-P", "S-P", "O"]], [["B-P", "E-P", "O"]]) == 0
    assert score("entity_f1", [["W-P", "W-P", "O"]], [["U-P", "U-P", "O"]]) == 100


@pytest.mark.parametrize(
    "names", [["LOC-B", "LOC-I", "O"], ["PER", "LOC", "O"], ["B_PER", "O"], ["b-per", "o"], ["B-PER", "PER"], ["B-"]]
)
def test_tags_that_seqeval_would_misread_are_refused(names):
    with pytest.raises(UserError, match=r"entity_f1 reads tags such as B-PER, I-PER and O .* found ") as caught:
        check_chunks(names)
    assert f'"{next(name for name in names if name not in ("O", "B-PER"))}"' in str(caught.value)


def test_a_task_whose_entities_cannot_be_read_is_refused_and_udpos_is_not(tmp_path):
    text = (
        "about: mine\nkind: tags\nfields: {tokens: tokens}\nlabel: {names: [LOC-B, O]}\nlanguages: [en]\n"
        "metric: entity_f1\nsources: {files: {files: {train: x}}}\npatterns: {p: {text: '{tokens}', source: mine}}\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r'mine.yaml: entity_f1 reads tags such as .* found "LOC-B"; rename it'):
        load_task(str(path))
    path.write_text(text.replace("entity_f1", "token_f1"))
    assert load_task(str(path)).metric == "token_f1"
    assert "entity_f1" in load_task("udpos").metrics


@pytest.mark.parametrize("name", ["exact_match", "f1", "mlqa_exact_match", "mlqa_f1"])
@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ([], "", 100),
        ([], "the cat", 0),
        ([], "The.", 100),  # nothing is left of it: SQuAD 2.0's script compares what is left
        (["cat"], "", 0),
        (["cat"], "the cat", 100),
    ],
)
def test_a_question_without_an_answer_is_answered_right_by_nothing(name, gold, answer, expected):
    """As SQuAD 2.0's evaluation counts: 1 where neither has words, 0 where one has."""
    assert score(name, [gold], [answer]) == expected
    assert score(name, [gold, ["cat"]], [answer, "cat"]) == (expected + 100) / 2
