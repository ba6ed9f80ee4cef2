"""The state of an image is the same whatever the order in which, and however often, its changes arrive."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agents.index.mappings import ModelIdentity
from agents.index.state import ImageState, has_part_in, joined, state_of, state_of_all, superseded
from sightlog.documents import MAX_VERSION, EmbeddingDocument, ImageChange, ImageDeletion, ImageUpdate
from tests.index_behaviours import deletion, embedding, update

MODEL = ModelIdentity("tiny", "a" * 64, 2, ("circle",))
AT = datetime(2024, 5, 1, tzinfo=timezone.utc)


def upload(version: int, objects: int = 1, **facts: Any) -> EmbeddingDocument:
    return embedding(MODEL, "image", version=version, objects=objects, **facts)


@st.composite
def histories(draw: st.DrawFn) -> list[ImageChange]:
    """Changes of one image in log order, no two with the same version."""
    changes: list[ImageChange] = []
    for version in sorted(draw(st.sets(st.integers(1, 30) | st.integers(1, MAX_VERSION), min_size=1, max_size=8))):
        kind = draw(st.sampled_from(["upload", "tags", "metadata", "both", "deletion"]))
        tags, metadata = (f"tag-{version}",), {"version": version}
        if kind == "upload":
            changes.append(upload(version, draw(st.integers(0, 3)), tags=tags, metadata=metadata))
        elif kind == "deletion":
            changes.append(deletion("image", version))
        else:
            given_fields = {"tags": tags, "metadata": metadata}
            fields = given_fields if kind == "both" else {kind: given_fields[kind]}
            changes.append(update("image", version, **fields))
    return changes


def seen(state: ImageState) -> Any:
    """Everything of a state that can be compared."""
    content = state.content and (
        state.content.image["event_id"],
        state.content.image["vector"].tolist(),
        len(state.content.objects),
    )
    return (*state.registers, state.object_rows, content, state.tags, dict(state.metadata))


@given(histories(), st.data())
def test_any_order_and_repetition_ends_in_the_same_state(history: list[ImageChange], data: st.DataObject) -> None:
    repeated = history + data.draw(st.lists(st.sampled_from(history), max_size=5))
    shuffled = data.draw(st.permutations(repeated))
    assert seen(state_of_all(shuffled)) == seen(state_of_all(history))


@given(histories(), st.data())
def test_states_may_be_joined_in_any_grouping(history: list[ImageChange], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(history)))
    one, other = state_of_all(history[:cut]), state_of_all(history[cut:])
    whole = seen(state_of_all(history))
    assert seen(joined(one, other)) == seen(joined(other, one)) == whole
    assert seen(joined(joined(one, other), one)) == whole


@given(histories())
def test_the_state_is_what_reading_the_log_in_order_ends_in(history: list[ImageChange]) -> None:
    content: EmbeddingDocument | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    for change in history:
        if isinstance(change, EmbeddingDocument):
            content, tags, metadata = change, change.tags, change.metadata
        elif isinstance(change, ImageUpdate):
            tags = tags if change.tags is None else change.tags
            metadata = metadata if change.metadata is None else change.metadata
        elif isinstance(change, ImageDeletion):
            content, tags, metadata = None, (), {}
    state = state_of_all(history)
    assert (state.tags, state.metadata) == (tags, metadata)
    assert state.visible == (content is not None)
    assert (state.content is None) == (content is None)
    if content is not None and state.content is not None:
        assert state.version == content.version
        assert state.content.image["event_id"] == content.event_id


@given(histories(), st.data())
def test_every_change_of_the_state_raises_its_revision(history: list[ImageChange], data: st.DataObject) -> None:
    state = ImageState()
    for change in data.draw(st.permutations(history)):
        after = joined(state, state_of(change))
        assert after.revision > state.revision or after.registers == state.registers
        assert after.revision < 2**63
        state = after


@given(histories(), st.data())
def test_a_change_without_part_in_the_state_leaves_it_as_it_is(history: list[ImageChange], data: st.DataObject) -> None:
    change = data.draw(st.sampled_from(history))
    rest = state_of_all([one for one in history if one is not change])
    after = joined(rest, state_of(change))
    if has_part_in(state_of(change), after):
        assert after.registers != rest.registers
    else:
        assert seen(after)[:4] == seen(rest)[:4]
        assert seen(after)[5:] == seen(rest)[5:]
        assert superseded(change, after)


def test_superseded_is_of_what_nothing_shows() -> None:
    first, third = upload(1), upload(3)
    both, tags = update("image", 2, tags=("t",), metadata={}), update("image", 4, tags=("u",))
    state = state_of_all([first, third, both, tags])
    assert [superseded(change, state) for change in (first, third, both, tags)] == [True, False, True, False]
    state = state_of_all([first, both, tags])
    assert [superseded(change, state) for change in (first, both, tags)] == [False, False, False]
    gone = deletion("image", 5)
    state = state_of_all([first, both, tags, gone])
    assert [superseded(change, state) for change in (first, both, tags, gone)] == [True, True, True, False]
    assert superseded(gone, joined(state, state_of(upload(6))))
    assert not superseded(update("image", 7, metadata={}), state_of_all([gone, update("image", 7, metadata={})]))


def test_what_is_hidden_is_not_kept() -> None:
    state = state_of_all([upload(1, tags=("a",), metadata={"n": 1}), deletion("image", 2)])
    assert (state.content, state.tags, dict(state.metadata)) == (None, (), {})
    assert (state.registers, state.object_rows) == ((1, 1, 1, 2), 1)
