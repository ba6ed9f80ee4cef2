"""Names and delays of the retry tiers come from one setting."""

from __future__ import annotations

import pytest

from agents.app import new_app, new_outbox
from agents.settings import AgentSettings
from sightlog.errors import ConfigurationError
from sightlog.settings import Topics


def test_each_tier_has_a_topic_and_a_delay() -> None:
    assert Topics.load().retry_delays == {"images.retry.10s": 10.0, "images.retry.1m": 60.0, "images.retry.10m": 600.0}


def test_tiers_are_written_as_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_TOPIC_RETRY", "later")
    monkeypatch.setenv("SIGHTLOG_TOPIC_RETRY_TIERS", "500ms, 2s,3h")
    topics = AgentSettings.load().topics
    assert topics.retry_delays == {"later.500ms": 0.5, "later.2s": 2.0, "later.3h": 10_800.0}
    assert topics.model_dump(mode="json")["retry_tiers"] == "500ms,2s,3h"
    monkeypatch.setenv("SIGHTLOG_TOPIC_RETRY_TIERS", "")
    assert Topics.load().retry_delays == {}


@pytest.mark.parametrize("wrong", ["10", "0s", "1d", "-1s", "1s,x", "1s,2s,3s,4s,5s,6s,7s,8s,9s"])
def test_wrong_tiers_are_refused_by_name(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_TOPIC_RETRY_TIERS", wrong)
    with pytest.raises(ConfigurationError, match="SIGHTLOG_TOPIC_RETRY_TIERS"):
        Topics.load()


async def test_agents_write_to_the_tiers_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_TOPIC_RETRY_TIERS", "1s,2s")
    outbox = new_outbox("vision", AgentSettings.load(), linger_ms=0)
    assert outbox._retry_topics == ("images.retry.1s", "images.retry.2s")


def test_no_wait_makes_a_worker_leave_its_group() -> None:
    """Faust's own limits are a thousand and three hundred seconds; a dependency may be down for a night."""
    conf = new_app("vision", AgentSettings.load(rebalance_timeout=7)).conf
    night = 12 * 3600
    assert conf.broker_max_poll_interval > night
    assert conf.stream_processing_timeout > night
    assert conf.broker_commit_livelock_soft_timeout > night
    assert conf.broker_rebalance_timeout == 7
    assert conf.stream_wait_empty is False
