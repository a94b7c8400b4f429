"""Subcommands about networks and their files: weights in and out, cost and speed."""

import argparse
import pathlib
from typing import Any

from jaxattn.cli.arguments import (
    Command,
    add_computation,
    add_model_arg,
    add_network,
    count,
    load_network,
    location,
    names,
    number,
    numbers,
    path,
)
from jaxattn.errors import UserError, choose, reason
from jaxattn.paths import local_path
from jaxattn.text import some_of


def _import_torch(args: argparse.Namespace) -> None:
    from jaxattn.inference import torch_files
    from jaxattn.training.checkpoints.trained import read_config

    count = torch_files.import_torch(
        args.checkpoint,
        args.workdir,
        model=args.model,
        class_names=args.class_names,
        image_size=args.image_size,
        mean=args.mean,
        std=args.std,
        model_kwargs=dict(args.model_arg),
    )
    config = read_config(local_path(args.workdir))
    dataset = config["dataset"]
    mean, std = (tuple(config["normalize"][key]) for key in ("mean", "std"))
    H, W, _ = dataset["image_shape"]
    print(
        f"{config['model']['name']}, {count:,} parameters, in {args.workdir};"
        f" {len(dataset['class_names'])} classes: {some_of(dataset['class_names'], 3)};"
        f" images are {H} x {W} pixels, normalised by mean {mean} and std {std}"
    )


def _export_torch(args: argparse.Namespace) -> None:
    from jaxattn.inference import torch_files

    trained = load_network(args)
    torch_files.export_torch(trained, args.out, args.format)
    print(f"state dict of step {trained.step} in {args.out}")


def _push(args: argparse.Namespace) -> None:
    from jaxattn.inference import hub
    from jaxattn.models.published import parse_repository

    name = parse_repository(args.to, "--to").rpartition("/")[2]
    trained = load_network(args)
    folder = args.out or pathlib.Path(args.workdir or "", "hub", name)
    results = hub.read_results(args.workdir)
    hub.write_repository(trained, folder, args.to, results)
    print(f"weights, config and card in {folder}", flush=True)
    print(f"uploaded: {hub.push(folder, args.to, private=args.private)}")


def _export(args: argparse.Namespace) -> None:
    from jaxattn.inference import export

    trained = load_network(args)
    size = export.export_model(
        trained,
        args.out,
        weights=args.weights,
        dtype=args.dtype,
        platforms=args.platforms,
        fold_batch_norm=args.fold_batch_norm,
        probabilities=args.probabilities,
    )
    print(
        f"{trained.config['model']['name']} of step {trained.step} for"
        f" {', '.join(args.platforms)}, {size / 1e6:.1f} MB, in {args.out};"
        f" described in {args.out.with_suffix('.json')}"
    )


def _benchmark_latency(args: argparse.Namespace) -> None:
    import jax

    from jaxattn import host
    from jaxattn.inference.latency import measure_latency

    trained = load_network(args)
    name, (H, W, _) = trained.config["model"]["name"], trained.image_shape
    dtype = args.dtype or trained.config.get("dtype", "float32")
    hardware = host.hardware(jax.default_backend())
    print(f"{name}, {H} x {W} pixels, {dtype}, on {hardware}")
    row = "{:>6}{:>8}{:>10}{:>10}{:>12}".format
    print(row("batch", "calls", "p50 ms", "p95 ms", "images/s"))
    for size in args.batch_sizes:
        measured = measure_latency(
            trained,
            size,
            seconds=args.seconds,
            dtype=args.dtype,
            fold_batch_norm=args.fold_batch_norm,
        )
        figures = (f"{figure:.4g}" for figure in measured[2:])
        print(row(size, measured.calls, *figures), flush=True)


def _models(args: argparse.Namespace) -> None:
    from jaxattn.models.registry import list_models, model_keywords

    if args.name is not None:
        choose("model", args.name, list_models())
    if args.attention:
        _print_attention(args)
        return
    row = "{:26}{:>9}{:>8}{:>9}{:>14}{:>16}{:>18}".format
    header = ("model", "stem", "pixels", "classes", "parameters", "MACs")
    for i, name in enumerate([args.name] if args.name else list_models()):
        kwargs = dict(args.model_arg)
        # In the whole list the stem is of those that have one.
        if args.stem and (args.name or "stem" in model_keywords(name)):
            kwargs["stem"] = args.stem
        cells = _measured(name, kwargs, args.num_classes, args.image_size)
        if i == 0:
            print(row(*header, "theoretical MACs"))
        print(row(*cells).rstrip(), flush=True)
    if args.name:
        backbone = dict(args.model_arg).get("backbone")
        keywords = model_keywords(args.name, backbone)
        print(f"keywords: num_classes, {', '.join(keywords)}")


def _print_attention(args: argparse.Namespace) -> None:
    """Prints what every attention adds to a network."""
    from jaxattn.models.attention_cost import find_paper, measure_added
    from jaxattn.models.slots import list_attention

    size, classes = args.image_size or 224, args.num_classes or 1000
    row = "{:18}{:>14}{:>18}  {}".format
    for i, attention in enumerate(list_attention()):
        try:
            cost = measure_added(
                attention, args.name or "resnet50", classes, (size, size, 3)
            )
            cells = (f"{cost.parameters:+,}", f"{cost.macs:+,}")
        except UserError as error:
            # Of the network, or of this attention's demands on its channels.
            if i == 0:
                raise
            cells = ("", reason(error))
        if i == 0:
            print(row("attention", "parameters", "MACs", "paper"))
        paper = find_paper(attention)
        print(
            row(attention, *cells, f"{paper.citation} {paper.url}".strip()), flush=True
        )


# Pixels and classes by task: ImageNet's, ADE20K's and COCO's.
_USUAL = {
    "classification": (224, 1000),
    "segmentation": (512, 150),
    "detection": (800, 80),
}


def _measured(
    name: str, kwargs: dict[str, Any], num_classes: int | None, image_size: int | None
) -> tuple[str, ...]:
    """Measures a network; its stem says what it is for, where nothing else does."""
    from jaxattn.models.cost import measure_cost
    from jaxattn.models.registry import create_model, task_of
    from jaxattn.models.stems import find_stem, is_for_photos

    stem = find_stem(create_model(name, **kwargs))
    usual = _USUAL[task_of(name)] if is_for_photos(stem) else (32, 10)
    size, num_classes = image_size or usual[0], num_classes or usual[1]
    module = create_model(name, num_classes, **kwargs)
    try:
        cost = measure_cost(module, (size, size, 3))
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} at {size} pixels: {error}") from error
    macs, theoretical = f"{cost.macs:,}", f"{cost.theoretical_macs:,}"
    counts = (f"{cost.parameters:,}", macs, "" if theoretical == macs else theoretical)
    return (name, stem, str(size), str(num_classes), *counts)


def _add_import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "checkpoint",
        type=location,
        metavar="WEIGHTS",
        help="a .safetensors file; a .pth file: a state dict, or a dict that holds one;"
        " hf:OWNER/NAME or hf:OWNER/NAME/FILE of a hub; torchvision:NAME",
    )
    add(
        "--model",
        help="one of jaxattn.list_models(); needed if the weights do not name theirs",
    )
    add("--workdir", type=location, required=True, help="folder to make")
    add(
        "--class-names",
        type=names,
        help="separated by commas (default as published: ImageNet's of 1,000 classes,"
        " CIFAR-10's of 10, else numbers)",
    )
    add("--image-size", type=count, help="pixels (default as published: 224 or 32)")
    add("--mean", type=numbers, help="of the normalisation (default as published)")
    add("--std", type=numbers, help="of the normalisation (default as published)")
    add_model_arg(parser)


def _add_export_torch(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=path, required=True, help="the file, .pth or .safetensors")
    add(
        "--format",
        choices=("pth", "safetensors"),
        help="safetensors needs no PyTorch, and has a config.json beside it (default as"
        " --out ends)",
    )
    add_network(parser)


def _add_push(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--to", required=True, metavar="hf:OWNER/NAME", help="the repository")
    add(
        "--out",
        type=path,
        help="folder of what is uploaded; default hub/NAME in the workdir, or with"
        " weights of jaxattn in this folder",
    )
    add("--private", action="store_true", help="of a new repository: not for others")
    add_network(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    out = "the file, such as model.jaxattn; model.json beside it describes it"
    also = "of a segmentation: answers those of all classes beside the label map"
    add("--out", type=path, required=True, help=out)
    add_network(parser)
    add_computation(parser)
    add(
        "--platforms",
        nargs="+",
        default=("cpu", "cuda", "tpu"),
        metavar="PLATFORM",
        help="some of cpu, cuda, tpu and rocm (default the first three)",
    )
    add("--probabilities", action="store_true", help=also)


def _add_benchmark_latency(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_network(parser)
    add_computation(parser)
    add("--batch-sizes", type=count, nargs="+", default=(1, 256), help="default 1 256")
    add("--seconds", type=number, default=5.0, help="for each (default %(default)s)")


def _add_models(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="one network; default all")
    classes = (
        "default 1000, 150 of segmentation, 80 of detection, or 10 for small images"
    )
    add("--num-classes", type=count, help=classes)
    add("--stem", help="imagenet or cifar, of networks that have both; v1c of ResNets")
    add("--image-size", type=count, help="pixels (default 224, 512, or 32)")
    added = "what each attention adds to the network (default resnet50), and its paper"
    add("--attention", action="store_true", help=added)
    add_model_arg(parser)


COMMANDS = (
    Command(
        "import-torch",
        "Makes a workdir of published weights.",
        _import_torch,
        _add_import,
    ),
    Command(
        "export-torch",
        "Writes weights as a state dict.",
        _export_torch,
        _add_export_torch,
    ),
    Command(
        "push",
        "Uploads a network to a hub: weights, config and model card.",
        _push,
        _add_push,
    ),
    Command(
        "export",
        "Writes a network that runs without jaxattn.",
        _export,
        _add_export,
    ),
    Command(
        "benchmark-latency",
        "Times a network's calls.",
        _benchmark_latency,
        _add_benchmark_latency,
    ),
    Command("models", "Lists networks and what they cost.", _models, _add_models),
)
