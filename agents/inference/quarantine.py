"""Keeps one picture that kills Triton's processes from stopping the stream, and innocent ones from its fate.

A picture that was on its way at the death of a process is suspected, with all that were on their way with it. After
its second death it is tried alone. What others do cannot be seen from here: their killer may end the process that has
our innocent picture. So before a picture is tried again that saw a death alone, it waits for a random while, and a
volley of good pictures must find every process alive: for a death in those few milliseconds to be the fault of others
it must fall into them by chance, and for the verdict it must do so each time.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import random
import struct
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.delivery.retry import Backoff, until_up
from agents.inference.deaths import Died
from agents.inference.results import ImageInference

log = logging.getLogger(__name__)

#: Deaths among others, after which a picture is tried alone, and deaths alone, after which it is given up.
SUSPECTED_AFTER = 2
CONDEMNED_AFTER = 3
#: Seconds up to which a picture that saw a death alone waits: much longer than its trial takes.
SPREAD_S = 4.0
#: Good pictures at once, so that each process of a model gets one: a dead one among several would hide otherwise.
VOLLEY = 8
#: Suspects that are remembered.
MOST_SUSPECTS = 1024


class Seer(Protocol):
    """The part of `TritonClient` that is needed here."""

    async def infer_image(self, data: bytes, timeout: float) -> ImageInference: ...


@dataclass
class Record:
    """The deaths that a picture has seen."""

    among_others: int = 0
    alone: int = 0


class Quarantine:
    """Sees pictures through one Triton client, which nobody else in this process uses for pictures.

    While all is well it costs nothing but a comparison.
    """

    def __init__(self, triton: Seer, backoff: Backoff, *, spread_s: float = SPREAD_S) -> None:
        self._triton = triton
        self._backoff = backoff
        self._spread_s = spread_s
        #: By SHA-256 of the picture, the latest death last.
        self._records: OrderedDict[bytes, Record] = OrderedDict()
        self._well = True
        #: Pictures on their way.
        self._flying = 0
        self._landed = asyncio.Event()
        #: Held while nobody may be sent on its way: until Triton is well, or while a suspect is tried.
        self._gate = asyncio.Lock()

    async def infer_image(self, data: bytes, timeout: float) -> ImageInference:
        """What Triton sees in the picture; waits as long as Triton is down.

        Raises ItemBroken: as Triton says, or `decoder_crash` for a picture that kills the process that decodes it.
        """
        while True:
            digest = hashlib.sha256(data).digest() if self._records else b""
            record = self._records.get(digest)
            if record and record.alone:
                await asyncio.sleep(random.uniform(0, self._spread_s))
            outcome = await until_up("triton", functools.partial(self._seen, data, timeout, record), self._backoff)
            if isinstance(outcome, Died):
                self._accuse(digest or hashlib.sha256(data).digest(), record, outcome)
                continue
            self._records.pop(digest, None)
            if isinstance(outcome, ItemBroken):
                raise outcome
            return outcome

    async def _seen(self, data: bytes, timeout: float, record: Record | None) -> ImageInference | ItemBroken | Died:
        """One try. Only a Triton that is down raises, so that other deaths than this do not count as one."""
        try:
            if record and record.among_others >= SUSPECTED_AFTER:
                return await self._alone(data, timeout, certainly_well=record.alone > 0)
            return await self._among_others(data, timeout)
        except Died as died:
            self._well = False
            return died
        except ItemBroken as broken:
            return broken

    async def _among_others(self, data: bytes, timeout: float) -> ImageInference:
        while not self._well or self._gate.locked():
            async with self._gate:
                await self._until_well(timeout)
        self._flying += 1
        try:
            return await self._triton.infer_image(data, timeout)
        finally:
            self._flying -= 1
            if not self._flying:
                self._landed.set()

    async def _alone(self, data: bytes, timeout: float, *, certainly_well: bool) -> ImageInference:
        async with self._gate:
            while self._flying:
                self._landed.clear()
                await self._landed.wait()
            self._well = self._well and not certainly_well
            await self._until_well(timeout)
            return await self._triton.infer_image(data, timeout)

    async def _until_well(self, timeout: float) -> None:
        """Send good pictures until all are answered, refused or not."""
        attempt = 0
        while not self._well:
            volley = [self._triton.infer_image(GOOD_PICTURE, timeout) for _ in range(VOLLEY)]
            outcomes = await asyncio.gather(*volley, return_exceptions=True)
            failures = [one for one in outcomes if isinstance(one, BaseException) and not isinstance(one, ItemBroken)]
            for failure in failures:
                if not isinstance(failure, DependencyDown):
                    raise failure
            self._well = not failures
            if failures:
                await asyncio.sleep(self._backoff.pause(attempt))
                attempt += 1

    def _accuse(self, digest: bytes, record: Record | None, died: Died) -> None:
        """Remember a death; raises ItemBroken when it was the last that this picture needed."""
        tried_alone = record is not None and record.among_others >= SUSPECTED_AFTER
        record = self._records.setdefault(digest, record or Record())
        self._records.move_to_end(digest)
        if len(self._records) > MOST_SUSPECTS:
            self._records.popitem(last=False)
        if not tried_alone:
            record.among_others += died.deaths
            return
        record.alone += died.deaths
        log.warning("a picture that was tried alone saw its death number %d: %s", record.alone, died)
        if record.alone >= CONDEMNED_AFTER:
            del self._records[digest]
            raise ItemBroken(
                "decoder_crash",
                f"a process of Triton died each of the {record.alone} times that it had this picture and no other, "
                f"and {record.among_others} times before; the last time: {died}",
            )


def _grey_png(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80\x80\x80" * side) * side)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


#: What every Triton decodes without trouble.
GOOD_PICTURE = _grey_png(64)
