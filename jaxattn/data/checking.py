"""Every image of a source, decoded once to see whether it can be."""

import concurrent.futures
from collections.abc import Iterator

from jaxattn.data.source import Source
from jaxattn.errors import UserError

_NUM_THREADS = 8
_BLOCK = 256  # images, after which the caller is heard


def find_bad_images(source: Source) -> Iterator[list[str]]:
    """Yields what is wrong with images, for one block of a source after another.

    Args:
        source: Raises a `UserError` for an image that cannot be read, or gives its
            `error`.
    """

    def fault(index: int) -> str | None:
        try:
            return source[index].get("error")
        except UserError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        for start in range(0, len(source), _BLOCK):
            indices = range(start, min(start + _BLOCK, len(source)))
            yield [found for found in pool.map(fault, indices) if found is not None]
