"""Jobs: overrides, one-line errors, and a cell key that changes with the science and with nothing else."""

from __future__ import annotations

import jsonschema
import pytest
import yaml

from raypft.config.job import Job
from raypft.config.load import RECIPES, load_job, make_job, recipe_names
from raypft.contract import tiny
from raypft.errors import UserError
from raypft.runs import prepare as prepare_module
from raypft.runs.prepare import cell_keys, prepare
from raypft.tasks.load import FOLDER

NLI = ["task=xnli", "backbone=mbert"]
SST2 = ["task=sst2", "backbone=gpt2"]
MLM = ["task=mlmtext", "backbone=mbert"]


def natural(recipe: str) -> list[str]:
    """The task and backbone a recipe is for: GNNavi's pattern asks causal models, written answers come from T5."""
    text = (RECIPES / f"{recipe}.yaml").read_text()
    if recipe == "ticket_search":
        return MLM
    if "pattern: gnnavi" in text:
        return SST2
    if "name: span" in text:
        return ["task=xquad", "backbone=xlmr-base"]
    if "topro" in text or "_tags" in recipe or "_mt5" in recipe:
        return ["task=udpos", "backbone=mt5-base" if "_mt5" in recipe else "backbone=xlmr-base"]
    return NLI


TASK_OF = {name: natural(name) for name in recipe_names()}


def job(*overrides: str, recipe: str = "profit") -> Job:
    """A recipe with its natural task and backbone, and overrides."""
    return load_job(recipe, [*TASK_OF[recipe], *overrides]).job


def line_of(*overrides: str, recipe: str = "profit") -> str:
    """The one line of the error."""
    with pytest.raises(UserError) as caught:
        job(*overrides, recipe=recipe)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_with_the_task_it_is_for(name):
    made = job(recipe=name)
    assert made.recipe == name
    assert made.source


# overrides


def test_an_override_reaches_a_nested_key_and_leaves_its_neighbours():
    before, after = job(), job("train.lr=3e-4", "train.languages=[en, de]", "zero.stage=2", "resources.workers=1")
    assert (after.train.lr, after.train.languages, after.zero.stage) == (3e-4, ["en", "de"], 2)
    assert after.train.model_copy(update={"lr": before.train.lr, "languages": before.train.languages}) == before.train


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("2.5e-05", 2.5e-5), ("0.1", 0.1), ("1", 1.0)]
)
def test_numbers_are_read_as_researchers_write_them(text, value):
    assert job(f"train.lr={text}").train.lr == value


def test_a_name_with_an_e_between_digits_stays_a_name():
    assert job("storage=1e-runs", "backbone=./3e").storage == "1e-runs"


def test_seeds_are_a_count_or_a_list_of_distinct_numbers():
    assert (job("seeds=3").seeds, job("seeds=[7, 9]").seeds) == ([0, 1, 2], [7, 9])
    assert line_of("seeds=[1, 1]").startswith("profit: seeds: found [1, 1]; ")
    assert line_of("seeds=0").startswith("profit: seeds: found 0; ")


@pytest.mark.parametrize("seeds", ["[18446744073709551616]", "[9223372036854775808]", "[-1]", "-3", "100000000000"])
def test_seeds_that_no_generator_takes_are_refused(seeds):
    assert line_of(f"seeds={seeds}").startswith(f"profit: seeds: found {seeds}; ")
    assert job("seeds=[9223372036854775807]").seeds == [(1 << 63) - 1]


@pytest.mark.parametrize("key", ["train.languages", "test.languages"])
def test_a_language_is_named_once(key):
    assert line_of(f"{key}=[en, en]") == f'profit: {key}: "en" stands there twice; keep one of them'


def test_some_language_is_trained_on():
    assert line_of("train.languages=[]").startswith("profit: train.languages: found none; expected some")
    assert line_of("test.languages=[]").startswith("profit: test.languages: found []; ")


@pytest.mark.parametrize("name", ["a/b", "../x", '"a\\nb"', '""'])
def test_a_recipe_begins_a_folders_name(name):
    assert line_of(f"recipe={name}").startswith("profit: recipe: found ")


@pytest.mark.parametrize("override", ["train.lr=inf", "train.lr=1e400", "train.weight_decay=inf", "train.clip=inf"])
def test_numbers_are_finite(override):
    assert line_of(override).endswith("input should be a finite number")


@pytest.mark.parametrize("key", ["shots", "train.epochs", "train.lr", "test.limit", "resources.workers", "seeds"])
def test_a_truth_value_is_no_number(key):
    assert line_of(f"{key}=yes").startswith(f"profit: {key}: found True; ")


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("method={name: lora, rank: true}", "profit: method: rank: found True; "),
        ("method={name: prefix, std: .inf}", "profit: method: std: found inf; "),
        ("readout={name: span, longest: yes}", "profit: readout: longest: found True; "),
    ],
)
def test_numbers_of_methods_and_readouts_are_such_too(override, start):
    assert line_of(override).startswith(start)


def test_a_code_that_yaml_takes_for_a_truth_value_is_to_be_quoted():
    line = line_of("train.languages=[no]")
    assert line.endswith("train.languages.0: found False; input should be a valid string; write it in quotes")


def test_a_key_that_stands_twice_in_a_value_is_refused():
    line = line_of("method={name: lora, rank: 4, rank: 8}")
    assert line.startswith('override "method={name: lora, rank: 4, rank: 8}": key "rank" stands twice in one mapping')


def test_a_method_may_be_named_alone_or_with_its_keys():
    assert job("method=soft_prompt", "pattern=sp").method == {"name": "soft_prompt"}
    assert job("method=soft_prompt", "method.length=8", "pattern=sp").method == {"name": "soft_prompt", "length": 8}
    assert job("readout.mode=raw_piece").readout == {"name": "verbalizer", "mode": "raw_piece"}


def test_overrides_do_not_reach_the_recipe_or_the_next_job():
    job("train.lr=3e-4", "method.name=frozen")
    assert (job().train.lr, job().method) == (1e-5, {"name": "full"})


# errors


ERRORS = {
    "resources.min_workers: found 2 with workers 1; expected at most as many": "resources={workers: 1, min_workers: 2}",
    "profit: train.lr: found 'abc'; input should be a valid number, unable to parse string as a number": "train.lr=abc",
    "profit: train.epochs: found -1; input should be greater than or equal to 0": "train.epochs=-1",
    "profit: train.cache_folder: found 's3://kept'; value error, expected a folder, whose files can be "
    "mapped into memory, found a URI": "train.cache_folder=s3://kept",
    "profit: dev.rows: found 'ful'; input should be 'full', 'k_shot' or 'none'": "dev.rows=ful",
    'profit: unknown key "shot"; did you mean "shots"? known: backbone, data, demos, dev, method, '
    "pattern, protocol, readout, recipe, resources, sample_seed, seeds, shots, source, storage, task, test, "
    "tracker, train, zero": "shot=3",
    'profit: unknown key "resources.worker"; did you mean "workers"? known: cpus_per_worker, data_label, '
    "gpus_per_worker, max_failures, min_workers, workers": "resources.worker=2",
    'profit: readout: unknown key "mod"; did you mean "mode"? known: calibration, mode': "readout.mod=mean",
    'protocol: "profi" is unknown; did you mean "profit"? '
    "known: fixed, gnnavi, profit, ticket_search, zs2021": "protocol=profi",
    'task xnli: no pattern "profit11"; did you mean "profit1"? known: dp, dp_in_language, mp, profit0, profit1, '
    "profit2, profit3, profit4, sp, vanilla": "pattern=profit11",
    'profit: train.languages: task xnli has no language "eng"; did you mean "en"? '
    "known: ar, bg, de, el, en, es, fr, hi, ru, sw, th, tr, ur, vi, zh": "train.languages=[eng]",
    "method: found no name; expected method: NAME or method: {name: NAME, …}": "method={}",
    'override "train.lr": expected key=value, e.g. train.lr=1e-4': "train.lr",
    'override "seeds=[1": the value is not readable as YAML; quote it': "seeds=[1",
    'override "shots.a.b=1": shots is not a group of keys': "shots.a.b=1",
}


@pytest.mark.parametrize(("line", "override"), ERRORS.items(), ids=ERRORS.values())
def test_what_does_not_fit_is_one_line_with_place_and_key(line, override):
    assert line_of("shots=2", override) == line


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("method=ful", 'method: "ful" is unknown; did you mean "full"? known: '),
        ("readout=hed", 'readout: "hed" is unknown; did you mean "head"? known: '),
        ("method=5", "profit: method: found 5; "),
        ("method.name=5", "method: "),
        ("task=xnly", 'task: "xnly" is unknown; did you mean "xnli"? known: '),
        ("test.languages=[xx]", 'profit: test.languages: task xnli has no language "xx"; '),
        ("train=3", "profit: train: found 3; "),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(override, start):
    assert line_of(override).startswith(start)


def test_a_key_of_another_method_is_unknown():
    line = line_of("method.lenght=3", recipe="sp")
    assert line == 'sp: method: unknown key "lenght"; did you mean "length"? known: encoder, length, train_backbone'
    assert line_of("method.length=3").startswith('profit: method: unknown key "length"; ')


@pytest.mark.parametrize(("key", "others"), [("task", ["backbone=mbert"]), ("backbone", ["task=xnli"])])
def test_task_and_backbone_must_be_said(key, others):
    with pytest.raises(UserError) as caught:
        load_job("profit", others)
    assert str(caught.value) == f'profit: key "{key}" is missing; add {key}=… to the command or the file'


def test_an_unknown_recipe_and_a_missing_or_broken_file_are_named(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    listed = tmp_path / "listed.yaml"
    listed.write_text("- a")
    for name, line in {
        "profti": f'recipe: "profti" is unknown; did you mean "profit"? known: {", ".join(recipe_names())}',
        f"{tmp_path}/none.yaml": f"job: no file {tmp_path}/none.yaml; give a recipe name or a path to a job YAML",
        str(broken): f"{broken}: not readable as YAML: ",
        str(listed): f"{listed}: expected a mapping of keys, found list",
    }.items():
        with pytest.raises(UserError) as caught:
            load_job(name, NLI)
        assert str(caught.value).startswith(line)


# the cell key

GIVEN = {"seed": 0, "data": "d", "backbone": "b", "numerics": 1}


@pytest.mark.parametrize(
    "override",
    [
        "resources.workers=4",
        "resources.cpus_per_worker=2",
        "zero={stage: 3, offload: true}",
        "storage=elsewhere",
        "train.micro_batch=1",
        "train.eval_batch=8",
        "train.save_every=5",
        "train.checkpointing=true",
        "train.cache_folder=kept",
        "data.root=/elsewhere",
        "recipe=mine",
        "source=mine",
        "seeds=1",
    ],
)
def test_where_and_how_a_job_runs_is_not_in_the_key(override):
    workers = "resources.workers=2" if override.startswith("zero") else "resources.workers=0"
    assert job(workers, override).key(**GIVEN) == job().key(**GIVEN)


@pytest.mark.parametrize(
    "override",
    [
        "train.lr=2e-5",
        "pattern=profit0",
        "method=frozen",
        "readout.mode=raw_piece",
        "protocol=fixed",
        "shots=4",
        "sample_seed=1",
        "backbone=xlmr-base",
        "train.epochs=6",
        "train.batch_size=8",
        "train.precision=bf16",
        "train.languages=[de]",
        "dev.limit=10",
        "test.limit=10",
        "data.source=hub",
        "data.revision=v1",
        "train.dropout=0.0",
        "train.cache_type=bf16",
        "train.quantize=nf4",
        "task=nli",
        "dev.metric=accuracy",
    ],
)
def test_what_decides_numbers_is_in_the_key(override):
    assert job(override).key() != job().key()


def test_a_model_and_rows_are_known_by_their_fingerprints_not_by_their_names():
    assert job("backbone=/models/copy", "data.source=hub").key(**GIVEN) == job().key(**GIVEN)


def test_rewording_a_pattern_makes_other_cells(tmp_path):
    tiny_model = tiny.backbone("gpt2")
    for part in (tiny_model.model, tiny_model.text.tokenizer):
        part.save_pretrained(tmp_path / "model")
    wording = (FOLDER / "sentiment.yaml").read_text(encoding="utf-8")
    keys = set()
    for text in (
        wording,
        wording.replace("Review: {text}", "Text: {text}"),
        wording.replace("positive: Positive", "positive: great"),
    ):
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        overrides = [
            f"task={tmp_path}/mine.yaml",
            f"backbone={tmp_path}/model",
            "train.max_tokens=100",
            "shots=2",
            "seeds=[0]",
        ]
        keys.add(prepare(load_job("icl", overrides)).keys[0])
    assert len(keys) == 3


@pytest.mark.parametrize("given", GIVEN)
def test_seed_data_model_and_method_version_are_in_the_key(given):
    assert job().key(**{**GIVEN, given: 2}) != job().key(**GIVEN)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_change_of_what_deepspeed_does_in_half_precision_moves_the_keys_of_such_jobs_alone(
    workers, precision, monkeypatch
):
    where = [f"resources.workers={workers}", f"zero.stage={workers}"]
    own = load_job("profit", [*NLI, f"train.precision={precision}", *where])
    now = cell_keys(own, {0: "d"}, "b")
    monkeypatch.setattr(prepare_module, "CASTING", True)  # as the first keys had it
    moved = now != cell_keys(own, {0: "d"}, "b")
    assert moved == (precision == "bf16" and workers > 0)


@pytest.mark.parametrize(
    ("recipe", "override"),
    [
        ("profit", "readout=verbalizer"),
        ("profit", "readout={name: verbalizer, mode: null}"),
        ("profit", "train.optimizer=adamw"),
        ("profit", "train.languages=[en]"),
        ("profit", "shots=null"),
        ("profit", "method={name: full}"),
        ("profit", "dev={}"),
        ("profit", "train.lr=0.00001"),
        ("sp", "method.length=4"),
        ("sp", "method=soft_prompt"),
        ("gnnavi_gcn", "method={norm: sym, name: gnnavi}"),
    ],
)
def test_a_default_written_out_leaves_the_key_as_it_is(recipe, override):
    assert job(override, recipe=recipe).key() == job(recipe=recipe).key()


def test_the_scientific_keys_are_those_that_differ_from_their_defaults():
    values = {"task": "sst2", "pattern": "gnnavi", "backbone": "gpt2", "method": "full"}
    assert make_job(
        {
            **values,
            "train": {"lr": 1e-5, "epochs": 3, "micro_batch": 2},
            "zero": {"stage": 1},
            "resources": {"workers": 1},
        }
    ).job.scientific() == {
        **values,
        "method": {"name": "full"},
        "train": {"epochs": 3},
    }


def test_the_folder_of_a_run_is_readable_and_says_whether_the_science_differs():
    assert job("shots=4").run_name == f"profit-xnli-4shot-mbert-{job('shots=4').key()[:8]}"
    assert job("backbone=models/mini.gguf", "task=nli").run_name.startswith("profit-nli-all-mini-")
    assert job("train.lr=2e-5").run_name != job().run_name == job("zero.stage=1", "resources.workers=1").run_name


# written out


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_job_written_out_reads_back_the_same(tmp_path, recipe):
    before = job("shots=2", "storage=elsewhere", "train.lr=1e-4", recipe=recipe)
    path = tmp_path / "job.yaml"
    path.write_text(before.dump(), encoding="utf-8")
    after = load_job(str(path)).job
    assert after == before
    assert after.key() == before.key()


def test_the_json_schema_knows_every_key_and_refuses_others():
    schema = Job.model_json_schema()
    assert set(schema["properties"]) == set(Job.model_fields)
    assert set(schema["required"]) == {"task", "backbone", "method"}
    jsonschema.validate(yaml.safe_load(job().dump()), schema)
    for wrong in ({"shot": 3}, {"train": {"lrr": 1}}, {"train": {"lr": 0}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**yaml.safe_load(job().dump()), **wrong}, schema)


def test_the_json_schema_takes_the_short_forms_that_jobs_are_written_in():
    for recipe in recipe_names():
        values = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
        jsonschema.validate({**values, "task": "xnli", "backbone": "mbert", "seeds": 3}, Job.model_json_schema())
