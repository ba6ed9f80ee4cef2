"""Every cause for which an event, a request or a message can fail: its code, its class, and what to do about it.

`docs/failures.md` shows this table; a test compares it with the source.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Fate(Enum):
    """What happens to whatever failed."""

    BROKEN = "dead letter at once"
    LATER = "retry tiers, then a dead letter"
    REFUSED = "error in the reply"
    UNREADABLE = "error to who reads the topic"


class Cause(NamedTuple):
    """One stable code; the same code may have another fate where somebody waits for an answer."""

    code: str
    fates: frozenset[Fate]
    meaning: str
    remedy: str


def _cause(code: str, *fates: Fate, meaning: str, remedy: str) -> Cause:
    return Cause(code, frozenset(fates), meaning, remedy)


_CAUSES = (
    # The event.
    _cause(
        "empty",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="there is no image: no value and no `dataref`, or a file of no bytes",
        remedy="publish the file or where it is",
    ),
    _cause(
        "not_cloudevent",
        Fate.BROKEN,
        meaning="neither the headers `ce_specversion` and `ce_type` nor a structured event",
        remedy="publish CloudEvents 1.0",
    ),
    _cause("bad_json", Fate.BROKEN, meaning="a structured event that is not JSON", remedy="correct the producer"),
    _cause(
        "bad_event",
        Fate.BROKEN,
        meaning="an attribute is missing, of the wrong type, or too long",
        remedy="correct the producer; the message names the attribute",
    ),
    _cause(
        "bad_image_id",
        Fate.BROKEN,
        meaning="nothing names the image, or its name is too long or not UTF-8",
        remedy="set the record key",
    ),
    _cause(
        "unsupported_type",
        Fate.BROKEN,
        meaning="an event type that this version does not know",
        remedy="update the workers, then replay; or correct the producer",
    ),
    _cause(
        "record_too_large",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="what the event became does not fit into a record",
        remedy="raise `max.message.bytes` of the topic",
    ),
    # Where the file is.
    _cause(
        "unsupported_source",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="a `dataref` of a scheme that is not read",
        remedy="publish file:, s3:, gs:, az: or https:",
    ),
    _cause(
        "source_not_allowed",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="a `dataref` outside the allowed folders, buckets or hosts, or an address that is private",
        remedy="allow the place in the settings of the vision worker, then replay",
    ),
    _cause(
        "source_forbidden",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="the worker's credentials may not read the file",
        remedy="let it read the place, then replay",
    ),
    _cause(
        "source_refused",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="the store refuses the request for good",
        remedy="the message has its answer; publish another reference",
    ),
    _cause(
        "source_gone",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="the host says that the file was there and will not come back",
        remedy="publish the upload again",
    ),
    _cause(
        "source_redirects",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="the address leads on and on",
        remedy="publish the address where the file is",
    ),
    _cause(
        "source_encoded",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="the file comes compressed, which was not asked for: what it expands to has no bound",
        remedy="serve it as it is",
    ),
    _cause(
        "source_missing",
        Fate.LATER,
        Fate.REFUSED,
        meaning="the file is not there",
        remedy="upload it, then replay",
    ),
    _cause(
        "source_throttled",
        Fate.LATER,
        Fate.REFUSED,
        meaning="the store says that it is asked too often",
        remedy="replay later",
    ),
    _cause(
        "source_failed",
        Fate.LATER,
        Fate.REFUSED,
        meaning="the store answers with an error",
        remedy="mend it, then replay",
    ),
    _cause(
        "source_unreachable",
        Fate.LATER,
        Fate.REFUSED,
        meaning="no connection to the store",
        remedy="mend it, then replay",
    ),
    _cause(
        "source_incomplete",
        Fate.LATER,
        Fate.REFUSED,
        meaning="the connection broke off within the file",
        remedy="replay later",
    ),
    _cause(
        "source_timeout",
        Fate.LATER,
        Fate.REFUSED,
        meaning="the file does not come in time",
        remedy="mend it, then replay",
    ),
    _cause(
        "too_large",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="the file is larger than allowed",
        remedy="raise SIGHTLOG_MAX_IMAGE_BYTES, then replay",
    ),
    _cause(
        "sha256_mismatch",
        Fate.BROKEN,
        meaning="the file is not the one that the event announced",
        remedy="publish the upload again",
    ),
    # The picture.
    _cause(
        "unsupported_format",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="not a picture, or of a format that is not read",
        remedy="publish JPEG, PNG or WebP",
    ),
    _cause(
        "undecodable", Fate.BROKEN, Fate.REFUSED, meaning="the picture is damaged", remedy="publish the upload again"
    ),
    _cause(
        "too_many_pixels",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="the picture would take too much memory",
        remedy="publish a smaller one",
    ),
    _cause(
        "too_complex",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="a file of so many scans, segments or chunks that decoding it would take minutes",
        remedy="save the picture anew",
    ),
    _cause(
        "unembeddable",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="the models have no finite answer to the picture",
        remedy="look at it; another model may do",
    ),
    _cause(
        "decoder_crash",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="the server that decodes died, and died again with this picture alone",
        remedy="keep the picture: it shows a fault of the decoder",
    ),
    _cause(
        "unknown_class",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="a class without a name: the detector found it, or a request asks for it",
        remedy="import the detector with all its classes; ask for one of those that the message names",
    ),
    # The index.
    _cause(
        "bad_document",
        Fate.BROKEN,
        meaning="a record of `images.embedded` that cannot be read",
        remedy="replay the image's event",
    ),
    _cause(
        "bad_vector",
        Fate.BROKEN,
        meaning="a vector of the wrong length, zero, or not finite",
        remedy="look at the model",
    ),
    _cause(
        "model_mismatch",
        Fate.BROKEN,
        Fate.REFUSED,
        meaning="the vectors are of another model than the index",
        remedy="run all workers with one model, then replay the image's event",
    ),
    _cause(
        "index_refused",
        Fate.BROKEN,
        meaning="OpenSearch refuses the document for good",
        remedy="the message says why",
    ),
    # Searches.
    _cause("bad_request", Fate.REFUSED, meaning="a request that cannot be read", remedy="correct the caller"),
    _cause(
        "unknown_image",
        Fate.REFUSED,
        meaning="a request for what is like an image that is not in the index",
        remedy="ask with an id that a hit has, or wait for the receipt of the upload",
    ),
    _cause(
        "unknown_object",
        Fate.REFUSED,
        meaning="a request for what is like an object that is not in the index",
        remedy="ask with an id that a hit has",
    ),
    _cause(
        "contradictory",
        Fate.REFUSED,
        meaning="clauses that cancel each other out: nothing is left to look for",
        remedy="change a clause or its weight",
    ),
    _cause(
        "not_calibrated",
        Fate.REFUSED,
        meaning="a request for a relevance that the model has no calibration for",
        remedy="leave `min_relevance` out, or run `sightlog models calibrate`",
    ),
    _cause(
        "bad_cursor",
        Fate.REFUSED,
        meaning="a cursor that this service did not make, or made for another model or version",
        remedy="send the cursor of the last reply as it came, else ask for the first page",
    ),
    _cause(
        "expired_cursor",
        Fate.REFUSED,
        meaning="a cursor whose time is over: what it pages through is no longer kept",
        remedy="ask for the first page",
    ),
    _cause(
        "too_many_cursors",
        Fate.REFUSED,
        meaning="more results are paged through than OpenSearch keeps open",
        remedy="ask again later, or without `pages`",
    ),
    _cause(
        "too_many_requests",
        Fate.REFUSED,
        meaning="one caller has too many requests waiting",
        remedy="ask again later, with fewer at once",
    ),
    _cause(
        "unavailable",
        Fate.REFUSED,
        meaning="Triton or OpenSearch did not answer before the deadline",
        remedy="ask again",
    ),
    _cause(
        "internal_error",
        Fate.REFUSED,
        meaning="the search worker failed over this request alone",
        remedy="its log says how; report it",
    ),
    _cause(
        "no_reply_address",
        Fate.BROKEN,
        meaning="a request without reply topic or correlation id",
        remedy="correct the caller",
    ),
    _cause(
        "reply_topic_refused",
        Fate.BROKEN,
        meaning="a request that wants its reply written to a topic that is not for replies",
        remedy="correct the caller, or SIGHTLOG_REPLY_TOPICS",
    ),
    # Readers of the topics.
    _cause("bad_reply", Fate.UNREADABLE, meaning="a reply that cannot be read", remedy="update the client"),
    _cause("bad_receipt", Fate.UNREADABLE, meaning="a receipt that cannot be read", remedy="update the client"),
    _cause("bad_dead_letter", Fate.UNREADABLE, meaning="a dead letter that cannot be read", remedy="update the client"),
    _cause("bad_resolution", Fate.UNREADABLE, meaning="a resolution that cannot be read", remedy="update the client"),
)

#: By code.
CAUSES: dict[str, Cause] = {cause.code: cause for cause in _CAUSES}


def table() -> str:
    """The causes as rows of a Markdown table, as `docs/failures.md` has them."""
    rows = ("| code | what happens | meaning | what to do |", "|---|---|---|---|")
    return "\n".join(
        (
            *rows,
            *(
                f"| `{cause.code}` | {' / '.join(fate.value for fate in Fate if fate in cause.fates)} "
                f"| {cause.meaning} | {cause.remedy} |"
                for cause in _CAUSES
            ),
        )
    )
