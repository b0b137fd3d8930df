"""Which pattern a job asks with on a user's own task, and jobs that begin from a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from raypft.config.load import load_job
from raypft.errors import UserError

CLOZE = "ask: '{message} : <slot>'"


@pytest.fixture
def task(tmp_path):
    """Write a task with these patterns; its override."""

    def task(*patterns: str, kind: str = "choice", fields: str = "[message]") -> str:
        listed = "".join(f"\n  {pattern}" for pattern in patterns)
        shown = f"patterns:{listed}" if patterns else ""
        (tmp_path / "mine.yaml").write_text(
            f"kind: {kind}\nfiles: mine.csv\nfields: {fields}\nlabels: [bug, praise]\n{shown}\n"
        )
        return f"task={tmp_path}/mine.yaml"

    return task


def asked(recipe: str, *words: str) -> tuple[str | None, str]:
    """The name and the text of the pattern a job asks with."""
    resolved = load_job(recipe, ["backbone=gpt2", *words])
    return resolved.job.pattern, resolved.pattern.text


@pytest.mark.parametrize(
    ("recipe", "name", "text"),
    [
        ("profit", "ask", "{message} : <slot>"),
        ("direct", "ask", "{message} : <slot>"),
        ("dp", "ask", "{message} : <slot>"),
        ("vanilla", "vanilla", "{message}"),
        ("prompt_tuning", "vanilla", "{message}"),
        ("vanilla_mt5", "vanilla", "{message}"),
        ("lora", "ask+demos", "<demos>{message} : <slot>"),
        ("fpft", "ask+demos", "<demos>{message} : <slot>"),
        ("icl", "ask+demos", "<demos>{message} : <slot>"),
        ("gnnavi_gcn", "ask+demos", "<demos>{message} : <slot>"),
    ],
)
def test_one_cloze_pattern_serves_every_recipe_without_soft_tokens(recipe, name, text, task):
    assert asked(recipe, task(CLOZE)) == (name, text)


def test_a_recipe_of_demonstrations_without_them_asks_as_the_others_do(task):
    assert asked("lora", task(CLOZE), "demos=0") == ("ask", "{message} : <slot>")


def test_a_pattern_with_demonstrations_serves_those_who_show_none(task):
    shown = "ask: '<demos>{message} : <slot>'"
    assert asked("profit", task(shown)) == ("ask", "<demos>{message} : <slot>")
    assert asked("lora", task(shown)) == ("ask", "<demos>{message} : <slot>")


def test_the_pattern_a_recipe_names_comes_first(task):
    assert asked("profit", task(CLOZE, "profit1: '{message} . <slot>'")) == ("profit1", "{message} . <slot>")
    assert asked("vanilla", task(CLOZE, "vanilla: 'Text: {message}'")) == ("vanilla", "Text: {message}")


def test_a_pattern_for_a_head_serves_vanilla_whatever_it_is_called(task):
    assert asked("vanilla", task(CLOZE, "plain: 'Text: {message}'")) == ("plain", "Text: {message}")


def test_soft_tokens_need_a_pattern_with_them(task):
    soft = "soft: '{message} <soft> <slot>'"
    assert asked("sp", task(CLOZE, soft)) == ("soft", "{message} <soft> <slot>")
    assert asked("profit", task(CLOZE, soft))[0] == "ask"
    with pytest.raises(UserError) as caught:
        asked("sp", task(CLOZE))
    assert str(caught.value) == (
        "pattern: sp needs <soft> and <slot> in a pattern; task mine has none with just that; "
        'add one to its patterns, e.g. sp: "{message} . <soft> <slot>"'
    )


def test_the_example_of_an_error_is_a_pattern_that_works(task):
    for recipe, words in (("sp", []), ("profit", []), ("lora", []), ("gnnavi_gcn", [])):
        with pytest.raises(UserError) as caught:
            asked(recipe, task("head: '{message}'"), *words)
        example = str(caught.value).partition("e.g. ")[2]
        assert asked(recipe, task("head: '{message}'", example), *words)[0] == recipe


def test_several_that_would_do_are_named(task):
    two = (CLOZE, "say: '{message} is <slot>'")
    with pytest.raises(UserError) as caught:
        asked("profit", task(*two))
    assert str(caught.value) == (
        "pattern: profit can ask with ask, say of task mine; choose one with pattern=NAME, "
        "among several recipes with profit.pattern=NAME"
    )
    with pytest.raises(UserError, match="ask and say would do with <demos> before the text"):
        asked("lora", task(*two))
    assert asked("profit", task(*two), "pattern=say")[0] == "say"
    assert asked("lora", task(*two), "pattern=say+demos")[1] == "<demos>{message} is <slot>"


def test_a_pattern_that_a_user_names_is_that_one(task):
    with pytest.raises(UserError, match='no pattern "aks"; did you mean "ask"'):
        asked("profit", task(CLOZE), "pattern=aks")


def test_tags_are_asked_with_their_own_forms(task):
    def tags(*patterns: str) -> str:
        return task(*patterns, kind="tags", fields="[tokens]")

    assert asked("vanilla_tags", tags())[1] == "{tokens}"
    assert asked("topro", tags("ask: '{tokens} <sep> {token} is <slot>'"))[0] == "ask"
    with pytest.raises(UserError, match=r"e\.g\. topro: \"\{tokens\} <sep> \{token\} : <slot>\""):
        asked("topro", tags())


def test_a_resolved_job_asks_the_same_again(task):
    from raypft.config.load import resolve

    first = load_job("lora", ["backbone=gpt2", task(CLOZE)])
    again = resolve(first.job)
    assert (again.job, again.pattern) == (first.job, first.pattern)


def test_shipped_tasks_are_asked_as_their_recipes_say():
    assert asked("profit", "task=sentiment") == (
        "profit1",
        "{text} . All in all, it was <slot> . <sep>",
    )
    assert asked("lora", "task=sst2")[0] == "gnnavi"


# jobs that begin from a recipe


def write(folder: Path, text: str, name: str = "mine") -> str:
    (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{name}.yaml")


def test_a_job_file_begins_from_a_recipe(tmp_path):
    path = write(
        tmp_path, "from: profit\ntask: sst2\nbackbone: gpt2\ntrain: {lr: 0.5}\ntrain.epochs: 2\npattern: gnnavi"
    )
    job = load_job(path).job
    recipe = load_job("profit", ["task=sst2", "backbone=gpt2", "pattern=gnnavi"]).job
    assert (job.recipe, job.train.lr, job.train.epochs) == ("mine", 0.5, 2)
    assert job.model_copy(update={"train": recipe.train, "recipe": "profit"}) == recipe
    assert (job.train.clip, job.protocol) == (recipe.train.clip, recipe.protocol)


def test_keys_of_a_job_file_may_be_dotted(tmp_path):
    nested = "method: {name: lora, rank: 4}\ntrain: {lr: 0.5, epochs: 2}\ntask: sst2\nbackbone: gpt2\npattern: gnnavi"
    dotted = (
        "method.name: lora\nmethod.rank: 4\ntrain.lr: 0.5\ntrain.epochs: 2\ntask: sst2\nbackbone: gpt2\npattern: gnnavi"
    )
    assert load_job(write(tmp_path, nested)).job == load_job(write(tmp_path, dotted)).job


def test_a_job_file_begins_from_another_beside_it(tmp_path):
    write(tmp_path, "from: lora\nmethod.rank: 4\ntask: sst2\nbackbone: gpt2", "base")
    job = load_job(write(tmp_path, "from: base.yaml\nmethod.alpha: 5"), ["train.epochs=1"]).job
    assert job.method == {"name": "lora", "rank": 4, "alpha": 5}
    assert job.train.epochs == 1


def test_a_method_named_whole_replaces_the_recipes(tmp_path):
    path = write(tmp_path, "from: lora\nmethod: {name: bitfit}\ntask: sst2\nbackbone: gpt2")
    assert load_job(path).job.method == {"name": "bitfit"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("from: profti", 'recipe: "profti" is unknown; did you mean "profit"?'),
        ("from: [profit]", "from: found ['profit']; expected the name of a recipe or the path of a job"),
        ("from: mine.yaml", "from: begins from itself"),
        (
            "recipe: lora\ntask: sst2\nbackbone: gpt2",
            'key "method" is missing; add it, or begin the file with from: lora',
        ),
        ("from: lora\ntrain: {lr: 1}\ntrain.lr: 2", 'key "train.lr" is given twice'),
    ],
)
def test_a_base_that_is_none_is_told(text, line, tmp_path):
    with pytest.raises(UserError) as caught:
        load_job(write(tmp_path, text))
    assert line in str(caught.value)


def test_three_mistakes_of_a_job_are_three_lines(tmp_path):
    path = write(tmp_path, "method: {name: lora, rnk: 4}\ntask: xnly\nbackbone: gpt2\ntrain: {lrr: 1}\nprotocol: fixd")
    with pytest.raises(UserError) as caught:
        load_job(path)
    lines = str(caught.value).splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        f'{path}: unknown key "train.lrr"',
        f'{path}: method: unknown key "rnk"',
        'protocol: "fixd" is unknown',
        'task: "xnly" is unknown',
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train.learning_rate=1"], 'unknown key "train.learning_rate"; did you mean "lr"?'),
        (["lr=1e-4"], 'unknown key "lr"; did you mean "train.lr"?'),
        (["learning_rate=1"], 'unknown key "learning_rate"; did you mean "train.lr"?'),
        (["workers=2"], 'unknown key "workers"; did you mean "resources.workers"?'),
        (["method.rank=4"], 'unknown key "rank"; there are no keys here; leave it out'),
    ],
)
def test_what_other_libraries_call_a_key_is_known(words, expected):
    with pytest.raises(UserError) as caught:
        load_job("profit", ["task=sentiment", "backbone=gpt2", *words])
    assert expected in str(caught.value)


def test_one_language_is_a_list_of_one(task):
    job = load_job("profit", ["task=sentiment", "backbone=gpt2", "train.languages=de", "test.languages=fr"]).job
    assert (job.train.languages, job.test.languages) == (["de"], ["fr"])


def test_the_only_language_of_a_task_is_trained_on(task, tmp_path):
    word = task(CLOZE)
    (tmp_path / "mine.yaml").write_text((tmp_path / "mine.yaml").read_text() + "languages: de\n")
    assert load_job("profit", ["backbone=gpt2", word]).job.train.languages == ["de"]
