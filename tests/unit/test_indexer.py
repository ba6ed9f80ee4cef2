"""The indexer agent: one receipt or one dead letter for every record, in either case only once it is true."""

from __future__ import annotations

from typing import Any

from agents.delivery.failures import DependencyDown
from agents.delivery.outbox import Outbox
from agents.delivery.records import Record
from agents.index.mappings import ModelIdentity
from agents.index.writer import IndexWriter
from agents.indexer import Indexer
from agents.settings import AgentSettings
from sightlog.dead_letters import DeadLetter
from sightlog.documents import ImageChange, IndexReceipt, ModelRef
from tests.index_behaviours import IMMENSE, deletion, embedding, found, intercepted, raising, unreachable, update
from tests.unit.deliveries import FakeProducer, record
from tests.unit.fake_opensearch import FakeOpenSearch

MODEL = ModelIdentity("tiny", "a" * 64, 8, ("circle", "square"))


class Bench:
    """An indexer between a fake OpenSearch and a fake broker."""

    def __init__(self, producer: FakeProducer | None = None, **steps: Any) -> None:
        self.settings = AgentSettings.load(retry_first=1e-6, retry_limit=1e-6)
        self.opensearch = FakeOpenSearch(MODEL.dim)
        self.producer = producer or FakeProducer()
        outbox = Outbox(
            "indexer",
            self.producer,  # type: ignore[arg-type]
            dead_topic=self.settings.topics.dead,
            dead_inline_limit=self.settings.dead_letter_inline_limit,
            backoff=self.settings.backoff,
        )
        client: Any = intercepted(self.opensearch, **steps)
        self.agent = Indexer(self.settings, IndexWriter(client, self.settings.index, MODEL), outbox)

    @property
    def receipts(self) -> list[IndexReceipt]:
        return [IndexReceipt.from_kafka(one.value) for one in self.producer.sent_to("images.indexed")]

    @property
    def letters(self) -> list[DeadLetter]:
        return [DeadLetter.from_kafka(one.value) for one in self.producer.sent_to("images.dead")]

    async def ids(self, image_id: str) -> set[str]:
        return {id_ for index in ("images", "objects") for id_ in await found(self.opensearch, index, image_id)}


def embedded(document: ImageChange, offset: int = 1) -> Record:
    return record(document.to_kafka(), key=document.image_id.encode(), topic="images.embedded", offset=offset)


async def test_receipt_says_what_can_be_found() -> None:
    bench, document = Bench(), embedding(MODEL, "image", version=5, objects=2)
    await bench.agent.index([embedded(document)])
    (receipt,) = bench.receipts
    assert (receipt.image_id, receipt.version, receipt.objects, receipt.superseded) == ("image", 5, 2, False)
    assert receipt.uploaded_at == document.uploaded_at
    assert [one.key for one in bench.producer.sent_to("images.indexed")] == [b"image"]
    assert await bench.ids("image") == {"image", "image#0", "image#1"}


async def test_every_record_of_a_batch_ends_in_exactly_one_place() -> None:
    bench = Bench()
    other = ModelRef(name="other", digest="f" * 64)
    await bench.agent.index(
        [
            embedded(embedding(MODEL, "good")),
            record(b"{", key=b"unreadable", topic="images.embedded", offset=7),
            embedded(embedding(MODEL, "foreign", model=other)),
            embedded(embedding(MODEL, "refused", tags=(IMMENSE,))),
            embedded(embedding(MODEL, "good too")),
        ]
    )
    assert {receipt.image_id for receipt in bench.receipts} == {"good", "good too"}
    assert {(letter.key, letter.code) for letter in bench.letters} == {
        (b"unreadable", "bad_document"),
        (b"foreign", "model_mismatch"),
        (b"refused", "index_refused"),
    }
    assert len(bench.producer.sent) == 5
    assert {letter.stage for letter in bench.letters} == {"indexer"}
    (unreadable,) = (letter for letter in bench.letters if letter.code == "bad_document")
    assert (unreadable.origin.topic, unreadable.origin.offset, unreadable.value) == ("images.embedded", 7, b"{")


async def test_stale_version_has_a_receipt_that_says_so() -> None:
    bench = Bench()
    newer, stale = embedding(MODEL, "image", version=2), embedding(MODEL, "image", version=1)
    await bench.agent.index([embedded(newer)])
    await bench.agent.index([embedded(stale)])
    assert [(receipt.version, receipt.superseded) for receipt in bench.receipts] == [(2, False), (1, True)]


async def test_opensearch_that_is_down_is_waited_for_and_nothing_is_buried() -> None:
    bench = Bench(mget=[raising(unreachable())] * 3, bulk=[raising(unreachable(), after=True)])
    await bench.agent.index([embedded(embedding(MODEL, "image"))])
    assert (len(bench.receipts), bench.letters) == (1, [])
    assert await bench.ids("image") == {"image", "image#0"}


async def test_receipt_waits_for_the_broker() -> None:
    bench = Bench(FakeProducer(DependencyDown("1"), DependencyDown("2")))
    await bench.agent.index([embedded(embedding(MODEL, "image"))])
    assert len(bench.receipts) == 1


async def test_batch_of_unreadable_records_asks_opensearch_nothing() -> None:
    bench = Bench(mget=[raising(RuntimeError("asked"))])
    await bench.agent.index([record(None), record(b"[]")])
    assert [letter.code for letter in bench.letters] == ["bad_document"] * 2


async def test_receipts_of_updates_and_deletions_say_what_happened() -> None:
    bench = Bench()
    await bench.agent.index([embedded(embedding(MODEL, "image", objects=2, reused=True))])
    await bench.agent.index([embedded(update("image", 2, tags=("a",)))])
    await bench.agent.index([embedded(deletion("image", 3))])
    await bench.agent.index([embedded(update("image", 1, tags=("late",))), embedded(deletion("other", 1))])
    assert [(r.image_id, r.version, r.kind, r.objects, r.superseded, r.reused) for r in bench.receipts] == [
        ("image", 1, "uploaded", 2, False, True),
        ("image", 2, "updated", 0, False, False),
        ("image", 3, "deleted", 0, False, False),
        ("image", 1, "updated", 0, True, False),
        ("other", 1, "deleted", 0, False, False),
    ]
    assert await bench.ids("image") == set()


async def test_new_images_cost_one_read_and_one_bulk() -> None:
    asked: list[str] = []

    def noted(name: str) -> Any:
        async def step(through: Any) -> Any:
            asked.append(name)
            return await through()

        return step

    bench = Bench(mget=[noted("mget")] * 9, bulk=[noted("bulk")] * 9)
    await bench.agent.index([embedded(embedding(MODEL, f"image-{number}", objects=3)) for number in range(20)])
    assert asked == ["mget", "bulk"]
