"""What an attention adds to a network, and which paper it is from."""

import functools
import re
import sys
from typing import Any, NamedTuple

import flax.linen as nn

from jaxattn.models.cost import Cost, measure_cost
from jaxattn.models.registry import create_model
from jaxattn.models.slots import find_slot

# Of a block's file: authors, "title", venue and year. URL
_CITATION = re.compile(r'([^"]+)"([^"]+)",? ([^"]*?)[. ]*(https?://\S+)')


class Paper(NamedTuple):
    """Where a block was published.

    Attributes:
        citation: First author, venue and year.
        title: Its title; of a block without a paper, what its file says instead.
        url: Empty where there is none.
    """

    citation: str
    title: str
    url: str


def measure_added(
    attention: str, network: str, num_classes: int, image_shape: tuple[int, int, int]
) -> Cost:
    """Returns what a network costs more with an attention, by tracing both.

    Args:
        attention: A name of `jaxattn.models.slots.list_attention`.
        network: A name of `list_models()` that takes `attention=`.
        num_classes: Number of logits.
        image_shape: `(H, W, C)` of the image.

    Raises:
        ValueError: If the network does not take the attention, or the attention not the
            network's maps.
    """
    plain = _measure(network, num_classes, image_shape)
    module = create_model(network, num_classes, attention=attention)
    cost = measure_cost(module, image_shape)
    return Cost(
        cost.parameters - plain.parameters,
        cost.macs - plain.macs,
        cost.theoretical_macs - plain.theoretical_macs,
    )


@functools.cache
def _measure(network: str, num_classes: int, image_shape: tuple[int, int, int]) -> Cost:
    return measure_cost(create_model(network, num_classes), image_shape)


def block_of(attention: str) -> type[nn.Module]:
    """Returns the class of an attention's block.

    Args:
        attention: A name of `jaxattn.models.slots.list_attention`.
    """
    factory: Any = find_slot(attention).factory
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory


def find_paper(attention: str) -> Paper:
    """Returns the paper of an attention, as the block's file names it.

    Args:
        attention: A name of `jaxattn.models.slots.list_attention`.
    """
    about = sys.modules[block_of(attention).__module__].__doc__ or ""
    paragraph = " ".join(about.split("\n\n")[1].split())
    cited = _CITATION.findall(paragraph)
    if not cited or "no paper" in paragraph:
        return Paper(paragraph.split(", no paper")[0], "", "")
    # A file of two papers says which of them is which block's.
    own = [each for each in cited if f"({attention})" in each[2].lower()]
    authors, title, venue, url = (own or cited)[0]
    first, *others = (name.strip() for name in authors.strip(" ,").split(","))
    if others:
        first += " et al." if len(others) > 1 else f" and {others[0]}"
    return Paper(f"{first}, {venue.split(' (')[0]}", title, url)
