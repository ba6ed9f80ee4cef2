"""Coverage-guided fuzzing of everything that reads records; outside CI, because it has no end.

    python -m venv fuzz && fuzz/bin/pip install -e . atheris
    fuzz/bin/python -m tests.fuzz.fuzz_events -max_total_time=600 new tests/fuzz/corpus

What it finds is written into the folder `new`; `-merge=1 tests/fuzz/corpus new` keeps what reaches more code.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["sightlog", "tests.fuzz"]):
    from tests.fuzz.readers import feed


def main() -> None:
    atheris.Setup(sys.argv, feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
