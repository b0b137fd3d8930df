"""A job for a cluster, which need not have raypft: what each node runs, and whether a worker's file reaches the driver.

Arguments: the storage's URI or folder, and the seconds to wait for a worker node. The last line printed is JSON.
"""

import json
import logging
import platform
import sys
import uuid

import ray
from pyarrow import fs
from ray.exceptions import GetTimeoutError


def place(storage):
    """File system and path of a URI or an absolute folder."""
    return fs.FileSystem.from_uri(storage) if "://" in storage else (fs.LocalFileSystem(), storage)


@ray.remote(num_cpus=1, max_retries=0)
def write(storage, name, text):
    """Write a file from a worker; what runs there."""
    system, path = place(storage)
    system.create_dir(path, recursive=True)
    with system.open_output_stream(f"{path}/{name}") as file:
        file.write(text.encode())
    return {
        "ray": ray.__version__,
        "python": platform.python_version(),
        "node": ray.get_runtime_context().get_node_id(),
    }


def main(storage, seconds):
    """The answer: {"worker": versions, "driver": versions} or {"error": line}."""
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    name, text = f".raypft-check-{uuid.uuid4().hex}", uuid.uuid4().hex
    try:
        worker = ray.get(write.remote(storage, name, text), timeout=float(seconds))
        system, path = place(storage)
        with system.open_input_stream(f"{path}/{name}") as file:
            same = file.read().decode() == text
        system.delete_file(f"{path}/{name}")
        if not same:
            return {"error": "the driver read something else than the worker wrote"}
    except GetTimeoutError:
        return {"error": f"no worker node with a free CPU came within {seconds} s", "code": 75}
    except Exception as error:
        return {"error": " ".join(str(error).strip().splitlines()[-1].split())}
    return {
        "worker": worker,
        "driver": {
            "ray": ray.__version__,
            "python": platform.python_version(),
            "node": ray.get_runtime_context().get_node_id(),
        },
    }


if __name__ == "__main__":
    print("\n" + json.dumps(main(*sys.argv[1:3])))
