"""Reads a stream on every node of a cluster but the head, as workers do, and tells what each saw: for test_streaming.

Arguments: address, job as JSON, index file, rows of an epoch, batch size, file to write.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypft.config.job import Job
from raypft.training.flow import Share


@ray.remote(num_cpus=1)
class Reader:
    """A worker's side: takes its share step by step; a step's work is a wait."""

    def read(
        self, job: dict, index: str, rows: int, batch_size: int, rank: int, world: int, work: float, out: str
    ) -> dict:
        from raypft.scale.data import RayFlow

        with Path(f"{out}.keys-{rank}").open("w") as keys:
            waits, memory, count = [], [], 0
            began = time.monotonic()
            for step, prompts in enumerate(RayFlow(Job(**job), index, rows)(Share(0, 0, 0, batch_size, rank, world))):
                waits.append(time.monotonic() - began)
                keys.writelines(f"{step} {prompt.key}\n" for prompt in prompts)
                count += len(prompts)
                memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6)
                time.sleep(work)
                began = time.monotonic()
        return {"node": ray.util.get_node_ip_address(), "rows": count, "waits": waits, "memory": memory}


if __name__ == "__main__":
    address, job, index, rows, batch_size, out = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    nodes = [
        node["NodeID"] for node in ray.nodes() if node["Alive"] and "node:__internal_head__" not in node["Resources"]
    ]
    readers: list[Any] = [
        Reader.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in nodes
    ]
    reads = [
        r.read.remote(json.loads(job), index, int(rows), int(batch_size), rank, len(nodes), 0.05, out)
        for rank, r in enumerate(readers)
    ]
    Path(out).write_text(json.dumps(ray.get(reads)))
