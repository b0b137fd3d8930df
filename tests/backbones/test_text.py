"""The text side of a backbone: loaded alone, it makes the prompts that the whole backbone makes."""

from __future__ import annotations

import pytest
import tiny

from raypft.backbones.load import backbone_from_config, load_backbone, load_text
from raypft.batch import collate
from raypft.tasks.query import Piece, Query

QUERY = Query((), (Piece("text", "the film was good", field="a"), Piece("text", " it was"), Piece("slot", mark="slot")))


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_the_text_side_alone_encodes_as_with_the_model(tmp_path, kind):
    made = tiny.backbone(kind)
    for part in (made.model, made.text.tokenizer):
        part.save_pretrained(tmp_path)
    alone, beside = load_text(str(tmp_path)), load_backbone(str(tmp_path)).text
    assert alone.encode(QUERY, "en/1", "en", 9) == beside.encode(QUERY, "en/1", "en", 9)
    facts = [
        (text.family, text.takes_demos, text.pad, text.vocab_size, text.source, text.revision)
        for text in (alone, beside)
    ]
    assert facts[0] == facts[1]
    assert facts[0][:4] == (made.family, kind == "llama", 1, made.config.vocab_size)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_a_model_runs_without_a_text_side(kind):
    prompts = [tiny.backbone(kind).text.encode(QUERY)]
    model = backbone_from_config(tiny.config(kind))
    assert model(collate(prompts, model.pad)).shape == (1, tiny.HIDDEN)
    assert (model.source, model.revision) == (None, "in memory")
