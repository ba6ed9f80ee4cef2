"""Settings: which source wins, and that a wrong value is reported by the name of its variable."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from agents.settings import AgentSettings, IndexSettings
from sightlog.errors import ConfigurationError
from sightlog.settings import ClientSettings, Settings, Topics


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of a running stack."""
    endpoints = {"kafka": "127.0.0.1:1", "triton_grpc": "127.0.0.1:2", "opensearch": "http://127.0.0.1:3", "other": 4}
    (tmp_path / "endpoints.json").write_bytes(orjson.dumps(endpoints))
    monkeypatch.setenv("SIGHTLOG_DATA_DIR", str(tmp_path))
    return tmp_path


def test_defaults_need_nothing() -> None:
    settings = AgentSettings.load()
    assert (settings.kafka, settings.triton) == ("127.0.0.1:19092", ("127.0.0.1:18001",))
    assert settings.folders == (settings.data_dir / "uploads",)


def test_running_stack_beats_defaults(data_dir: Path) -> None:
    settings = AgentSettings.load()
    assert (settings.kafka, settings.triton, settings.opensearch) == (
        "127.0.0.1:1",
        ("127.0.0.1:2",),
        "http://127.0.0.1:3",
    )
    assert ClientSettings.load().kafka == "127.0.0.1:1"


def test_environment_beats_the_running_stack(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_KAFKA", "kafka-1:9092")
    settings = AgentSettings.load()
    assert (settings.kafka, settings.triton) == ("kafka-1:9092", ("127.0.0.1:2",))


def test_argument_beats_the_environment(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_KAFKA", "kafka-1:9092")
    assert AgentSettings.load(kafka="kafka-2:9092").kafka == "kafka-2:9092"


def test_stack_of_another_data_folder_is_found(
    data_dir: Path, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLOG_DATA_DIR", str(empty_folder))
    assert AgentSettings.load().kafka == "127.0.0.1:19092"
    assert AgentSettings.load(data_dir=data_dir).kafka == "127.0.0.1:1"


def test_several_tritons_are_a_list_with_commas_that_can_be_set_as_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_TRITON", "gpu-1:8001, [::1]:8001")
    settings = AgentSettings.load()
    assert settings.triton == ("gpu-1:8001", "[::1]:8001")
    monkeypatch.setenv("SIGHTLOG_TRITON", settings.model_dump(mode="json")["triton"])
    assert AgentSettings.load().triton == settings.triton


def test_topics_and_index_have_variables_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_TOPIC_IMAGES", "pictures")
    monkeypatch.setenv("SIGHTLOG_INDEX_EF_SEARCH", "250")
    settings = AgentSettings.load()
    assert (settings.topics.images, settings.topics.dead) == ("pictures", "images.dead")
    assert settings.index.ef_search == 250


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SIGHTLOG_INLINE_LIMIT", "many"),
        ("SIGHTLOG_INLINE_LIMIT", "0"),
        ("SIGHTLOG_INLINE_LIMIT", "99999999999"),
        ("SIGHTLOG_SEARCH_TIMEOUT", "-1"),
        ("SIGHTLOG_VISION_UNACKED", "0"),
        ("SIGHTLOG_RETRY_FIRST", "0"),
        ("SIGHTLOG_REPLY_TOPICS", "("),
        ("SIGHTLOG_INDEX_M", "abc"),
        ("SIGHTLOG_INDEX_M", "1"),
        ("SIGHTLOG_INDEX_ENGINE", "nmslib"),
        ("SIGHTLOG_TRITON", ""),
        ("SIGHTLOG_TRITON", "gpu-1"),
        ("SIGHTLOG_TRITON", "gpu-1:8001,"),
        ("SIGHTLOG_TRITON", "http://gpu-1:8001"),
        ("SIGHTLOG_ALLOWED_FOLDERS", "/srv/pictures"),
        ("SIGHTLOG_ALLOWED_FOLDERS", "5"),
        ("SIGHTLOG_TOPICS", "images"),
        ("SIGHTLOG_INDEX", '{"m": "abc"}'),
    ],
)
def test_wrong_value_names_its_variable(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as wrong:
        AgentSettings.load()
    assert str(wrong.value).startswith(f"{variable}=")
    assert "\n" not in str(wrong.value)


def test_wrong_topic_names_its_variable() -> None:
    with pytest.raises(ConfigurationError, match=r"^SIGHTLOG_TOPIC_IMAGES=5:"):
        Topics.load(images=5)


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"5", b"null"], ids=repr)
def test_broken_endpoints_file_is_named(content: bytes, data_dir: Path) -> None:
    (data_dir / "endpoints.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"endpoints\.json.*remove the file"):
        ClientSettings.load()


def test_allowed_folders_are_a_json_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_ALLOWED_FOLDERS", '["/a","/b"]')
    assert AgentSettings.load().folders == (Path("/a"), Path("/b"))
    monkeypatch.setenv("SIGHTLOG_ALLOWED_FOLDERS", "[]")
    assert AgentSettings.load().folders == ()


def test_data_folder_is_absolute_so_that_agents_elsewhere_find_the_uploads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGHTLOG_DATA_DIR", "state")
    assert ClientSettings.load().uploads_dir == tmp_path / "state" / "uploads"


def test_settings_stay_as_they_are() -> None:
    settings = IndexSettings.load()
    with pytest.raises(ValueError, match="frozen"):
        settings.m = 5  # type: ignore[misc]


def test_windows_are_what_the_settings_say() -> None:
    settings = AgentSettings.load(vision_unacked=7, vision_unacked_bytes=8, vision_concurrency=9, indexer_batch=3)
    window = settings.vision_window
    assert (window.unacked, window.unacked_bytes, window.concurrency, window.batch) == (7, 8, 9, 1)
    assert settings.indexer_window.batch == 3


def test_every_setting_says_what_it_is_in_its_type() -> None:
    for kind in (AgentSettings, IndexSettings, Topics):
        assert issubclass(kind, Settings)
        assert all(field.annotation is not None for field in kind.model_fields.values())
