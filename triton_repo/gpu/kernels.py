"""GPU kernels, in Triton's language: suppression of boxes, and crops of any size out of pictures of any size."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def suppress_kernel(
    boxes,
    scores,
    classes,
    kept,
    candidates,
    iou_threshold,
    score_threshold,
    BLOCK: tl.constexpr,
):
    """One program a picture; see `suppression.suppress`. Candidates below the threshold cost nothing."""
    start = tl.program_id(0) * candidates
    row = tl.arange(0, BLOCK)
    real = row < candidates
    score = tl.load(scores + start + row, mask=real, other=0.0)
    mine = boxes + (start + row) * 4
    x1 = tl.load(mine, mask=real, other=0.0)
    y1 = tl.load(mine + 1, mask=real, other=0.0)
    x2 = tl.load(mine + 2, mask=real, other=0.0)
    y2 = tl.load(mine + 3, mask=real, other=0.0)
    kind = tl.load(classes + start + row, mask=real, other=-1)
    area = (x2 - x1) * (y2 - y1)
    alive = (real & (score > score_threshold)).to(tl.int32)
    for rival in range(0, tl.sum(alive, 0)):
        its = boxes + (start + rival) * 4
        rx1 = tl.load(its)
        ry1 = tl.load(its + 1)
        rx2 = tl.load(its + 2)
        ry2 = tl.load(its + 3)
        width = tl.maximum(tl.minimum(x2, rx2) - tl.maximum(x1, rx1), 0.0)
        height = tl.maximum(tl.minimum(y2, ry2) - tl.maximum(y1, ry1), 0.0)
        shared = width * height
        union = area + (rx2 - rx1) * (ry2 - ry1) - shared
        same = kind == tl.load(classes + start + rival)
        # Not a division: boxes without area would give NaN.
        beaten = same & (row > rival) & (shared > iou_threshold * union) & (shared > 0.0)
        stands = tl.sum(tl.where(row == rival, alive, 0), 0)
        alive = tl.where(beaten & (stands > 0), 0, alive)
    tl.store(kept + start + row, tl.where(alive > 0, score, 0.0), mask=real)


@triton.jit
def crop_kernel(
    pictures,
    places,
    crops,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    SUPPORT: tl.constexpr,
    PAD: tl.constexpr,
):
    """One program a row of a crop: an antialiased resize straight from the picture, rounded once.

    pictures: int64 [p, 3], address of uint8 [h, w, 3], h, w
    places: float32 [n, 6], picture, left, top, side in its pixels, and whether it ends at the picture's edge (1) or
    goes on as PAD (0), along x and along y
    crops: uint8 [n, SIZE, SIZE, 3]
    The filter is a triangle (SUPPORT 1) or Keys' cubic (SUPPORT 2), widened by the scale where the crop shrinks.
    """
    crop = tl.program_id(0).to(tl.int64)
    place = places + crop * 6
    picture = pictures + tl.load(place).to(tl.int64) * 3
    base = tl.load(picture).to(tl.pointer_type(tl.uint8))
    height = tl.load(picture + 1).to(tl.int32)
    width = tl.load(picture + 2).to(tl.int32)
    scale = tl.load(place + 3) / SIZE
    stretch = tl.maximum(scale, 1.0)
    reach = stretch * SUPPORT
    taps = (2.0 * reach).to(tl.int32) + 2
    ends_x = tl.load(place + 4) > 0.0
    ends_y = tl.load(place + 5) > 0.0

    row = tl.program_id(1)
    middle_y = tl.load(place + 2) + (row + 0.5) * scale
    first_y = tl.floor(middle_y - reach + 0.5).to(tl.int32)
    last_y = tl.floor(middle_y + reach + 0.5).to(tl.int32)
    column = tl.arange(0, BLOCK)
    middle_x = tl.load(place + 1) + (column + 0.5) * scale
    first_x = tl.floor(middle_x - reach + 0.5).to(tl.int32)
    last_x = tl.floor(middle_x + reach + 0.5).to(tl.int32)
    if ends_y:
        first_y = tl.maximum(first_y, 0)
        last_y = tl.minimum(last_y, height)
    if ends_x:
        first_x = tl.maximum(first_x, 0)
        last_x = tl.minimum(last_x, width)

    red = tl.zeros([BLOCK], tl.float32)
    green = tl.zeros([BLOCK], tl.float32)
    blue = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for tap_x in range(0, taps):
        x = first_x + tap_x
        weight_x = tl.where(x < last_x, filter_weight((x + 0.5 - middle_x) / stretch, SUPPORT), 0.0)
        inside_x = (x >= 0) & (x < width) & (x < last_x) & (column < SIZE)
        for y in range(first_y, last_y):
            weight = weight_x * filter_weight((y + 0.5 - middle_y) / stretch, SUPPORT)
            inside = inside_x & (y >= 0) & (y < height)
            pixel = base + (y * width + x) * 3
            red += weight * tl.load(pixel, mask=inside, other=PAD).to(tl.float32)
            green += weight * tl.load(pixel + 1, mask=inside, other=PAD).to(tl.float32)
            blue += weight * tl.load(pixel + 2, mask=inside, other=PAD).to(tl.float32)
            total += weight
    out = crops + ((crop * SIZE + row) * SIZE + column) * 3
    real = column < SIZE
    tl.store(out, rounded(red / total), mask=real)
    tl.store(out + 1, rounded(green / total), mask=real)
    tl.store(out + 2, rounded(blue / total), mask=real)


@triton.jit
def filter_weight(distance, SUPPORT: tl.constexpr):
    """Pillow's filters: bilinear, and bicubic with a = -0.5."""
    t = tl.abs(distance)
    if SUPPORT == 1:
        return tl.maximum(1.0 - t, 0.0)
    near = (1.5 * t - 2.5) * t * t + 1.0
    far = ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0
    return tl.where(t < 1.0, near, tl.where(t < 2.0, far, 0.0))


@triton.jit
def rounded(level):
    """A grey level as uint8, halves up."""
    return tl.minimum(tl.maximum(level + 0.5, 0.0), 255.0).to(tl.uint8)


@triton.jit
def depthwise_kernel(
    x,
    weight,
    bias,
    out,
    height,
    width,
    channels,
    rows,
    columns,
    outputs,
    tiles_y,
    tiles_x,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    MULTIPLE: tl.constexpr,
    GELU: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a square of TILE x TILE output pixels and BLOCK channels; see `convolutions.depthwise`.

    x: [n, height, width, channels]      out: [n, rows, columns, outputs]      weight: [KERNEL * KERNEL, outputs]
    """
    tile = tl.program_id(0)
    picture = (tile // (tiles_y * tiles_x)).to(tl.int64)
    pixel = tl.arange(0, TILE * TILE)
    row = (tile // tiles_x) % tiles_y * TILE + pixel // TILE
    column = tile % tiles_x * TILE + pixel % TILE
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = channel < outputs
    total = tl.zeros([TILE * TILE, BLOCK], tl.float32)
    total += tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)[None, :]
    if MULTIPLE == 2:  # noqa: SIM108  (not known in the language)
        # Neighbours share an input: it is loaded once, a block of them at a time, and doubled in registers.
        wanted = tl.program_id(1) * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
    else:
        wanted = channel // MULTIPLE
    source = x + picture * height * width * channels + wanted[None, :]
    there = (wanted < channels)[None, :]
    for tap_y in range(0, KERNEL):
        y = row * STRIDE + tap_y - PADDING
        for tap_x in tl.static_range(0, KERNEL):
            at = column * STRIDE + tap_x - PADDING
            inside = (y >= 0) & (y < height) & (at >= 0) & (at < width)
            value = tl.load(source + ((y * width + at) * channels)[:, None], mask=inside[:, None] & there, other=0.0)
            if MULTIPLE == 2:
                value = tl.interleave(value, value)
            factor = tl.load(weight + (tap_y * KERNEL + tap_x) * outputs + channel, mask=real, other=0.0)
            total += value.to(tl.float32) * factor.to(tl.float32)[None, :]
    total = activated(total, GELU)
    target = out + picture * rows * columns * outputs + ((row * columns + column) * outputs)[:, None] + channel[None, :]
    kept = ((row < rows) & (column < columns))[:, None] & real[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=kept)


@triton.jit
def depthwise_rows_kernel(
    x,
    weight,
    bias,
    out,
    height,
    width,
    channels,
    tiles_y,
    tiles_x,
    KERNEL: tl.constexpr,
    PADDING: tl.constexpr,
    GELU: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As `depthwise_kernel` for KERNEL 3 or 7, stride 1 and a result as large as x: four rows of it at once.

    A loaded pixel serves all rows that see it, and a weight all four; loading is what the other kernel is bound by.
    """
    tile = tl.program_id(0)
    picture = (tile // (tiles_y * tiles_x)).to(tl.int64) * height * width * channels
    first = (tile // tiles_x) % tiles_y * 4
    column = tile % tiles_x * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = channel < channels
    start = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)[None, :]
    total0 = tl.zeros([COLUMNS, BLOCK], tl.float32) + start
    total1 = total0
    total2 = total0
    total3 = total0
    source = x + picture + channel[None, :]
    for tap_x in range(0, KERNEL):
        at = column + tap_x - PADDING
        inside = ((at >= 0) & (at < width))[:, None] & real[None, :]
        factors = weight + tap_x * channels + channel
        step = KERNEL * channels
        w0 = tl.load(factors, mask=real, other=0.0).to(tl.float32)[None, :]
        w1 = tl.load(factors + step, mask=real, other=0.0).to(tl.float32)[None, :]
        w2 = tl.load(factors + 2 * step, mask=real, other=0.0).to(tl.float32)[None, :]
        w3, w4, w5, w6 = w0, w0, w0, w0
        if KERNEL == 7:
            w3 = tl.load(factors + 3 * step, mask=real, other=0.0).to(tl.float32)[None, :]
            w4 = tl.load(factors + 4 * step, mask=real, other=0.0).to(tl.float32)[None, :]
            w5 = tl.load(factors + 5 * step, mask=real, other=0.0).to(tl.float32)[None, :]
            w6 = tl.load(factors + 6 * step, mask=real, other=0.0).to(tl.float32)[None, :]
        for y in tl.static_range(0, 3 + KERNEL):
            row = first + y - PADDING
            there = inside & (row >= 0) & (row < height)
            value = tl.load(source + ((row * width + at) * channels)[:, None], mask=there, other=0.0).to(tl.float32)
            if y < KERNEL:
                total0 += value * chosen(y, w0, w1, w2, w3, w4, w5, w6)
            if y >= 1 and y < KERNEL + 1:
                total1 += value * chosen(y - 1, w0, w1, w2, w3, w4, w5, w6)
            if y >= 2 and y < KERNEL + 2:
                total2 += value * chosen(y - 2, w0, w1, w2, w3, w4, w5, w6)
            if y >= 3:
                total3 += value * chosen(y - 3, w0, w1, w2, w3, w4, w5, w6)
    target = out + picture + ((first * width + column) * channels)[:, None] + channel[None, :]
    kept = (column < width)[:, None] & real[None, :]
    line = width * channels
    tl.store(target, activated(total0, GELU).to(out.dtype.element_ty), mask=kept & (first < height))
    tl.store(target + line, activated(total1, GELU).to(out.dtype.element_ty), mask=kept & (first + 1 < height))
    tl.store(target + 2 * line, activated(total2, GELU).to(out.dtype.element_ty), mask=kept & (first + 2 < height))
    tl.store(target + 3 * line, activated(total3, GELU).to(out.dtype.element_ty), mask=kept & (first + 3 < height))


@triton.jit
def chosen(index: tl.constexpr, w0, w1, w2, w3, w4, w5, w6):
    """The weight of that number, which the compiler knows."""
    if index == 0:  # noqa: SIM116  (not known in the language)
        return w0
    elif index == 1:
        return w1
    elif index == 2:
        return w2
    elif index == 3:
        return w3
    elif index == 4:
        return w4
    elif index == 5:
        return w5
    else:
        return w6


@triton.jit
def activated(value, GELU: tl.constexpr):
    """GELU, exact, or nothing."""
    if GELU:
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    return value
