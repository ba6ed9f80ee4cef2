"""The names of a detector's classes: from a file, from what the exporter wrote into the ONNX, or COCO's."""

from __future__ import annotations

import ast
from pathlib import Path

import onnx

from models.detectors.errors import ClassNamesError

_COCO = Path(__file__).with_name("coco.txt")


def read_class_names(path: Path) -> tuple[str, ...]:
    """One name a line, in the order of the class ids. Raises ClassNamesError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ClassNamesError(f"{path} cannot be read ({error}); give a text file with one class name a line") from None
    names = tuple(line.strip() for line in lines)
    if not names or "" in names:
        where = f"line {names.index('') + 1} is empty" if names else "it is empty"
        raise ClassNamesError(f"{path} is no list of class names: {where}; write one name a line, by class id")
    return names


def coco_names() -> tuple[str, ...]:
    """The 80 classes of COCO in the order of its detectors."""
    return read_class_names(_COCO)


def names_in_metadata(model: onnx.ModelProto) -> tuple[str, ...] | None:
    """The entry `names` as exporters write it, "{0: 'person', 1: ...}" or "['person', ...]"; None where there is none.

    Raises ClassNamesError where it is something else.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == "names"), None)
    if text is None:
        return None
    try:
        value = ast.literal_eval(text)  # literals only: the file is not to be trusted with code
        if isinstance(value, dict):
            value = [value[number] for number in range(len(value))]
        names = tuple(value)
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        names = ()
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ClassNamesError(
            f"the ONNX metadata has class names that cannot be read ({text[:60]!r}); give them with --classes FILE"
        )
    return names


def fitting_names(given: tuple[str, ...] | None, stored: tuple[str, ...] | None, wanted: int | None) -> tuple[str, ...]:
    """`given` by the user, else `stored` in the file; `wanted` = classes of the head, None where it does not tell.

    Raises ClassNamesError where there are none, or not as many as the head has classes.
    """
    names = given or stored
    if names is None:
        count = f"{wanted} classes" if wanted else "classes"
        raise ClassNamesError(f"the file does not name the detector's {count}; give --classes FILE, one name a line")
    if wanted and len(names) != wanted:
        origin = "the file of --classes" if given else "the metadata of the ONNX"
        raise ClassNamesError(
            f"the detector has {wanted} classes, but {origin} names {len(names)}; "
            f"give --classes FILE with {wanted} lines"
        )
    return names
