"""The arguments that say how a trained network predicts, and what they make."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxattn.cli.arguments import (
    add_computation,
    add_network,
    count,
    given,
    integers,
    number,
    numbers,
    seed,
)
from jaxattn.errors import choose, require
from jaxattn.tasks.classification import methods
from jaxattn.tasks.classification.task import Classification
from jaxattn.tasks.segmentation.methods import FLIP, MultiView, multi_scale
from jaxattn.tasks.segmentation.task import Segmentation
from jaxattn.tasks.task import Method
from jaxattn.training.checkpoints.trained import Trained

METHODS = ("plain", "flip", "tta", "class_specialized", "adaptive")
_CIFAR10_CLASSES = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
_OF_CLASSIFICATION = (
    "num_views",
    "view_weights",
    "tta_temperature",
    "specialized_temperature",
    "thresholds",
    "hard_classes",
    "bonus",
)
_OF_SEGMENTATION = ("scales",)


def method_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of methods that were given."""
    names = (*_OF_CLASSIFICATION, *_OF_SEGMENTATION)
    return given(**{key: getattr(args, key) for key in names})


def make_method(args: argparse.Namespace, trained: Trained) -> Method:
    """Returns the method of the arguments; what was not given keeps its default.

    Raises:
        UserError: If the network's task has no such method, or option.
    """
    for kind, (options, make) in _MAKERS.items():
        if isinstance(trained.task, kind):
            refuse_options(args, trained, options)
            return make(args, trained)
    refuse_options(args, trained, ())
    holds = args.method == "plain"
    name = type(trained.task).__name__
    require("--method", args.method, holds, f"plain for {name}")
    return trained.task.plain


def refuse_options(
    args: argparse.Namespace, trained: Trained, accepted: Sequence[str]
) -> None:
    """Refuses options of methods that are another task's.

    Raises:
        UserError: If there is one.
    """
    for key, value in method_options(args).items():
        name = type(trained.task).__name__
        flag = f"--{key.replace('_', '-')}"
        require(flag, value, key in accepted, f"left out: {name} has no such option")


def _of_segmentation(args: argparse.Namespace, trained: Trained) -> Method:
    own = {"plain": trained.task.plain, "flip": MultiView(views=FLIP)}
    choose("--method", args.method, [*own, "tta"])
    scales = args.scales
    holds = scales is None or args.method == "tta"
    require("--scales", scales, holds, "given with --method tta")
    return own.get(args.method) or multi_scale(**given(scales=scales))


def _of_classification(args: argparse.Namespace, trained: Trained) -> Method:
    class_names = trained.class_names
    if class_names != tuple(_CIFAR10_CLASSES.split(",")):
        # The defaults are made for CIFAR-10's classes and mean nothing for others.
        if args.method in ("class_specialized", "adaptive"):
            wanted = (
                f"given for other classes than CIFAR-10's: {len(class_names)} of it"
            )
            value = args.thresholds
            require("--thresholds", value, value is not None, wanted)
        args.hard_classes = args.hard_classes or ()
    V = args.num_views or len(methods.VIEWS)
    require("--num-views", V, 1 <= V <= len(methods.VIEWS), "1 to 8")
    views = methods.VIEWS[:V]
    tta = methods.TTA(
        views=views,
        **given(weights=args.view_weights, temperature=args.tta_temperature),
    )
    specialized = methods.ClassSpecialized(
        views=views,
        **given(thresholds=args.thresholds, temperature=args.specialized_temperature),
    )
    choices = {"hard_classes": args.hard_classes, "bonus": args.bonus}
    adaptive = methods.Adaptive(tta=tta, specialized=specialized, **given(**choices))
    made = (trained.task.plain, methods.Flip(), tta, specialized, adaptive)
    return dict(zip(METHODS, made, strict=True))[args.method]


_Make = Callable[[argparse.Namespace, Trained], Method]
_MAKERS: Mapping[type, tuple[Sequence[str], _Make]] = {
    Classification: (_OF_CLASSIFICATION, _of_classification),
    Segmentation: (_OF_SEGMENTATION, _of_segmentation),
}


def add_method(parser: argparse.ArgumentParser, choices: Sequence[str]) -> None:
    """Adds the arguments of a network that predicts."""
    tta, specialized = methods.TTA(), methods.ClassSpecialized()
    adaptive = methods.Adaptive()
    add = parser.add_argument
    add_network(parser)
    add_computation(parser)
    add(
        "--method",
        default="plain",
        choices=choices,
        help="of label maps plain, flip, or tta (scales, and their mirror images)"
        " (default %(default)s)",
    )
    add("--seed", type=seed, default=0, help="of random views (default %(default)s)")
    add("--batch-size", type=count, help="default 256, of label maps 16")
    add(
        "--scales",
        type=numbers,
        help="of tta of label maps (default 0.5,0.75,1,1.25,1.5,1.75)",
    )
    add(
        "--num-views",
        type=int,
        help="of tta, class_specialized and adaptive: the first ones (default 8)",
    )
    add(
        "--view-weights",
        type=numbers,
        help="of tta and adaptive: one per view (default 2 for the first, else 1)",
    )
    add("--tta-temperature", type=number, help=f"default {tta.temperature}")
    add(
        "--specialized-temperature",
        type=number,
        help=f"default {specialized.temperature}",
    )
    add(
        "--thresholds",
        type=numbers,
        help="of class_specialized and adaptive: one per class (default CIFAR-10's)",
    )
    add(
        "--hard-classes",
        type=integers,
        help="of adaptive: class numbers (default "
        f"{','.join(map(str, adaptive.hard_classes))})",
    )
    add("--bonus", type=number, help=f"of adaptive (default {adaptive.bonus})")
