"""Read what W&B recorded offline, which `wandb sync` would upload."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import wandb
from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768
FILE_HEADER = 7
CHUNK_HEADER = struct.Struct("<IHB")  # checksum, length, type


def read_run(folder: Path) -> SimpleNamespace:
    """The only run in a folder; see `read_runs`."""
    (run,) = read_runs(folder)
    return run


def read_runs(folder: Path) -> list[SimpleNamespace]:
    """Names, groups, projects, job types, config, axes, history and summary of the runs in a folder, by name."""
    wandb.teardown()  # its service may still be writing a file when the run is finished
    runs = map(_read, folder.glob("wandb/offline-run-*/*.wandb"))
    return sorted(runs, key=lambda run: run.name)


def _read(path: Path) -> SimpleNamespace:
    run = SimpleNamespace(config={}, axes={}, history=[], summary={})
    for record in _records(path.read_bytes()):
        if record.HasField("run"):
            run.name, run.group, run.project = record.run.display_name, record.run.run_group, record.run.project
            run.job_type, run.id = record.run.job_type, record.run.run_id
            run.config |= _items(record.run.config.update)
            run.summary |= _items(record.run.summary.update)
        elif record.HasField("config"):
            run.config |= _items(record.config.update)
        elif record.HasField("metric"):
            run.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif record.HasField("history"):
            run.history.append(_items(record.history.item))
        elif record.HasField("summary"):
            run.summary |= _items(record.summary.update)
    return run


def _items(items) -> dict:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[Record]:
    """Records are cut into chunks, which do not cross the borders of blocks, as in the log of LevelDB."""
    assert data[:4] == b":W&B"
    position, content = FILE_HEADER, b""
    while position + CHUNK_HEADER.size <= len(data):
        if BLOCK - position % BLOCK < CHUNK_HEADER.size:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = CHUNK_HEADER.unpack_from(data, position)
        position += CHUNK_HEADER.size
        content += data[position : position + length]
        position += length
        if kind in (1, 4):  # the only chunk of a record, or its last
            yield Record.FromString(content)
            content = b""
