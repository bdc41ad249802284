"""The programs that run on the GPU, in Triton; the only file that imports it.

A map is channels last, `(N, rows, columns, channels)`, so that a pixel is a row of memory and a split some
columns of it: `part * WIDTH` is where split `part` begins. What only these programs read lies by part,
`(parts, pixels, WIDTH)`, and is dense for PyTorch too. A program computes BLOCK_M pixels by BLOCK_N channels.
Sums are in ACC (float32), places in 64 bits. What is known at compile time is in capitals: from WIDTH the
compiler knows how many bytes a load may take.
"""

import triton
import triton.language as tl


@triton.jit
def _pixels(pixel, rows, columns):
    """Image, row and column of pixels counted over all images."""
    return (pixel // (rows * columns)).to(tl.int64), pixel // columns % rows, pixel % columns


@triton.jit
def _seen(tap, row, column, rows, columns, STRIDE: tl.constexpr, DILATION: tl.constexpr, BACK: tl.constexpr):
    """Where the tap of a 3x3 window reads: row, column, and whether that is inside the map.

    With BACK the other way: which window has the pixel under this tap.
    """
    down = (tap // 3 - 1) * DILATION
    right = (tap % 3 - 1) * DILATION
    if BACK:
        row = row - down
        column = column - right
        inside = (row >= 0) & (column >= 0)
        if STRIDE > 1:
            inside = inside & (row % STRIDE == 0) & (column % STRIDE == 0)
            row = row // STRIDE
            column = column // STRIDE
    else:
        row = row * STRIDE + down
        column = column * STRIDE + right
        inside = (row >= 0) & (column >= 0)
    return row, column, inside & (row < rows) & (column < columns)


@triton.jit
def _convolve(
    x,
    y,
    weight,
    pixel,
    pixels,
    first_channel,
    part,
    rows,
    columns,
    out_rows,
    out_columns,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    ROW: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    BACK: tl.constexpr,
    ADD: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
):
    """A 3x3 convolution as nine matrix products, or with BACK its gradient; `(BLOCK_M, BLOCK_N)`.

    Reads x and, with ADD, y in the same places, from maps of ROW channels; adds only where `part` is not the
    first. Weights are `(WIDTH, 9, GROUP)`; a block of channels reads the groups it needs, in STEPS steps.
    """
    image, row, column = _pixels(pixel, out_rows, out_columns)
    row = tl.where(pixel < pixels, row, -(2**20))  # outside of every map
    if BACK:
        centre = (image * (rows * columns) + (row * columns + column)) * ROW
    else:
        centre = (image * (rows * columns) + (row * columns + column) * STRIDE) * ROW
    n = first_channel + tl.arange(0, BLOCK_N)
    start = first_channel // GROUP * GROUP // BLOCK_K * BLOCK_K
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    # One loop, not two: the compiler overlaps the loads of an innermost loop with its products.
    for step in range(9 * STEPS):
        tap = step // STEPS
        k = start + step % STEPS * BLOCK_K + tl.arange(0, BLOCK_K)
        r, c, inside = _seen(tap, row, column, rows, columns, STRIDE, DILATION, BACK)
        if BACK and STRIDE > 1:
            place = ((image * (rows * columns) + (r * columns + c)) * ROW)[:, None]
        else:  # as far from the centre for all
            far = ((tap // 3 - 1) * columns + tap % 3 - 1) * (DILATION * ROW)
            place = (centre - far if BACK else centre + far)[:, None]
        mask = inside[:, None] & (k < WIDTH)[None, :]
        a = tl.load(x + place + k[None, :], mask=mask, other=0.0)
        if ADD:
            more = tl.load(y + place + k[None, :], mask=mask & (part > 0), other=0.0)
            a = (a.to(ACC) + more.to(ACC)).to(a.dtype)
        mask = (k < WIDTH)[:, None] & (n < WIDTH)[None, :]
        channel = k[:, None] if BACK else n[None, :]
        other = n[None, :] if BACK else k[:, None]
        if GROUP < WIDTH:
            mask = mask & (channel // GROUP == other // GROUP)
            other = other - channel // GROUP * GROUP
        place = (channel * 9 + tap) * GROUP + other
        b = tl.load(weight + place, mask=mask, other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee", out_dtype=ACC)
    return acc


@triton.jit
def _relu(x):
    return tl.where(x < 0, 0.0, x)  # keeps NaN, as torch's does


@triton.jit
def _last_split(
    x,
    y,
    pixel,
    pixels,
    n,
    rows,
    columns,
    out_rows,
    out_columns,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    STRIDE: tl.constexpr,
    POOL: tl.constexpr,
    BACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ACC: tl.constexpr,
):
    """Copy (POOL 0) or average the last split of x into that of y: counting the padding (1) or not (2).

    With BACK the gradient, from the smaller map x to y; `rows` and `columns` are those of x.
    """
    image, row, column = _pixels(pixel, out_rows, out_columns)
    x += (SCALE - 1) * WIDTH + n[None, :]
    to = y + (pixel.to(tl.int64) * (SCALE * WIDTH))[:, None] + (SCALE - 1) * WIDTH + n[None, :]
    mask = (pixel < pixels)[:, None] & (n < WIDTH)[None, :]
    if POOL == 0:
        out = tl.load(x + (pixel.to(tl.int64) * (SCALE * WIDTH))[:, None], mask=mask, other=0.0)
    else:
        out = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
        count = tl.zeros((BLOCK_M,), dtype=ACC)
        for tap in range(9):
            r, c, inside = _seen(tap, row, column, rows, columns, STRIDE, 1, BACK)
            place = (((image * rows + r) * columns + c) * (SCALE * WIDTH))[:, None]
            value = tl.load(x + place, mask=mask & inside[:, None], other=0.0).to(ACC)
            if POOL == 1:
                value = value / 9
            elif BACK:  # pixels of the larger map that this window has
                high = tl.minimum(r * STRIDE + 2, out_rows) - tl.maximum(r * STRIDE - 1, 0)
                wide = tl.minimum(c * STRIDE + 2, out_columns) - tl.maximum(c * STRIDE - 1, 0)
                value = value / tl.where(inside, high * wide, 1).to(ACC)[:, None]
            out += value
            count += tl.where(inside, 1, 0).to(ACC)
        if POOL == 2 and not BACK:
            out = out / tl.where(pixel < pixels, count, 1)[:, None]
    tl.store(to, out.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["first", "convs", "pixels", "rows", "columns", "out_rows", "out_columns"])
def convolve_splits(
    x,
    y,
    z,
    weight,
    scale,
    shift,
    partial,
    first,
    convs,
    pixels,
    rows,
    columns,
    out_rows,
    out_columns,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    POOL: tl.constexpr,
    ADD: tl.constexpr,
    STATISTICS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
):
    """Splits `first` to `first + convs` of x, and the last split where the grid's third axis goes on.

    Convolution, `scale` and `shift` of each channel and ReLU into their columns of y. With STATISTICS instead
    the bare convolution into z, by part, and into `partial`, `(2, SCALE - 1, tiles, WIDTH)`, the mean and the
    sum of squared differences from it over the pixels of a program. pixels: of y.
    """
    index = tl.program_id(2)
    part = first + index
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_channel = tl.program_id(1) * BLOCK_N
    n = first_channel + tl.arange(0, BLOCK_N)
    if index == convs:
        _last_split(
            x, y, pixel, pixels, n, rows, columns, out_rows, out_columns,
            WIDTH, SCALE, STRIDE, POOL, False, BLOCK_M, BLOCK_N, ACC,
        )  # fmt: skip
    else:
        acc = _convolve(
            x + part * WIDTH, y + (part - 1) * WIDTH, weight + part * (WIDTH * 9 * GROUP),
            pixel, pixels, first_channel, part, rows, columns, out_rows, out_columns,
            WIDTH, GROUP, SCALE * WIDTH, STRIDE, DILATION, False, ADD, STEPS, BLOCK_M, BLOCK_N, BLOCK_K, ACC,
        )  # fmt: skip
        known = n < WIDTH
        mask = (pixel < pixels)[:, None] & known[None, :]
        if STATISTICS:
            place = ((part.to(tl.int64) * pixels + pixel) * WIDTH)[:, None] + n[None, :]
            out = acc.to(z.dtype.element_ty)
            tl.store(z + place, out, mask=mask)
            value = tl.where(mask, out.to(ACC), 0.0)
            mean = tl.sum(value, 0) / tl.minimum(pixels - tl.program_id(0) * BLOCK_M, BLOCK_M)
            away = tl.where(mask, value - mean[None, :], 0.0)
            tiles = tl.num_programs(0)
            place = (part * tiles + tl.program_id(0)) * WIDTH + n
            tl.store(partial + place, mean, mask=known)
            tl.store(partial + (SCALE - 1) * WIDTH * tiles + place, tl.sum(away * away, 0), mask=known)
        else:
            factor = tl.load(scale + part * WIDTH + n, mask=known, other=0.0)
            offset = tl.load(shift + part * WIDTH + n, mask=known, other=0.0)
            out = _relu(acc * factor[None, :] + offset[None, :]).to(y.dtype.element_ty)
            place = (pixel.to(tl.int64) * (SCALE * WIDTH))[:, None] + part * WIDTH + n[None, :]
            tl.store(y + place, out, mask=mask)


@triton.jit(do_not_specialize=["rows", "columns"])
def convolve_image(
    x,
    y,
    weight,
    scale,
    shift,
    rows,
    columns,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    DILATION: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
):
    """All splits of one image of x, in turn: a block whose splits feed each other, without a pool."""
    size = rows * columns
    ROW: tl.constexpr = SCALE * WIDTH
    x += tl.program_id(0).to(tl.int64) * size * ROW
    y += tl.program_id(0).to(tl.int64) * size * ROW
    for part in range(SCALE - 1):
        for first_pixel in range(0, size, BLOCK_M):
            pixel = first_pixel + tl.arange(0, BLOCK_M)
            for first_channel in range(0, WIDTH, BLOCK_N):
                n = first_channel + tl.arange(0, BLOCK_N)
                acc = _convolve(
                    x + part * WIDTH, y + (part - 1) * WIDTH, weight + part * (WIDTH * 9 * GROUP),
                    pixel, size, first_channel, part, rows, columns, rows, columns,
                    WIDTH, GROUP, ROW, 1, DILATION, False, True, STEPS, BLOCK_M, BLOCK_N, BLOCK_K, ACC,
                )  # fmt: skip
                factor = tl.load(scale + part * WIDTH + n, mask=n < WIDTH, other=0.0)
                offset = tl.load(shift + part * WIDTH + n, mask=n < WIDTH, other=0.0)
                out = _relu(acc * factor[None, :] + offset[None, :]).to(y.dtype.element_ty)
                mask = (pixel < size)[:, None] & (n < WIDTH)[None, :]
                tl.store(y + (pixel * ROW)[:, None] + part * WIDTH + n[None, :], out, mask=mask)
        tl.debug_barrier()  # the next split reads what other threads have written
    for first_pixel in range(0, size, BLOCK_M):
        pixel = first_pixel + tl.arange(0, BLOCK_M)
        for first_channel in range(0, WIDTH, BLOCK_N):
            n = first_channel + tl.arange(0, BLOCK_N)
            _last_split(
                x, y, pixel, size, n, rows, columns, rows, columns,
                WIDTH, SCALE, 1, 0, False, BLOCK_M, BLOCK_N, ACC,
            )  # fmt: skip


@triton.jit(do_not_specialize=["part", "pixels", "tiles", "tile"])
def combine_statistics(
    partial,
    statistics,
    gamma,
    beta,
    running_mean,
    running_var,
    part,
    pixels,
    tiles,
    tile,
    eps,
    momentum,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Mean and variance of split `part` from those of its tiles of `tile` pixels; running statistics.

    Writes into `statistics`, `(4, PARTS, WIDTH)`: mean, 1 / standard deviation, and the scale and shift that
    normalize. Chan, Golub and LeVeque, 1979: sums of squares are about a mean near the true one.
    """
    n = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = n < WIDTH
    partial += part * tiles * WIDTH
    near = tl.load(partial + n, mask=known, other=0.0)
    total = tl.zeros((BLOCK_C,), dtype=ACC)
    squares = tl.zeros((BLOCK_C,), dtype=ACC)
    for first in range(0, tiles, BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        mask = (t < tiles)[:, None] & known[None, :]
        place = (t * WIDTH)[:, None] + n[None, :]
        count = tl.minimum(pixels - t * tile, tile).to(ACC)[:, None]
        away = tl.load(partial + place, mask=mask, other=0.0) - near[None, :]
        own = tl.load(partial + PARTS * WIDTH * tiles + place, mask=mask, other=0.0)
        away = tl.where(mask, away, 0.0)
        total += tl.sum(count * away, 0)
        squares += tl.sum(own + count * away * away, 0)
    mean = near + total / pixels
    squares = squares - total * total / pixels
    squares = tl.where(squares < 0, 0.0, squares)
    rstd = 1 / tl.sqrt(squares / pixels + eps)
    scale = tl.load(gamma + n, mask=known, other=0.0) * rstd
    shift = tl.load(beta + n, mask=known, other=0.0) - mean * scale
    statistics += part * WIDTH + n
    tl.store(statistics, mean, mask=known)
    tl.store(statistics + PARTS * WIDTH, rstd, mask=known)
    tl.store(statistics + 2 * PARTS * WIDTH, scale, mask=known)
    tl.store(statistics + 3 * PARTS * WIDTH, shift, mask=known)
    old = tl.load(running_mean + n, mask=known, other=0.0)
    tl.store(running_mean + n, (1 - momentum) * old + momentum * mean, mask=known)
    old = tl.load(running_var + n, mask=known, other=0.0)
    tl.store(running_var + n, (1 - momentum) * old + momentum * squares / (pixels - 1), mask=known)


@triton.jit(do_not_specialize=["first", "pixels"])
def normalize_splits(
    z,
    y,
    statistics,
    first,
    pixels,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ACC: tl.constexpr,
):
    """ReLU of normalized z into the columns of y; one split a step of the grid's third axis."""
    part = first + tl.program_id(2)
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    known = n < WIDTH
    mask = (pixel < pixels)[:, None] & known[None, :]
    place = ((part.to(tl.int64) * pixels + pixel) * WIDTH)[:, None] + n[None, :]
    value = tl.load(z + place, mask=mask, other=0.0).to(ACC)
    statistics += part * WIDTH + n
    factor = tl.load(statistics + 2 * (SCALE - 1) * WIDTH, mask=known, other=0.0)
    offset = tl.load(statistics + 3 * (SCALE - 1) * WIDTH, mask=known, other=0.0)
    out = _relu(value * factor[None, :] + offset[None, :]).to(y.dtype.element_ty)
    tl.store(y + (pixel.to(tl.int64) * (SCALE * WIDTH))[:, None] + part * WIDTH + n[None, :], out, mask=mask)


@triton.jit(do_not_specialize=["first", "pixels"])
def norm_gradient(
    dy,
    dx,
    y,
    z,
    dz,
    statistics,
    sums,
    partial,
    first,
    pixels,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    ADD: tl.constexpr,
    BATCH: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ACC: tl.constexpr,
):
    """The gradient of a split behind its norm: that of y, with ADD plus that of the next split's input in dx,
    where the ReLU let through.

    With SUM into `partial`, `(2, SCALE - 1, tiles, WIDTH)`: its sum, and that of its product with the
    normalized map, over the pixels of a program. Else the gradient of the norm's input into dz, by part: of a
    norm over the batch (BATCH), whose `sums`, `(2, SCALE - 1, WIDTH)`, are known, or of a fixed one.
    """
    part = first + tl.program_id(2)
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    known = n < WIDTH
    mask = (pixel < pixels)[:, None] & known[None, :]
    row = (pixel.to(tl.int64) * (SCALE * WIDTH))[:, None] + part * WIDTH + n[None, :]
    gradient = tl.load(dy + row, mask=mask, other=0.0).to(ACC)
    if ADD:
        gradient += tl.load(dx + row + WIDTH, mask=mask & (part < SCALE - 2), other=0.0).to(ACC)
    gradient = tl.where(tl.load(y + row, mask=mask, other=0.0) <= 0, 0.0, gradient)
    place = ((part.to(tl.int64) * pixels + pixel) * WIDTH)[:, None] + n[None, :]
    PARTS: tl.constexpr = (SCALE - 1) * WIDTH
    statistics += part * WIDTH + n
    if BATCH:
        mean = tl.load(statistics, mask=known, other=0.0)
        rstd = tl.load(statistics + PARTS, mask=known, other=0.0)
        value = tl.load(z + place, mask=mask, other=0.0).to(ACC)
        value = (value - mean[None, :]) * rstd[None, :]
    if SUM:
        tiles = tl.num_programs(0)
        to = partial + (part * tiles + tl.program_id(0)) * WIDTH + n
        tl.store(to, tl.sum(gradient, 0), mask=known)
        tl.store(to + PARTS * tiles, tl.sum(tl.where(mask, gradient * value, 0.0), 0), mask=known)
    else:
        if BATCH:
            sums += part * WIDTH + n
            total = tl.load(sums, mask=known, other=0.0) / pixels
            product = tl.load(sums + PARTS, mask=known, other=0.0) / pixels
            gradient = gradient - total[None, :] - value * product[None, :]
        factor = tl.load(statistics + 2 * PARTS, mask=known, other=0.0)
        tl.store(dz + place, (gradient * factor[None, :]).to(dz.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["first", "convs", "pixels", "rows", "columns", "out_rows", "out_columns"])
def input_gradient(
    dz,
    dy,
    dx,
    weight,
    first,
    convs,
    pixels,
    rows,
    columns,
    out_rows,
    out_columns,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    POOL: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
):
    """The gradient dx of x, from that of the convolutions' outputs, dz, by part, and, for the last split, dy.

    The grid is that of `convolve_splits`; `pixels`, `out_rows` and `out_columns` are those of dx.
    """
    index = tl.program_id(2)
    part = first + index
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_channel = tl.program_id(1) * BLOCK_N
    n = first_channel + tl.arange(0, BLOCK_N)
    if index == convs:
        _last_split(
            dy, dx, pixel, pixels, n, rows, columns, out_rows, out_columns,
            WIDTH, SCALE, STRIDE, POOL, True, BLOCK_M, BLOCK_N, ACC,
        )  # fmt: skip
    else:
        images = pixels // (out_rows * out_columns)
        dz += part.to(tl.int64) * images * rows * columns * WIDTH
        acc = _convolve(
            dz, dz, weight + part * (WIDTH * 9 * GROUP),
            pixel, pixels, first_channel, part, rows, columns, out_rows, out_columns,
            WIDTH, GROUP, WIDTH, STRIDE, DILATION, True, False, STEPS, BLOCK_M, BLOCK_N, BLOCK_K, ACC,
        )  # fmt: skip
        mask = (pixel < pixels)[:, None] & (n < WIDTH)[None, :]
        place = (pixel.to(tl.int64) * (SCALE * WIDTH))[:, None] + part * WIDTH + n[None, :]
        tl.store(dx + place, acc.to(dx.dtype.element_ty), mask=mask)
