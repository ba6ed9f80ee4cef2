"""Small pictures on a terminal: in the graphics protocols of kitty and iTerm2, else as coloured half blocks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from PIL.Image import Image

Way = Literal["kitty", "iterm2", "blocks"]

#: Of a thumbnail, in characters; a character is about twice as high as wide.
COLUMNS, ROWS = 16, 5
#: Pixels of a character in a picture that the terminal scales itself.
_CELL = (16, 32)
#: kitty takes at most this much in one escape sequence.
_CHUNK = 4096


def way(console: Console, environment: Mapping[str, str]) -> Way | None:
    """How this terminal shows pictures; None: not at all, or unwanted (NO_COLOR), or not a terminal."""
    if not console.is_terminal or console.is_dumb_terminal or environment.get("NO_COLOR"):
        return None
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    within_another = "TMUX" in environment or term.startswith(("screen", "tmux"))
    if not within_another:
        if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
            return "kitty"
        if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
            return "iterm2"
    return "blocks" if console.color_system in ("truecolor", "256") else None


def as_blocks(picture: Image) -> Text:
    """ROWS lines of COLUMNS half blocks, each of two pixels, one above the other; the picture in the middle."""
    small = picture.copy()
    small.thumbnail((COLUMNS, 2 * ROWS))
    left, above = (COLUMNS - small.width) // 2, (2 * ROWS - small.height) // 2

    def colour(x: int, y: int) -> Color | None:
        if not (0 <= x - left < small.width and 0 <= y - above < small.height):
            return None
        red, green, blue = small.getpixel((x - left, y - above))  # type: ignore[misc]  # RGB has three
        return Color.from_rgb(red, green, blue)

    lines = Text(no_wrap=True, end="")
    for row in range(ROWS):
        if row:
            lines.append("\n")
        for x in range(COLUMNS):
            upper, lower = colour(x, 2 * row), colour(x, 2 * row + 1)
            if upper is not None:
                lines.append("\N{UPPER HALF BLOCK}", Style(color=upper, bgcolor=lower))
            elif lower is not None:
                lines.append("\N{LOWER HALF BLOCK}", Style(color=lower))
            else:
                lines.append(" ")
    return lines


def blank() -> Text:
    """The room of a thumbnail."""
    return Text("\n".join([" " * COLUMNS] * ROWS), no_wrap=True, end="")


def drawn(picture: Image, how: Literal["kitty", "iterm2"]) -> str:
    """What to write to draw a picture in the room above the cursor's line, which is where it was in the end."""
    image = base64.standard_b64encode(_padded(picture)).decode("ascii")
    if how == "iterm2":
        shown = f"\x1b]1337;File=inline=1;width={COLUMNS};height={ROWS};preserveAspectRatio=1:{image}\a"
    else:
        chunks = [image[start : start + _CHUNK] for start in range(0, len(image), _CHUNK)]
        # Shown at once, silently, the cursor stays where it is.
        first = f"a=T,f=100,c={COLUMNS},r={ROWS},C=1,q=2,"
        shown = "".join(
            f"\x1b_G{first if number == 0 else ''}m={int(number < len(chunks) - 1)};{chunk}\x1b\\"
            for number, chunk in enumerate(chunks)
        )
    return f"\x1b7\x1b[{ROWS}A\r{shown}\x1b8"


def _padded(picture: Image) -> bytes:
    """A PNG of the shape of a thumbnail's room, with the picture in the middle."""
    from PIL import Image

    room = (COLUMNS * _CELL[0], ROWS * _CELL[1])
    small = picture.copy()
    small.thumbnail(room)
    canvas = Image.new("RGBA", room, (0, 0, 0, 0))
    canvas.paste(small, ((room[0] - small.width) // 2, (room[1] - small.height) // 2))
    encoded = io.BytesIO()
    canvas.save(encoded, "PNG")
    return encoded.getvalue()
