"""How a model is loaded anew that Triton has loaded already."""

from __future__ import annotations

import json
import time
from typing import Any


def changed_config(config: str | bytes) -> str:
    """A model's config (JSON) with a parameter that nobody reads, other than at every call before.

    Triton does nothing when a loaded model is loaded again, unless its files or its config changed. When they did, new
    processes take over before the old ones end, so that nobody notices.
    """
    changed: dict[str, Any] = json.loads(config)
    changed.setdefault("parameters", {})["loaded_at"] = {"string_value": str(time.time_ns())}
    return json.dumps(changed)
