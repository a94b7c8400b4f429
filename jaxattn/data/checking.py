"""Every image of a source, decoded once to see whether it can be."""

import concurrent.futures
from collections.abc import Iterator

from jaxattn.data.crops import CroppedImages
from jaxattn.data.labelled_images import LabelledImages
from jaxattn.data.source import Source, Subset
from jaxattn.errors import UserError

_NUM_THREADS = 8
_BLOCK = 256  # images, after which the caller is heard


def reads_files(source: Source) -> bool:
    """Whether a source decodes images when asked, and a bad one is an error."""
    if isinstance(source, Subset):
        return reads_files(source.source)
    return isinstance(source, CroppedImages | LabelledImages)


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
