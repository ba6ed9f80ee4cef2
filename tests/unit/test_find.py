"""`sightlog search`: what its options ask, and what it shows of the answers."""

from __future__ import annotations

import io
import os
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

from sightlog import find, hit_pictures, thumbnails
from sightlog.cli import cli
from sightlog.contact_sheet import contact_sheet
from sightlog.find_table import show
from sightlog.search import Hit, SearchReply, SearchRequest
from tests.unit.search_agent_double import hit, pages_of

RED, BLUE = (200, 0, 0), (0, 0, 200)


class Answers:
    """In place of the client: answers every search with `answer`."""

    asked: list[SearchRequest]
    answer: Any

    def __init__(self, _settings: object) -> None:
        pass

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_details: object) -> None:
        pass

    def search(self, request: SearchRequest, *, timeout: float | None) -> SearchReply:
        Answers.asked.append(request)
        reply = Answers.answer(request)
        assert isinstance(reply, SearchReply)
        return reply

    def pages(self, request: SearchRequest, *, timeout: float | None) -> Any:
        while True:
            reply = self.search(request, timeout=timeout)
            yield reply
            if reply.cursor is None:
                return
            request = SearchRequest(cursor=reply.cursor)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> type[Answers]:
    monkeypatch.setattr(find, "Client", Answers)
    Answers.asked, Answers.answer = [], lambda _request: SearchReply(hits=(hit(),))
    return Answers


def run(arguments: str, **more: Any) -> Result:
    return CliRunner().invoke(cli, ["search", *shlex.split(arguments)], **more)


def asked(arguments: str) -> SearchRequest:
    result = run(arguments)
    assert result.exit_code == 0, result.output
    return Answers.asked[-1]


def photo(path: Path, size: tuple[int, int] = (640, 480), colour: tuple[int, int, int] = RED, **how: Any) -> Path:
    Image.new("RGB", size, colour).save(path, **how)
    return path


# What is asked.


def test_the_example_of_the_issue_asks_all_of_it(answers: type[Answers], tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    request = asked(f'--like {tmp_path}/a.jpg --minus "people" --class dog --after 2026-01-01 --page')
    assert [(part.image is not None, part.text, part.weight) for part in request.clauses] == [
        (True, None, 1),
        (False, "people", -1),
    ]
    assert request.filters.classes.any == ("dog",)
    assert str(request.filters.captured_from) == "2026-01-01 00:00:00+00:00"
    assert request.pages


def test_clauses_come_from_words_files_images_and_objects_with_weights(answers: type[Answers], tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    request = asked(
        f"beach --plus 'at night^0.5' --minus people --like {tmp_path}/a.jpg^2 --unlike {tmp_path}/a.jpg"
        " --like-image i --like-object i#0"
    )
    assert [(part.asked[0], part.weight) for part in request.clauses] == [
        ("text", 1),
        ("image_id", 1),
        ("object_id", 1),
        ("text", 0.5),
        ("image", 2),
        ("text", -1),
        ("image", -1),
    ]
    assert request.clauses[3].text == "at night"


def test_one_question_is_no_clause(answers: type[Answers], tmp_path: Path) -> None:
    assert asked("beach").asked == ("text",)
    assert asked(f"--image {photo(tmp_path / 'a.png')}").asked == ("image",)
    assert asked("--like-object i#0").asked == ("object_id",)
    assert asked("'x^2'").text == "x^2"
    assert asked("--words garden").asked == ()


def test_filters_ask_what_they_say(answers: type[Answers]) -> None:
    filters = asked(
        "x --class a --class b --all-classes --not-class c --min-count 2 --min-confidence 0.5 --tag t --any-tag u"
        " --any-tag v --not-tag w --before 2026-02-01T10:00:00+0200 --uploaded-after 2026-01-03 --uploaded-before"
        " 2026-01-04 --min-width 1 --max-width 2 --min-height 3 --max-height 4 --min-area 0.1 --max-area 0.2"
    ).filters
    assert (filters.classes.all, filters.classes.any, filters.classes.none) == (("a", "b"), (), ("c",))
    assert (filters.classes.min_count, filters.min_confidence) == (2, 0.5)
    assert (filters.tags.all, filters.tags.any, filters.tags.none) == (("t",), ("u", "v"), ("w",))
    assert str(filters.captured_to) == "2026-02-01 08:00:00+00:00"
    assert str(filters.uploaded_from) < str(filters.uploaded_to)
    assert (filters.min_width, filters.max_width, filters.min_height, filters.max_height) == (1, 2, 3, 4)
    assert (filters.min_area, filters.max_area) == (0.1, 0.2)


def test_conditions_on_metadata_are_numbers_strings_truths_and_ranges(answers: type[Answers]) -> None:
    given = "site=north 'temperature>=20' 'temperature<30' night=true 'number=\"12\"' 'at<2026-02' 'url=a=b' n=-1.5"
    metadata = asked("x " + " ".join(f"--meta {one}" for one in given.split())).filters.metadata
    assert [one.model_dump(exclude_none=True) for one in metadata] == [
        {"field": "site", "equals": "north"},
        {"field": "temperature", "at_least": 20, "below": 30},
        {"field": "night", "equals": True},
        {"field": "number", "equals": "12"},
        {"field": "at", "below": "2026-02"},
        {"field": "url", "equals": "a=b"},
        {"field": "n", "equals": -1.5},
    ]


def test_everything_else_is_asked_too(answers: type[Answers]) -> None:
    request = asked(
        "x --objects --group --words garden --words-weight 0.3 --fusion weighted --min-relevance 0.5 -k 7 --facets"
        " --vectors --exact"
    )
    assert (request.target, request.group, request.lexical, request.lexical_weight) == (
        "objects",
        "image",
        "garden",
        0.3,
    )
    assert (request.fusion, request.min_relevance, request.k) == ("weighted", 0.5, 7)
    assert request.facets == ("classes", "tags", "captured_month", "uploaded_month")
    assert (request.include_vectors, request.exact, request.pages) == (True, True, False)


def test_every_field_of_a_request_can_be_asked() -> None:
    """A new field needs an option; the command line has no use for the four that are named."""
    import inspect

    from sightlog import find_question

    source = inspect.getsource(find_question)
    for name in {*SearchRequest.model_fields} - {"dataref", "vector", "model_digest", "cursor"}:
        assert f'"{name}"' in source, name


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("", "say what is looked for"),
        ("--minus people", "negative clauses alone"),
        ("x --meta site", "is not FIELD=VALUE"),
        ("x --meta 'a>3'", "is not FIELD=VALUE"),
        ("x --like nowhere.jpg", "no file 'nowhere.jpg'"),
        ("x --group", "only objects are grouped"),
        ("x --tag a --not-tag a", "wanted and not wanted"),
        ("x --after 2026-01-02 --before 2026-01-02", "nothing lies between"),
        ("--words x --min-relevance 0.5", "no relevance"),
        ("x --class a --class b --all-classes --objects", "an object has one class"),
    ],
)
def test_what_cannot_be_asked_is_a_usage_error(arguments: str, why: str, answers: type[Answers]) -> None:
    result = run(arguments)
    assert result.exit_code == 2
    assert why in " ".join(result.output.split())
    assert Answers.asked == []


def test_a_query_picture_that_is_too_large_is_a_usage_error(answers: type[Answers], tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(b"x" * (5 * 1024 * 1024 + 1))
    (tmp_path / "empty.jpg").touch()
    for name in ("large", "empty"):
        result = run(f"--like {tmp_path}/{name}.jpg")
        assert (result.exit_code, "5 MiB" in " ".join(result.output.split())) == (2, True)


# Pages.


def test_all_pages_are_shown_and_written_as_lines(answers: type[Answers]) -> None:
    Answers.answer = pages_of(25)
    replies = [orjson.loads(line) for line in run("x --all --json").stdout.splitlines()]
    assert [len(reply["hits"]) for reply in replies] == [10, 10, 5]
    assert "24.jpg" in run("x --all").output


def test_pages_go_on_for_as_long_as_somebody_wants_them(answers: type[Answers]) -> None:
    Answers.answer = pages_of(25)
    assert "next page?" in run("x --page", input="y\nn\n").output
    assert len(Answers.asked) == 2
    Answers.asked.clear()
    assert run("x --page", input="y\ny\ny\n").output.count("next page?") == 2, "after the last page nobody is asked"
    assert len(Answers.asked) == 3
    Answers.asked.clear()
    assert run("x --page", input="").exit_code == 0
    assert len(Answers.asked) == 1, "nobody is there"


# The table.


def test_a_search_that_found_nothing_good_says_so(answers: type[Answers]) -> None:
    Answers.answer = lambda _request: SearchReply(hits=(hit(relevance=0.125),), no_good_match=True, partial=True)
    printed = run("x").output
    assert "0.125" in printed
    assert "nothing better than this: no hit reaches a relevance of 0.5" in printed
    assert "did not answer in time" in printed
    Answers.answer = lambda _request: SearchReply(hits=(hit(relevance=0.875),))
    printed = run("x").output
    assert ("0.875" in printed, "nothing better" in printed, "not calibrated" in printed) == (True, False, False)


def test_scores_that_are_not_calibrated_are_not_made_to_look_so(answers: type[Answers]) -> None:
    printed = run("x").output
    assert "not calibrated, scores only order" in printed
    assert "relevance" not in printed


def test_words_alone_have_a_score_of_words_and_no_cosine(answers: type[Answers]) -> None:
    Answers.answer = lambda _request: SearchReply(hits=(hit(cosine=None, lexical_score=3.25),))
    printed = run("--words x").output
    assert "3.250" in printed
    assert "cosine" not in printed


def test_facets_are_counted_below_the_hits(answers: type[Answers]) -> None:
    facets = {"classes": [{"value": "star", "count": 7}, {"value": "ring", "count": 2}]}
    Answers.answer = lambda _request: SearchReply.model_validate({"hits": [hit()], "facets": facets})
    assert "classes  star 7  ring 2" in run("x --facets").output


def test_a_hostile_name_cannot_control_the_terminal(answers: type[Answers]) -> None:
    Answers.answer = lambda _request: SearchReply(hits=(hit("\x1b]0;owned\x07[red]"),))
    printed = run("x").output
    assert "\x1b" not in printed
    assert "[red]" in printed


# Pictures of hits.


def test_a_picture_is_found_by_its_reference_or_by_its_name_in_the_folder_alone(tmp_path: Path) -> None:
    def place(source: str, folder: Path | None = tmp_path) -> Path | None:
        return hit_pictures.path_of(hit(source=source), folder)

    assert place("file:///a/b%20c.jpg", None) == Path("/a/b c.jpg")
    assert place("file://localhost/a.jpg") == Path("/a.jpg")
    assert place("file://elsewhere/a.jpg") is None
    assert place("a.jpg") == tmp_path / "a.jpg"
    assert place("../../etc/a.jpg") == tmp_path / "a.jpg"
    assert place("a.jpg", None) is None
    for source in ("https://example.org/a.jpg", "s3://bucket/a.jpg", "http://[", ".."):
        assert place(source) in (None, tmp_path / "..")


def test_pictures_are_small_upright_and_cut_to_the_object(tmp_path: Path) -> None:
    wide = Image.new("RGB", (800, 400), BLUE)
    wide.paste(RED, (0, 0, 200, 400))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: what is left comes up
    wide.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = hit(width=400, height=800, object_id="a#0", box=(0, 0, 400, 200))
    whole = hit_pictures.picture(tmp_path / "turned.jpg", turned, 100)
    cut = hit_pictures.picture(tmp_path / "turned.jpg", turned, 100, crop=True)
    assert whole is not None
    assert cut is not None
    assert (whole.size, cut.size) == ((50, 100), (100, 50))
    assert min(cut.getpixel((x, 25))[0] for x in range(100)) > 150  # type: ignore[index]


def test_what_is_no_picture_is_none(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "cut.jpg").write_bytes(photo(tmp_path / "a.jpg").read_bytes()[:400])
    photo(tmp_path / "other.gif")
    os.mkfifo(tmp_path / "pipe.jpg")
    Image.new("1", (20_000, 6000)).save(tmp_path / "huge.png")
    for name in ("text.jpg", "folder.jpg", "cut.jpg", "other.gif", "pipe.jpg", "huge.png", "nowhere.jpg"):
        assert hit_pictures.picture(tmp_path / name, hit(), 100) is None, name
    assert hit_pictures.picture(Path("/dev/zero"), hit(), 100) is None
    outside = hit(box=(9000, 9000, 9100, 9100))
    assert hit_pictures.picture(tmp_path / "a.jpg", outside, 100, crop=True) is None


# Thumbnails.


def console(**more: Any) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, color_system="truecolor", width=120, legacy_windows=False, **more
    )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "x"}, "blocks"),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, None),
    ],
)
def test_the_terminal_says_how_it_shows_pictures(environment: dict[str, str], expected: str | None) -> None:
    assert thumbnails.way(console(), environment) == expected


def test_no_terminal_no_pictures() -> None:
    assert thumbnails.way(Console(file=io.StringIO()), {"TERM": "xterm-kitty"}) is None
    plain = Console(file=io.StringIO(), force_terminal=True, color_system=None)
    assert thumbnails.way(plain, {"TERM": "vt100"}) is None


def shown(reply: SearchReply, way: thumbnails.Way | None, folder: Path | None) -> str:
    to = console()
    show(reply, objects=False, console=to, way=way, folder=folder)
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def two(tmp_path: Path) -> SearchReply:
    photo(tmp_path / "a.jpg")
    return SearchReply(hits=(hit("a"), hit("no picture")))


def test_blocks_are_coloured_as_the_picture_and_of_one_height_for_all(tmp_path: Path) -> None:
    printed = shown(two(tmp_path), "blocks", tmp_path)
    lines = printed.splitlines()
    assert len(lines) == 1 + 2 * thumbnails.ROWS + 1
    assert any("\N{UPPER HALF BLOCK}" in line and "38;2;" in line for line in lines[1 : 1 + thumbnails.ROWS])
    assert not any("\N{UPPER HALF BLOCK}" in line for line in lines[1 + thumbnails.ROWS :])
    red, green, blue = (int(part) for part in printed.split("38;2;")[1].split("m")[0].split(";")[:3])
    assert red > 150
    assert max(green, blue) < 60


@pytest.mark.parametrize(
    ("way", "begins"), [("kitty", "\x1b_Ga=T,f=100,c=16,r=5,C=1,q=2,"), ("iterm2", "\x1b]1337;File=")]
)
def test_graphics_are_drawn_over_the_room_of_their_hit(way: Any, begins: str, tmp_path: Path) -> None:
    printed = shown(two(tmp_path), way, tmp_path)
    assert printed.count(begins) == 1
    before, after = printed.split(begins)
    assert before.count("\n") == 1 + thumbnails.ROWS
    assert before.endswith(f"\x1b7\x1b[{thumbnails.ROWS}A\r")
    assert after.split("\x1b8")[1].count("\n") == thumbnails.ROWS + 1
    assert all(len(part) < 4200 for part in printed.split("\x1b_G"))


def test_without_any_picture_the_table_has_no_room_for_them(tmp_path: Path) -> None:
    reply = SearchReply(hits=(hit("a"),))
    assert shown(reply, "kitty", tmp_path) == shown(reply, None, None)


def test_without_pillow_there_are_no_thumbnails(answers: type[Answers], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "can_read", lambda: False)
    monkeypatch.setattr(hit_pictures, "picture", lambda *_some: pytest.fail("a picture is read"))
    assert run("x --thumbnails blocks").exit_code == 0


# The contact sheet.

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&lt;"


class Page(HTMLParser):
    """Collects the elements with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def hostile_hit(**more: Any) -> Hit:
    return hit(
        HOSTILE,
        **{
            "source": HOSTILE,
            "object_id": HOSTILE,
            "class": HOSTILE,
            "tags": (HOSTILE,),
            "metadata": {HOSTILE: [HOSTILE]},
            "box": (1, 2, 3, 4),
            **more,
        },
    )


def test_hostile_names_and_tags_become_text_never_markup() -> None:
    page = Page(contact_sheet([SearchReply(hits=(hostile_hit(), hostile_hit(source=f"file:///{HOSTILE}")))], HOSTILE))
    harmless = {"html", "head", "meta", "title", "style", "body", "h1", "p", "main", "figure", "div", "svg", "rect"}
    harmless |= {"figcaption", "strong", "dl", "dt", "dd", "a"}
    assert {tag for tag, _ in page.elements} == harmless
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 10
    (policy,) = [one for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in (policy["content"] or "")


@pytest.mark.parametrize(
    "source", ["javascript:alert(1)", "data:text/html,x", "JaVaScRiPt:alert(1)", "a.jpg", "http://["]
)
def test_only_places_that_can_be_looked_at_are_links(source: str) -> None:
    page = Page(contact_sheet([SearchReply(hits=(hit(source=source),))], "x"))
    assert (page.all("a"), source in page.text) == ([], True)
    page = Page(contact_sheet([SearchReply(hits=(hit(source="https://example.org/a?b&c"),))], "x"))
    assert [link["href"] for link in page.all("a")] == ["https://example.org/a?b&c"]


def test_the_sheet_holds_its_pictures_and_draws_boxes_in_their_place(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    source = (tmp_path / "a.jpg").as_uri()
    found = (
        hit(source=source, object_id="a#0", box=(64, 48, 320, 240), relevance=0.25),
        hit("gone", source="gone.jpg"),
    )
    page = Page(contact_sheet([SearchReply(hits=found, no_good_match=True)], "a red star"))
    (image,) = page.all("img")
    assert (image["src"] or "").startswith("data:image/jpeg;base64,")
    assert page.all("svg")[0]["viewbox"] == "0 0 640 480"
    assert page.all("rect") == [{"x": "64.0", "y": "48.0", "width": "256.0", "height": "192.0"}]
    assert len(page.all("figure")) == 2
    assert "Nothing better than this" in page.text
    assert "gone.jpg" in page.text


def test_a_file_that_is_no_picture_is_not_put_into_the_sheet(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_text("secret")
    html = contact_sheet([SearchReply(hits=(hit(source=(tmp_path / "secret.jpg").as_uri()),))], "x")
    assert Page(html).all("img") == []


def test_the_sheet_without_pillow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hit_pictures, "can_read", lambda: False)
    assert "pip install 'sightlog[scenes]'" in Page(contact_sheet([SearchReply(hits=(hit(),))], "x")).text


def test_the_sheet_is_written_and_opened(
    answers: type[Answers], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Answers.answer = pages_of(15)
    assert run(f"'a <b>' --minus c --all --out {tmp_path}/sheet.html").exit_code == 0
    assert opened == []
    page = Page((tmp_path / "sheet.html").read_text())
    assert len(page.all("figure")) == 15
    assert "a <b> - c" in page.text
    assert run("x --open").exit_code == 0
    (uri,) = opened
    name = Path(uri.removeprefix("file://"))
    assert name.parent == tmp_path
    assert name.stat().st_mode & 0o077 == 0, "nobody else reads what was found"
