"""How the workers' memory is allocated."""

from __future__ import annotations

import ctypes

#: Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_large_buffers() -> None:
    """Let glibc reuse the buffers of images: by default it gives each back to the kernel, which fills the next one
    with zeros again, a fifth of what an image inline costs.

    The windows bound how many there are. A C library without mallopt goes on as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # The largest value that every glibc takes; what Kafka sends at once is smaller.
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
