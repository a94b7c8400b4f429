"""The gallery of docs/attention.md: of every block what it computes, and a picture.

    python benchmarks/gallery.py
    python benchmarks/gallery.py --pictures workdir/gallery \
        --config.data.path=FOLDER_OF_CIFAR10

The first writes the text, which is made from the blocks' own docstrings. The second
trains the network of `configs/attention_study.py` with every block for a few epochs,
unless the folder has it, and draws what a block of its second stage multiplied the maps
of a photo with.
"""

import argparse
import functools
import inspect
import pathlib
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from jaxattn.models.attention_cost import block_of, find_paper  # noqa: E402
from jaxattn.models.slots import Slot, find_slot, list_attention  # noqa: E402

PAGE, PICTURES = ROOT / "docs" / "attention.md", ROOT / "assets" / "gallery"
START, END = "<!-- gallery -->", "<!-- end -->"
_PHOTO = ROOT / "assets" / "horses.jpg"
_PLACES = {
    "inside": "inside every block, behind its 3x3 convolution",
    "after": "after the last normalisation of every block",
    "before_norm": "before the normalisation of the 3x3 convolution of every block",
    "before_convs": "before every convolution",
    "replace": "instead of the 3x3 convolution of every block",
    "stage": "behind {}",
}
# Of blocks that are made of others.
_COMPOSED = {
    "cbam": """x' = x * sigmoid(M mean_hw(x) + M max_hw(x)),  M = W2 relu(W1 .)
x' * sigmoid(conv7x7([mean_c(x'); max_c(x')]))""",
    "da": """gamma_p V softmax(Q^T K)^T + x   over positions
+ gamma_c softmax(-X X^T) X + x  over channels""",
    "scconv": """y = GN(x),  m = [sigmoid(gamma / sum(gamma) * y) >= 1/2]
a = m * y,  b = (1 - m) * y,  z = [a_1 + b_2; a_2 + b_1]
Y1 = gwc3x3(up z_1) + pwc1x1(up z_1),  Y2 = [low z_2; pwc1x1(low z_2)]
s = softmax([mean_hw(Y1); mean_hw(Y2)]),  s_1 * Y1 + s_2 * Y2""",
}
_MAX_BYTES = 15_000
_EPOCHS, _EXAMPLES = 6, 5000


# Text -------------------------------------------------------------------------------


def make_gallery() -> str:
    """Returns the gallery in Markdown, by the names of `list_attention()`."""
    return "\n".join(map(_entry, list_attention()))


def _entry(name: str) -> str:
    block, paper = block_of(name), find_paper(name)
    line, formula = _described(inspect.getdoc(block) or "")
    formula = _COMPOSED.get(name, formula)
    source = f"[{paper.citation}]({paper.url})" if paper.url else paper.citation
    picture = PICTURES / f"{name}.png"
    lines = [f"### `{name}`", "", f"`{block.__name__}`, {source}. {line}", ""]
    if formula:
        lines += ["```text", formula, "```", ""]
    lines += [f"Place: {_place(find_slot(name))}.", ""]
    if picture.exists():
        path = f"../{picture.relative_to(ROOT).as_posix()}"
        lines += [f"![What `{name}` multiplies a map with]({path})", ""]
    return "\n".join(lines)


def _described(docstring: str) -> tuple[str, str]:
    """Returns the first sentence of a docstring, and the first formula."""
    head = docstring.split("\nAttributes:")[0]
    paragraphs = head.split("\n\n")
    formulas = [part for part in paragraphs if part.startswith("    ")]
    formula = textwrap.dedent(formulas[0]).strip() if formulas else ""
    return " ".join(paragraphs[0].split()), formula


def _place(slot: Slot) -> str:
    text = _PLACES[slot.place]
    if slot.place != "stage":
        return text
    stages = [str(i) for i in slot.stages or ()]
    is_last = stages == ["-1"]
    return text.format("the last stage" if is_last else f"stages {', '.join(stages)}")


def replace_gallery(page: str) -> str:
    """Returns the page with its gallery made anew."""
    gallery = f"{START}\n\n{make_gallery()}\n{END}"
    return re.sub(f"{START}.*?{END}", lambda _: gallery, page, flags=re.DOTALL)


# Pictures ---------------------------------------------------------------------------


def draw(root: pathlib.Path, changes: Sequence[str]) -> None:
    """Trains what is missing in `root`, and draws a picture of every block."""
    from jaxattn.training import load_trained

    PICTURES.mkdir(exist_ok=True)
    for name in list_attention():
        workdir = root / name
        if not (workdir / "results.json").exists():
            _train(name, workdir, changes)
        _draw_one(load_trained(workdir), PICTURES / f"{name}.png")
        print(f"{name} drawn", flush=True)


def _train(name: str, workdir: pathlib.Path, changes: Sequence[str]) -> None:
    from jaxattn.recipes import attention_study
    from jaxattn.training import train_and_evaluate

    config: Any = attention_study.get_config()
    config.model.attention = name
    config.num_epochs = _EPOCHS
    config.data.max_train_examples = _EXAMPLES
    config.data.max_eval_examples = 500
    for change in changes:
        key, value = change.removeprefix("--config.").split("=", 1)
        *sections, last = key.split(".")
        functools.reduce(getattr, sections, config)[last] = value
    train_and_evaluate(config, str(workdir))


def _draw_one(trained: Any, path: pathlib.Path) -> None:
    import jax.numpy as jnp

    from jaxattn.inference.attention import read_examples
    from jaxattn.viz.attention_maps import make_attend, panels
    from jaxattn.viz.pages import plot_gates

    examples = read_examples(trained, [_PHOTO], 1)
    inputs = trained.preprocess.normalize(jnp.asarray(examples.images))
    attention = make_attend(trained.model)(trained.variables, inputs)
    if not attention.gates:
        return
    layers = [*attention.gates]
    # Of the second stage, whose maps have 16 x 16 positions.
    own = [one for one in layers if one.startswith(("layer2.0/", "attn2"))]
    layer = (own or layers)[0]
    shown = [*panels(attention.gates, layer, 0)][:2]
    figure = plot_gates(examples.images[0], shown)
    save(figure, path)


def save(figure: Any, path: pathlib.Path) -> None:
    """Writes a picture with as many colours as its bytes allow."""
    from PIL import Image

    from jaxattn.viz.figure import figure_to_array

    image = Image.fromarray(figure_to_array(figure)).convert("RGB")
    image = image.resize(
        (image.width // 2, image.height // 2), Image.Resampling.LANCZOS
    )
    for colours in (128, 64, 32, 16):
        image.quantize(colours).save(path, optimize=True)
        if path.stat().st_size <= _MAX_BYTES:
            return
    raise ValueError(f"{path}: larger than {_MAX_BYTES} bytes")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=pathlib.Path, help="folder of the runs")
    args, changes = parser.parse_known_args(argv)
    if args.pictures:
        draw(args.pictures, changes)
    PAGE.write_text(replace_gallery(PAGE.read_text()))


if __name__ == "__main__":
    main()
