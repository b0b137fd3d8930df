"""Transfer: subwords and scripts counted by hand, correlations of known tables, every fault of a distance table."""

from __future__ import annotations

import json

import pytest
from test_analyse import read

from raypft.analysis.transfer import Texts, _correlated, read_distances, script_of

FAST = {"epochs": 1, "lr": 1e-2, "batch_size": 8, "max_tokens": 64}


@pytest.mark.parametrize(
    ("texts", "script"),
    [
        (["Das ist gut.", "ja"], "LATIN"),
        (["это хорошо", "OK"], "CYRILLIC"),
        (["这部电影很好 ok"], "CJK"),
        (["映画はとてもよかったです"], "HIRAGANA"),
        (["यह अच्छा है"], "DEVANAGARI"),
        (["ดีมาก"], "THAI"),
        (["123 !"], ""),
    ],
)
def test_a_script_is_that_of_most_letters(texts, script):
    assert script_of(texts) == script


def test_measures_of_texts():
    pivot = Texts({"1": 4, "2": 6}, words=5, characters=40, script="LATIN")
    other = Texts({"1": 10, "2": 5}, words=6, characters=30, script="CYRILLIC")
    assert other.measures(pivot) == {
        "script": "CYRILLIC",
        "fertility": 2.5,
        "subwords a character": 0.5,
        "premium": 1.5,
    }
    unspaced = Texts({"1": 9, "3": 9}, words=2, characters=18, script="THAI").measures(pivot)
    assert (unspaced["fertility"], unspaced["premium"]) == (None, None), "no blanks between words; other rows"
    assert pivot.measures(None)["premium"] is None
    assert Texts({"1": 0}, words=0, characters=0, script="").measures(pivot)["subwords a character"] is None


def table(pairs, **more) -> list[dict]:
    return [{"run": "a", "pivot": False, "score": score, "d": value, **more} for value, score in pairs]


def test_correlations_of_known_tables():
    falling = table([(1, 90), (2, 80), (3, 70), (4, 20)])
    found = _correlated("a", "d", [*falling, *table([(0, 0)], pivot=True), *table([(None, 5)])])
    assert (found["languages"], found["spearman"]) == (4, pytest.approx(-1))
    mean = 65
    covariance = sum((value - 2.5) * (score - mean) for value, score in [(1, 90), (2, 80), (3, 70), (4, 20)])
    spread = (5 * sum((score - mean) ** 2 for score in (90, 80, 70, 20))) ** 0.5
    assert found["pearson"] == pytest.approx(covariance / spread)
    for few in (falling[:3], table([(1, 5), (2, 5), (3, 5), (4, 5)])):
        assert _correlated("a", "d", few)["spearman"] is None


def test_a_run_beside_its_subwords_and_given_distances(ran, finish, tmp_path):
    """The toy's tokenizer has a token a word, the same text in both languages."""
    run = ran("dp", "full", "xlmr", seeds=[3, 4], train=FAST)
    given = tmp_path / "distances.csv"
    given.write_text("language,syntax,genes\nen,0,0\nde,0.25,\nfr,1,1\n")
    assert finish("analyse", "transfer", run, f"distances={given}", "--out", tmp_path)[0] == 0
    rows = {row["language"]: row for row in read(tmp_path / "analysis-transfer" / "transfer.csv")}
    assert sorted(rows) == ["de", "en"]
    scores = [json.loads((run / f"seed-{seed}" / "result.json").read_text())["scores"] for seed in (3, 4)]
    for language, row in rows.items():
        assert float(row["score"]) == pytest.approx(sum(of_seed[language] for of_seed in scores) / 2)
        assert (float(row["fertility"]), float(row["premium"]), row["script"]) == (1, 1, "LATIN")
        assert row["pivot"] == str(language == "en")
    assert (rows["de"]["syntax"], rows["de"]["genes"], rows["en"]["genes"]) == ("0.25", "", "0.0")
    found = read(tmp_path / "analysis-transfer" / "correlations.csv")
    assert [row["measure"] for row in found] == ["fertility", "subwords a character", "premium", "syntax", "genes"]
    assert {row["spearman"] for row in found} == {""}


BAD = {
    "no file": (None, "can't be read: "),
    "no language": ("code,d\nen,1\n", "has the columns code, d and 1 rows; expected language and others, of numbers"),
    "empty": ("", "has the columns none and 0 rows"),
    "no rows": ("language,d\n", "has the columns language, d and 0 rows"),
    "a column twice": ("language,d,d\nen,1,2\n", "has the columns language, d, d and 1 rows"),
    "no number": ("language,d\nen,far\n", 'line 2: d: found "far"; expected a number, or nothing'),
    "not finite": ("language,d\nen,1\nde,nan\n", 'line 3: d: found "nan"'),
    "twice": ("language,d\nen,1\nen,2\n", "line 3: en stands there twice"),
    "a cell too many": ("language,d\nen,1,2\n", "line 2: found another number of cells than in the first line, 2"),
    "a cell too few": ("language,d,e\nen,1\n", "line 2: found another number of cells"),
    "our column": ("language,score\nen,1\n", "has a column score, which the table has already"),
    "other languages": ("language,d\nen_US,1\n", "none of its languages is tested in"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_table_that_is_none_is_one_line(case, ran, finish, tmp_path):
    text, told = BAD[case]
    given = tmp_path / "distances.csv"
    if text is not None:
        given.write_text(text)
    run = ran("dp", "full", "xlmr", seeds=[3, 4], train=FAST)
    code, out, err = finish("analyse", "transfer", run, f"distances={given}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_a_table_as_excel_writes_it(tmp_path):
    (tmp_path / "d.csv").write_bytes("﻿language,d\r\nsw,1.5\r\n".encode())
    assert read_distances(str(tmp_path / "d.csv")) == {"sw": {"d": 1.5}}
