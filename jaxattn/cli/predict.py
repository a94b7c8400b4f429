"""Subcommands that show a trained network images: predict, evaluate, attention-maps."""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jaxattn.atomic import require_writable
from jaxattn.cli.arguments import (
    Command,
    add_network,
    count,
    load_network,
    location,
    naming_data_options,
    path,
)
from jaxattn.cli.methods import METHODS, add_method, make_method, method_options
from jaxattn.data.source import Source, describe_numbering
from jaxattn.errors import UserError, require
from jaxattn.inference.inputs import Ids, read_inputs
from jaxattn.tasks.classification import methods, predictions
from jaxattn.tasks.classification.task import Classification
from jaxattn.text import printable
from jaxattn.training.checkpoints.trained import SPLITS, WEIGHTS, Trained
from jaxattn.training.records.phases import Phases, Show

_OUT = "folder; default in the workdir, or with weights of jaxattn in this folder"
_MOST_TOLD = 10  # images whose predictions are printed, too


def _predict(args: argparse.Namespace) -> None:
    is_ensemble = args.method == "ensemble"
    count, out = (_ensemble if is_ensemble else _predict_images)(args)
    print(f"{count} prediction{'s' * (count > 1)} in {out}")


def _place(args: argparse.Namespace, written: str) -> pathlib.Path:
    """Where predictions go; by default to a name that ends as the task's do."""
    name = args.method.removeprefix("class_")  # as the reference code names its files
    return args.out or pathlib.Path("submissions", f"{name}_{written}")


def _ensemble(args: argparse.Namespace) -> tuple[int, pathlib.Path]:
    for flag in ("workdir", "data", "names", "probabilities"):
        value = getattr(args, flag)
        require(f"--{flag}", value, not value, "left out: an ensemble votes on files")
    is_run = args.weights in WEIGHTS
    require("--weights", args.weights, is_run, "left out: an ensemble votes on files")
    ids, labels, names = predictions.align_predictions(args.ensemble_files or ())
    out = _place(args, Classification.written)
    predictions.write_predictions(out, ids, methods.vote(labels), class_names=names)
    return len(ids), out


def _predict_images(args: argparse.Namespace) -> tuple[int, pathlib.Path]:
    given = args.ensemble_files
    require("--ensemble-files", given, not given, "used with --method ensemble alone")
    require("--data", args.data, args.data is not None, "given with this method")
    with _phase("loading the network") as show:
        trained = load_network(args)
        method, task = make_method(args, trained), trained.task
        out, is_table = _place(args, task.written), task.written.endswith(".csv")
        if not is_table:
            _refuse_columns(args)
        frame = trained.preprocess.frame
        inputs = read_inputs(args.data, frame, on_bad_image=args.on_bad_image)
        is_file = "." in task.written
        require_writable(out if is_file else out / "x")  # before the work, not after it
        predictor = _make_predictor(args, trained, show)
        predicted = predictor.predict(inputs.source, method, seed=args.seed)
    _tell_unread(inputs.source)
    # Arrays are of a data set, whose published files have numbers.
    are_files = isinstance(inputs.ids[0], str)
    names = are_files if args.names is None else args.names
    task.write_predictions(
        out,
        inputs.ids,
        predicted,
        trained.class_names,
        source=inputs.source,
        class_colors=trained.class_colors,
        names=names,
        probabilities=args.probabilities,
    )
    if (
        is_table
        and not names
        and (numbering := describe_numbering(trained.class_names))
    ):
        print(f"{numbering}; --names writes the names", file=sys.stderr)
    for note in inputs.notes:
        print(note, file=sys.stderr)
    if len(inputs.ids) <= _MOST_TOLD:
        source, class_names = inputs.source, trained.class_names
        said = task.tell_predictions(predicted, source, class_names)
        _print_table(inputs.ids, said)
    return len(inputs.ids), out


def _refuse_columns(args: argparse.Namespace) -> None:
    """Refuses what is of a table with a line for each image."""
    given = {"--names": args.names, "--probabilities": args.probabilities or None}
    for flag, value in given.items():
        wanted = "left out: it is of a table with a line for each image"
        require(flag, value, value is None, wanted)


def _make_predictor(args: argparse.Namespace, trained: Trained, show: Show) -> Any:
    from jaxattn.inference.predict import Predictor

    return Predictor(
        trained,
        batch_size=args.batch_size,
        dtype=args.dtype,
        fold_batch_norm=args.fold_batch_norm,
        tell=show,
    )


def _tell_unread(source: Source) -> None:
    """Counts the images that were skipped; that none is left is an error."""
    count = len(getattr(source, "unread", ()))
    if count == len(source):
        raise UserError(f"--data: none of the {count} images can be read")
    if count:
        print(f"{count} images could not be read: no label", file=sys.stderr)


def _phase(text: str) -> contextlib.AbstractContextManager[Show]:
    """What goes on, for a person who waits: a file is told of long waits alone."""
    return Phases().phase(text, after_s=10.0)


def _print_table(ids: Ids, said: Sequence[str]) -> None:
    """Prints what was predicted of a few images, a line for each."""
    shown = [printable(str(i)) for i in ids]
    width = max(map(len, shown))
    for name, text in zip(shown, said, strict=True):
        print(f"{name:{width}}  {text}")


def _evaluate(args: argparse.Namespace) -> None:
    from jaxattn.inference import evaluation

    with (
        _phase("loading the network and the data"),
        naming_data_options(args),
    ):
        trained = load_network(args)
        method = make_method(args, trained)
        overrides = {
            "name": args.data_name,
            "path": args.data_path,
            "on_bad_image": args.on_bad_image,
        }
        data = evaluation.load_data_of(trained, overrides)
    folder = f"{args.split}_{args.weights}_{args.method}"
    if data.name != trained.config.get("data", {}).get("name"):
        folder = f"{data.name.replace(':', '_')}_{folder}"
    out = args.out or pathlib.Path(_home(args), "evaluation", folder)
    require_writable(out / "report.txt")
    for note in data.notes:
        print(note, file=sys.stderr)
    with _phase("evaluating") as show:
        predictor = _make_predictor(args, trained, show)
        evaluated = evaluation.evaluate(
            predictor, data, method, split=args.split, seed=args.seed
        )
    report = evaluation.write_evaluation(
        out,
        evaluated,
        trained,
        model=trained.config["model"]["name"],
        data=data.name,
        split=args.split,
        weights=args.weights,
        step=trained.step,
        method=args.method,
        seed=args.seed,
        **method_options(args),
    )
    print(f"{report}\nreport and figures in {out}")


def _attention_maps(args: argparse.Namespace) -> None:
    from jaxattn.inference import attention

    trained = load_network(args)
    examples = attention.read_examples(
        trained, args.images, args.max_images, args.on_bad_image
    )
    out = args.out or pathlib.Path(_home(args), "attention_maps")
    require_writable(out / "page.png")
    with _phase("compiling, then drawing"):
        pages, has_gates = attention.write_pages(
            trained, examples, out, args.layers, of_class=args.of_class
        )
    if not has_gates:
        name = trained.config["model"]["name"]
        print(f"{name} has no attention layers: Grad-CAM alone", file=sys.stderr)
    of = f" of {examples.total}" if examples.total > len(pages) else ""
    plural = "s" * (examples.total > 1)
    print(f"pages of {len(pages)}{of} image{plural} in {out}")


def _home(args: argparse.Namespace) -> str:
    """The folder of what is made of a network: its workdir, or the current one."""
    return args.workdir or ""


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        type=location,
        nargs="+",
        metavar="PATH",
        help="a CIFAR-like pickle, an .npz, a folder of images, or image files",
    )
    add(
        "--out",
        type=path,
        help="the CSV file, or of a segmentation the folder of label maps, overlays in"
        " it (default in the folder submissions)",
    )
    _add_on_bad_image(parser, "gets an empty label, or no label map")
    add(
        "--ensemble-files",
        type=location,
        nargs="+",
        metavar="CSV",
        help="of --method ensemble",
    )
    add("--probabilities", action="store_true", help="adds a column per class")
    add(
        "--names",
        action=argparse.BooleanOptionalAction,
        help="class names, or with --no-names numbers, in the file (default: names of"
        " image files and folders, numbers of arrays)",
    )
    add_method(parser, (*METHODS, "ensemble"))


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--split", default="test", choices=SPLITS, help="default %(default)s")
    add("--data-name", help="another data set than the run's")
    add("--data-path", type=location, help="where the data are; default as in the run")
    add(
        "--on-bad-image",
        choices=("error", "skip"),
        help="of photos: one that cannot be decoded ends all, or is named and left out"
        " (default as in the run)",
    )
    add("--out", type=path, help=_OUT)
    add_method(parser, METHODS)


def _add_attention_maps(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--images",
        type=location,
        nargs="+",
        metavar="PATH",
        help="image files, folders of them, a CIFAR-like pickle, or an .npz (default: "
        "the run's test images)",
    )
    _add_on_bad_image(parser, "is left out")
    add("--max-images", type=count, default=16, help="default %(default)s")
    add(
        "--class",
        dest="of_class",
        metavar="NAME",
        help="of a segmentation: that of Grad-CAM (default the one of most pixels)",
    )
    add(
        "--layers",
        metavar="PATTERN",
        help="such as 'layer3.*' (default: the last block of every stage)",
    )
    add("--out", type=path, help=_OUT)
    add_network(parser)


def _add_on_bad_image(parser: argparse.ArgumentParser, outcome: str) -> None:
    parser.add_argument(
        "--on-bad-image",
        choices=("error", "skip"),
        default="error",
        help=f"an image file that cannot be read ends all, or is named and {outcome}"
        " (default %(default)s)",
    )


COMMANDS = (
    Command(
        "predict",
        "Classifies images into a CSV file, or their pixels into label maps.",
        _predict,
        _add_predict,
    ),
    Command(
        "evaluate",
        "Reports accuracy and calibration, or mean IoU, on a split.",
        _evaluate,
        _add_evaluate,
    ),
    Command(
        "attention-maps",
        "Draws what a network attends to.",
        _attention_maps,
        _add_attention_maps,
    ),
)
