"""Rows from an object store: found by ending and by *; what is missing is told."""

from __future__ import annotations

import boto3
import pytest
import yaml
from bucket import NAME, served

from raypft.data.origin import choose
from raypft.data.sources import existing_files, read_split
from raypft.errors import UserError
from raypft.tasks.load import load_task

pytestmark = [pytest.mark.timeout(300)]
ROW = b'{"text": "a", "label": "no"}\n'


def test_rows_of_a_bucket(tmp_path, monkeypatch):
    with served(monkeypatch) as uri:
        client = boto3.client("s3")
        for key in ("a b*/train.JSONL", "a b*/sub/part-0.jsonl", "a b*/sub/part-1.jsonl", "a bc/sub/part-2.jsonl"):
            client.put_object(Bucket=NAME, Key=f"data/{key}", Body=ROW)

        def read(root: str, pattern: str) -> int:
            values = {"about": "mine", "kind": "choice", "fields": {"text": "text"}, "label": {"names": ["no", "yes"]}}
            values |= {"metric": "accuracy", "languages": ["en"], "patterns": {"p": {"text": "{text}", "source": "x"}}}
            values["sources"] = {"files": {"files": {"train": pattern}}}
            (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
            origin = choose(load_task(f"{tmp_path}/mine.yaml"), None, root)
            table = read_split(origin, "train", ["en"])
            assert table is not None
            assert existing_files(origin)
            return len(table)

        root = f"{uri}/data/a%20b*"
        assert read(root, "train") == 1
        assert read(root, "*/part-*") == 2
        assert read(f"{uri}/data", "*/part-*") == 3
        with pytest.raises(UserError, match=rf"no file s3://{NAME}/data/a b\*/tarin .*; found there: train.JSONL"):
            read(root, "tarin")
        with pytest.raises(UserError, match=f"; there is no folder s3://{NAME}/dta$"):
            read(f"{uri}/dta", "train")
