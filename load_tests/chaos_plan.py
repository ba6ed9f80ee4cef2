"""What a chaos run publishes and breaks, drawn from a seed: the same seed, the same plan."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import orjson

from load_tests.publishing import distinct
from models.photos import Photo, photos
from sightlog.events import ImageUploaded, new_deletion, new_update, new_upload

#: Each of them is broken once before any is broken twice. `stack`: every process, the supervisor with them.
COMPONENTS = ("worker-vision", "worker-indexer", "triton", "triton-stub", "kafka", "opensearch", "stack")
#: What is left of the number of faults goes to these first.
OTHERS = ("worker-retry", "worker-search")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)

#: Seconds between the recovery from one fault and the next fault.
_PAUSES_S = (0.5, 4.0)
#: Shares of the events that are neither broken nor the first of an image.
_AGAIN, _UPDATED, _DELETED = 0.16, 0.10, 0.07

Action = Literal["upload", "again", "update", "delete", "poison"]


@dataclass(frozen=True)
class Fault:
    """One signal to one component, `pause_s` seconds after the one before was over."""

    component: str
    signal: signal.Signals
    pause_s: float


@dataclass(frozen=True)
class Planned:
    """One event: what it does to which image. `choice` picks a picture or a kind of damage."""

    action: Action
    image: int
    choice: int


def plan_faults(count: int, seed: int) -> list[Fault]:
    """As many faults; every component `count // 7` times at least, with the signals in turns."""
    rng = np.random.default_rng([seed, 1])
    rounds, rest = divmod(count, len(COMPONENTS))
    order: list[str] = []
    for _ in range(rounds):
        order += list(rng.permutation(COMPONENTS))
    more = [*OTHERS, *rng.permutation(COMPONENTS)] if rounds else list(rng.permutation(COMPONENTS))
    for name in more[:rest]:
        order.insert(int(rng.integers(0, len(order) + 1)), str(name))
    turn = {name: int(rng.integers(0, len(SIGNALS))) for name in (*COMPONENTS, *OTHERS)}
    faults = []
    for name in order:
        number = SIGNALS[turn[name] % len(SIGNALS)]
        turn[name] += 1
        faults.append(Fault(str(name), number, float(rng.uniform(*_PAUSES_S))))
    return faults


def plan_events(count: int, seed: int, poison: float = 0.0) -> list[Planned]:
    """Uploads of new images, some of them again, updates, deletions, and a share `poison` of broken events."""
    rng = np.random.default_rng([seed, 2])
    broken = set(rng.choice(count, round(count * poison), replace=False).tolist()) if poison else set()
    events: list[Planned] = []
    images = 0
    for number in range(count):
        choice = int(rng.integers(0, 1 << 16))
        draw = float(rng.random())
        if number in broken:
            events.append(Planned("poison", number, choice))
        elif images == 0 or draw >= _AGAIN + _UPDATED + _DELETED:
            events.append(Planned("upload", images, choice))
            images += 1
        else:
            action: Action = "again" if draw < _AGAIN else "update" if draw < _AGAIN + _UPDATED else "delete"
            events.append(Planned(action, int(rng.integers(0, images)), choice))
    return events


@dataclass(frozen=True)
class Outgoing:
    """A record to publish."""

    key: str
    value: bytes
    headers: list[tuple[str, str | bytes | None]]
    broken: bool = False


class Events:
    """Makes records of planned events; their times are the present, so that a receipt tells when its event began."""

    def __init__(self, tag: str, seed: int) -> None:
        self._tag = tag
        self._pictures = photos(40, seed=seed, sizes=[(240, 180), (180, 240)])

    def record(self, planned: Planned) -> Outgoing:
        """The record of one event."""
        key = f"{self._tag}-{planned.image}"
        if planned.action == "poison":
            return self._poison(f"{self._tag}-poison-{planned.image}", planned.choice)
        if planned.action == "delete":
            value, headers = new_deletion(source="/chaos").to_kafka()
        elif planned.action == "update":
            tags, metadata = (self._tag, f"t{planned.choice}"), {"n": planned.choice}
            fields = ({"tags": tags}, {"metadata": metadata}, {"tags": tags, "metadata": metadata})[planned.choice % 3]
            value, headers = new_update(source="/chaos", **fields).to_kafka()
        else:
            # Bytes that come again are not inferred again.
            value, headers = self.upload(distinct(self._picture(planned).jpeg)).to_kafka()
        return Outgoing(key, value, headers)

    def upload(self, data: bytes) -> ImageUploaded:
        """An upload event with a picture."""
        return new_upload(data, source="/chaos", tags=(self._tag,))

    def _picture(self, planned: Planned) -> Photo:
        """An upload that comes again has a picture with few objects, so that some of the first one must go."""
        if planned.action == "again":
            few = sorted(self._pictures, key=lambda photo: len(photo.objects))[: len(self._pictures) // 4]
            return few[planned.choice % len(few)]
        return self._pictures[planned.choice % len(self._pictures)]

    def _poison(self, key: str, choice: int) -> Outgoing:
        jpeg = self._pictures[choice % len(self._pictures)].jpeg
        good, headers = self.upload(jpeg).to_kafka()
        broken: Sequence[tuple[bytes, list[tuple[str, str | bytes | None]]]] = (
            (b"not a picture %d" % choice, headers),
            (good[:60] + b"%d" % choice, headers),
            (b"", headers),
            (good, [(n, b"image.sold.v1" if n == "ce_type" else v) for n, v in headers]),
            (good, [(n, v) for n, v in headers if n != "ce_specversion"]),
            (b"{", [("content-type", b"application/cloudevents+json")]),
            (orjson.dumps({"specversion": "1.0"}), [("content-type", b"application/cloudevents+json")]),
        )
        value, spoilt = broken[choice % len(broken)]
        return Outgoing(key, value, spoilt, broken=True)
