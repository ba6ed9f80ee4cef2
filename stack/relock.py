"""Write the digests of `artifacts.json` anew: edit a coordinate there, then run `python -m stack.relock`."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from stack.artifacts import PARALLEL_DOWNLOADS, Artifact, jgo_resolver, sha256_of


class Row(TypedDict):
    """One line of the lock file."""

    artifact: str
    sha256: str
    size: int


def relock(lock: Path) -> int:
    """Download every coordinate of the lock file, replace its sha256 and size; returns how many there are."""
    folders: dict[str, list[Row]] = json.loads(lock.read_text(encoding="utf-8"))
    resolve = jgo_resolver(timeout_s=60)

    def fresh(row: Row) -> Row:
        with tempfile.TemporaryDirectory() as folder:
            file = resolve(Artifact.parse(row["artifact"]), Path(folder), lambda _: None)
            return Row(artifact=row["artifact"], sha256=sha256_of(file), size=file.stat().st_size)

    with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
        renewed = {folder: list(pool.map(fresh, rows)) for folder, rows in folders.items()}
    groups = [
        f"  {json.dumps(folder)}: [\n" + ",\n".join(f"    {json.dumps(row)}" for row in rows) + "\n  ]"
        for folder, rows in renewed.items()
    ]
    lock.write_text("{\n" + ",\n".join(groups) + "\n}\n", encoding="utf-8")
    return sum(map(len, renewed.values()))


if __name__ == "__main__":
    print(relock(Path(__file__).with_name("artifacts.json")), "artifacts pinned")
