"""The `jaxattn` command: what to do with a trained network.

Exit codes: 0 done, 1 the machine or a check failed or a loss diverged, 2 a mistake in
the command or the data, 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

import argparse
import ast
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from jaxattn.errors import UserError, choose, explain, require
from jaxattn.inference import files, methods
from jaxattn.training.config import DTYPES
from jaxattn.training.trained import SPLITS, WEIGHTS, load_trained

# What needs more than the base installation is imported where it is used.

_METHODS = ("plain", "flip", "tta", "class_specialized", "adaptive")
_CIFAR10_CLASSES = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"


def main(argv: Sequence[str]) -> int:
    """Runs one subcommand and returns its exit code."""
    try:
        if argv[:1] == ["train"]:
            raise UserError(
                "train: training is `python main.py --config CONFIG --workdir WORKDIR`"
                " in a clone of the project, where the recipes are"
            )
        args, rest = _make_parser().parse_known_args(argv)
        _take_overrides(args, rest)
        return args.run(args) or 0
    except (Exception, KeyboardInterrupt) as error:
        if (explained := explain(error)) is None:
            raise
        print(f"jaxattn: {explained[0]}", file=sys.stderr)
        return explained[1]


# Subcommands ----------------------------------------------------------------------


def _predict(args: argparse.Namespace) -> None:
    name = args.method.removeprefix("class_")  # as the reference code names its files
    out = args.out or pathlib.Path("submissions", f"{name}_submission.csv")
    count = (_ensemble if args.method == "ensemble" else _classify)(args, out)
    print(f"{count} predictions in {out}")


def _ensemble(args: argparse.Namespace, out: pathlib.Path) -> int:
    for flag in ("workdir", "data", "names", "probabilities"):
        value = getattr(args, flag)
        require(f"--{flag}", value, not value, "left out: an ensemble votes on files")
    ids, labels = files.align_predictions(args.ensemble_files or ())
    files.write_predictions(out, ids, methods.vote(labels))
    return len(ids)


def _classify(args: argparse.Namespace, out: pathlib.Path) -> int:
    from jaxattn.inference.predict import Predictor

    given = args.ensemble_files
    require("--ensemble-files", given, not given, "used with --method ensemble alone")
    for flag in ("workdir", "data"):
        value = getattr(args, flag)
        require(f"--{flag}", value, value is not None, "given with this method")
    trained = load_trained(args.workdir, weights=args.weights)
    method = _make_method(args, trained.class_names)
    inputs = files.read_inputs(args.data, trained.image_shape)
    files.require_writable(out)  # before the work, not after it
    predictor = Predictor(trained, batch_size=args.batch_size)
    decision = predictor.predict(inputs.source, method, seed=args.seed)
    files.write_predictions(
        out,
        inputs.ids,
        decision.labels,
        class_names=trained.class_names if args.names else None,
        probabilities=decision.probabilities if args.probabilities else None,
        probability_columns=trained.class_names,
    )
    return len(inputs.ids)


def _evaluate(args: argparse.Namespace) -> None:
    from jaxattn.inference import evaluate
    from jaxattn.inference.predict import Predictor

    trained = load_trained(args.workdir, weights=args.weights)
    method = _make_method(args, trained.class_names)
    overrides = {"name": args.data_name, "path": args.data_path}
    data = evaluate.load_data_of(trained, overrides)
    folder = f"{args.split}_{args.weights}_{args.method}"
    if data.name != trained.config.get("data", {}).get("name"):
        folder = f"{data.name.replace(':', '_')}_{folder}"
    out = args.out or pathlib.Path(args.workdir, "evaluation", folder)
    files.require_writable(out / "report.txt")
    predictor = Predictor(trained, batch_size=args.batch_size)
    evaluation = evaluate.evaluate(
        predictor, data, method, split=args.split, seed=args.seed
    )
    report = evaluate.write_evaluation(
        out,
        evaluation,
        trained.class_names,
        model=trained.config["model"]["name"],
        data=data.name,
        split=args.split,
        weights=args.weights,
        step=trained.step,
        method=args.method,
        seed=args.seed,
        **_method_options(args),
    )
    print(f"{report}\nreport and figures in {out}")


def _attention_maps(args: argparse.Namespace) -> None:
    from jaxattn.inference import attention

    trained = load_trained(args.workdir, weights=args.weights)
    examples = attention.read_examples(trained, args.images, args.max_images)
    out = args.out or pathlib.Path(args.workdir, "attention_maps")
    files.require_writable(out / "page.png")
    pages, has_gates = attention.write_pages(trained, examples, out, args.layers)
    if not has_gates:
        name = trained.config["model"]["name"]
        print(f"{name} has no attention layers: Grad-CAM alone", file=sys.stderr)
    of = f" of {examples.total}" if examples.total > len(pages) else ""
    print(f"pages of {len(pages)}{of} images in {out}")


def _import_torch(args: argparse.Namespace) -> None:
    from jaxattn.inference import torch_files

    mean, std = torch_files.published_normalization(args.model)
    count = torch_files.import_torch(
        args.checkpoint,
        args.workdir,
        model=args.model,
        class_names=args.class_names,
        image_size=args.image_size,
        mean=args.mean or mean,
        std=args.std or std,
        model_kwargs=dict(args.model_arg),
    )
    print(
        f"{args.model}, {count:,} parameters, in {args.workdir}; images are normalised"
        f" by mean {args.mean or mean} and std {args.std or std}"
    )


def _export_torch(args: argparse.Namespace) -> None:
    from jaxattn.inference import torch_files

    trained = load_trained(args.workdir, weights=args.weights)
    torch_files.export_torch(trained, args.out)
    print(f"state dict of step {trained.step} in {args.out}")


def _doctor(args: argparse.Namespace) -> int:
    from jaxattn.training import doctor

    given = args.data_path
    holds = given is None or args.data_name is not None
    require("--data-path", given, holds, "given with --data-name")
    return _print_findings(
        doctor.diagnose(
            workdir=args.workdir, data_name=args.data_name, data_path=args.data_path
        )
    )


def _verify(args: argparse.Namespace) -> int:
    from jaxattn.training import doctor

    return _print_findings(doctor.verify(args.workdir))


def _print_findings(findings: Iterable[tuple[str, str]]) -> int:
    """Prints a line for each, and returns the exit code."""
    code = 0
    for status, text in findings:
        print(f"{status:8} {text}", flush=True)
        code = code or int(status == "FAIL")
    return code


def _export(args: argparse.Namespace) -> None:
    from jaxattn.inference import export

    trained = load_trained(args.workdir, weights=args.weights)
    size = export.export_model(
        trained,
        args.out,
        weights=args.weights,
        dtype=args.dtype,
        platforms=args.platforms,
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

    trained = load_trained(args.workdir, weights=args.weights)
    name, (H, W, _) = trained.config["model"]["name"], trained.image_shape
    dtype = trained.config.get("dtype", "float32")
    hardware = host.hardware(jax.default_backend())
    print(f"{name}, {H} x {W} pixels, {dtype}, on {hardware}")
    row = "{:>6}{:>8}{:>10}{:>10}{:>12}".format
    print(row("batch", "calls", "p50 ms", "p95 ms", "images/s"))
    for size in args.batch_sizes:
        measured = measure_latency(trained, size, seconds=args.seconds)
        figures = (f"{figure:.4g}" for figure in measured[2:])
        print(row(size, measured.calls, *figures), flush=True)


def _build_cpu_kernels(args: argparse.Namespace) -> None:
    from jaxattn.ops import onednn

    del args  # there are none
    print(f"convolutions on one CPU device are now oneDNN's: {onednn.build()}")


def _models(args: argparse.Namespace) -> None:
    from jaxattn.models.registry import list_models, model_keywords

    if args.name is not None:
        choose("model", args.name, list_models())
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
        print(f"keywords: num_classes, {', '.join(model_keywords(args.name))}")


def _measured(
    name: str, kwargs: dict[str, Any], num_classes: int | None, image_size: int | None
) -> tuple[str, ...]:
    """Measures a network; its stem says what it is for, where nothing else does."""
    from jaxattn.models.cost import measure_cost
    from jaxattn.models.registry import create_model

    stem = getattr(create_model(name, **kwargs), "stem", "")
    is_large = stem == "imagenet"
    size = image_size or (224 if is_large else 32)
    num_classes = num_classes or (1000 if is_large else 10)
    module = create_model(name, num_classes, **kwargs)
    try:
        cost = measure_cost(module, (size, size, 3))
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} at {size} pixels: {error}") from error
    macs, theoretical = f"{cost.macs:,}", f"{cost.theoretical_macs:,}"
    counts = (f"{cost.parameters:,}", macs, "" if theoretical == macs else theoretical)
    return (name, stem, str(size), str(num_classes), *counts)


def _compare(args: argparse.Namespace) -> None:
    from jaxattn.studies import compare

    for flag, value in (("--root", args.root), ("--seeds", args.seeds)):
        only = "used with --configs alone"
        require(flag, value, bool(args.configs) or value is None, only)
    if args.configs:
        require("--root", args.root, args.root is not None, "given with --configs")
    elif args.overrides:
        raise UserError(f"{args.overrides[0]}: used with --configs alone")
    unfinished, runs = [], []
    for workdir in args.workdirs or _train_all(args):
        try:
            runs.append(compare.read_run(workdir))
        except compare.UnfinishedError as error:
            unfinished.append(workdir)
            print(f"{error}; left out", file=sys.stderr)
    if not runs:
        raise UserError("nothing to compare: none of the runs is finished")
    print(compare.write_comparison(args.out, compare.group_runs(runs)))
    print(f"table and figure in {args.out}")
    if unfinished and args.configs:
        raise UserError(f"{len(unfinished)} runs are not finished; repeat the command")


def _train_all(args: argparse.Namespace) -> list[pathlib.Path]:
    """Trains what is not finished, and returns all workdirs."""
    from jaxattn.studies import trials

    planned = trials.make_trials(
        args.configs, args.seeds or (), args.root, args.overrides
    )
    finished = [trial.is_finished() for trial in planned]  # all, before the first
    files.require_writable(args.out / "comparison.md")
    for i, (trial, is_done) in enumerate(zip(planned, finished, strict=True), 1):
        print(f"{trial.name} ({i} of {len(planned)}): ", end="", flush=True)
        if is_done:
            print("done before", flush=True)
            continue
        outcome = trials.train(trial)
        print(outcome.message or outcome.state, flush=True)
        if outcome.state == "mistake":
            raise UserError(f"{trial.name}: {outcome.message}")
        if outcome.state == "stopped":
            raise KeyboardInterrupt
    return [trial.workdir for trial in planned]


def _bn_landscape(args: argparse.Namespace) -> None:
    from jaxattn.studies.bn_landscape import run_study
    from jaxattn.training.config_file import load_config

    run_study(load_config(args.config, args.overrides), args.workdir)


def _take_overrides(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """Gives `--config.key=value` to the subcommand that takes them."""
    takes = hasattr(args, "overrides")
    for flag in rest:
        if not (takes and re.match(r"--config\.[\w.]+=", flag)):
            raise UserError(f"unrecognized arguments: {' '.join(rest)}")
    if takes:
        args.overrides = list(rest)


_METHOD_OPTIONS = (
    "num_views",
    "view_weights",
    "tta_temperature",
    "specialized_temperature",
    "thresholds",
    "hard_classes",
    "bonus",
)


def _method_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of methods that were given."""
    return _given(**{key: getattr(args, key) for key in _METHOD_OPTIONS})


def _make_method(
    args: argparse.Namespace, class_names: tuple[str, ...]
) -> methods.Method:
    """The method of the arguments; those that were not given keep their defaults."""
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
        **_given(weights=args.view_weights, temperature=args.tta_temperature),
    )
    specialized = methods.ClassSpecialized(
        views=views,
        **_given(thresholds=args.thresholds, temperature=args.specialized_temperature),
    )
    choices = {"hard_classes": args.hard_classes, "bonus": args.bonus}
    adaptive = methods.Adaptive(tta=tta, specialized=specialized, **_given(**choices))
    made = (methods.Plain(), methods.Flip(), tta, specialized, adaptive)
    return dict(zip(_METHODS, made, strict=True))[args.method]


def _given(**arguments: Any) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if value is not None}


# Arguments ------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{self.prog.removeprefix('jaxattn').strip()} {message}".strip()
        )


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxattn", description="Predicts with trained networks, and more."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    _add_predict(command("predict", _predict, "Classifies images into a CSV file."))
    _add_evaluate(
        command("evaluate", _evaluate, "Reports accuracy and calibration on a split.")
    )
    _add_attention_maps(
        command("attention-maps", _attention_maps, "Draws what a network attends to.")
    )
    _add_import(
        command("import-torch", _import_torch, "Makes a workdir of PyTorch weights.")
    )
    _add_export_torch(
        command("export-torch", _export_torch, "Writes weights as a state dict.")
    )
    _add_compare(
        command("compare", _compare, "Tables and plots runs, by config and seed.")
    )
    _add_bn_landscape(
        command(
            "bn-landscape",
            _bn_landscape,
            "Trains VGG-A with and without batch normalisation, and measures both.",
        )
    )
    _add_export(
        command("export", _export, "Writes a network that runs without jaxattn.")
    )
    _add_benchmark_latency(
        command("benchmark-latency", _benchmark_latency, "Times a network's calls.")
    )
    _add_models(command("models", _models, "Lists networks and what they cost."))
    command("build-cpu-kernels", _build_cpu_kernels, "Makes CPUs train faster.")
    _add_doctor(command("doctor", _doctor, "Checks the machine by a tiny training."))
    _add_verify(command("verify", _verify, "Checks all checkpoints of a workdir."))
    return parser


def _add_models(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="one network; default all")
    add("--num-classes", type=_count, help="default 1000, or 10 for small images")
    add("--stem", help="imagenet or cifar, of networks that have both")
    add("--image-size", type=_count, help="pixels (default 224, or 32)")
    _add_model_arg(parser)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data-name", help="a data set to look for, such as cifar10")
    add("--data-path", help="where the data are")
    add("--workdir", help="folder that a run will write (default workdir)")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="folder of a run")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workdir", help="folder of the trained network")
    add(
        "--data",
        nargs="+",
        metavar="PATH",
        help="a CIFAR-like pickle, an .npz, a folder of images, or image files",
    )
    add("--out", type=pathlib.Path, help="default in the folder submissions")
    add("--ensemble-files", nargs="+", metavar="CSV", help="of --method ensemble")
    add("--probabilities", action="store_true", help="adds a column per class")
    add("--names", action="store_true", help="writes class names, not numbers")
    _add_method(parser, (*_METHODS, "ensemble"))


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workdir", required=True, help="folder of the trained network")
    add("--split", default="test", choices=SPLITS, help="default %(default)s")
    add("--data-name", help="another data set than the run's")
    add("--data-path", help="where the data are; default as in the run")
    add("--out", type=pathlib.Path, help="folder; default in the workdir")
    _add_method(parser, _METHODS)


def _add_attention_maps(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workdir", required=True, help="folder of the trained network")
    add(
        "--images",
        nargs="+",
        metavar="PATH",
        help="image files, folders of them, a CIFAR-like pickle, or an .npz (default: "
        "the run's test images)",
    )
    add("--max-images", type=_count, default=16, help="default %(default)s")
    add(
        "--layers",
        metavar="PATTERN",
        help="such as 'layer3.*' (default: the last block of every stage)",
    )
    add("--out", type=pathlib.Path, help="folder; default in the workdir")
    _add_weights(parser)


def _add_method(parser: argparse.ArgumentParser, choices: Sequence[str]) -> None:
    tta, specialized = methods.TTA(), methods.ClassSpecialized()
    adaptive = methods.Adaptive()
    add = parser.add_argument
    _add_weights(parser)
    add("--method", default="plain", choices=choices, help="default %(default)s")
    add("--seed", type=int, default=0, help="of random views (default %(default)s)")
    add("--batch-size", type=int, default=256, help="default %(default)s")
    add("--num-views", type=int, help="of the last three: the first ones (default 8)")
    add(
        "--view-weights",
        type=_numbers,
        help="of tta and adaptive: one per view (default 2 for the first, else 1)",
    )
    add("--tta-temperature", type=float, help=f"default {tta.temperature}")
    add(
        "--specialized-temperature",
        type=float,
        help=f"default {specialized.temperature}",
    )
    add(
        "--thresholds",
        type=_numbers,
        help="of class_specialized and adaptive: one per class (default CIFAR-10's)",
    )
    add(
        "--hard-classes",
        type=_integers,
        help="of adaptive: class numbers (default "
        f"{','.join(map(str, adaptive.hard_classes))})",
    )
    add("--bonus", type=float, help=f"of adaptive (default {adaptive.bonus})")


def _add_import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", help="a .pth file: a state dict, or a dict that holds one")
    add("--model", required=True, help="one of jaxattn.list_models()")
    add("--workdir", required=True, help="folder to make")
    add(
        "--class-names",
        type=_names,
        default=_CIFAR10_CLASSES,
        help="separated by commas (default CIFAR-10's)",
    )
    add("--image-size", type=int, default=32, help="pixels (default %(default)s)")
    add("--mean", type=_numbers, help="of the normalisation (default as published)")
    add("--std", type=_numbers, help="of the normalisation (default as published)")
    _add_model_arg(parser)


def _add_model_arg(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-arg",
        type=_key_and_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the network, such as base_width=8",
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workdir", required=True, help="folder of the trained network")
    out = "the file, such as model.jaxattn; model.json beside it describes it"
    add("--out", type=pathlib.Path, required=True, help=out)
    _add_weights(parser)
    add("--dtype", choices=tuple(DTYPES), help="of the computation; default the run's")
    add(
        "--platforms",
        nargs="+",
        default=("cpu", "cuda", "tpu"),
        metavar="PLATFORM",
        help="some of cpu, cuda, tpu and rocm (default the first three)",
    )


def _add_benchmark_latency(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workdir", required=True, help="folder of the trained network")
    _add_weights(parser)
    add("--batch-sizes", type=_count, nargs="+", default=(1, 256), help="default 1 256")
    add("--seconds", type=float, default=5.0, help="for each (default %(default)s)")


def _add_export_torch(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workdir", required=True, help="folder of the trained network")
    add("--out", type=pathlib.Path, required=True, help="the .pth file")
    _add_weights(parser)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    runs = parser.add_mutually_exclusive_group(required=True)
    runs.add_argument(
        "--workdirs", type=pathlib.Path, nargs="+", help="folders of finished runs"
    )
    runs.add_argument(
        "--configs",
        nargs="+",
        metavar="CONFIG",
        help="recipes, as configs/canet.py:tiny, to train first what is not finished;"
        " --config.key=value overrides a value of all of them",
    )
    add("--seeds", type=int, nargs="+", help="of each recipe (default its own)")
    add("--root", type=pathlib.Path, help="folder of the workdirs: recipe/seed")
    add(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("comparison"),
        help="folder of the table, as Markdown and CSV, and the figure"
        " (default %(default)s)",
    )
    parser.set_defaults(overrides=[])


def _add_bn_landscape(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--config",
        required=True,
        help="configs/vgg_bn.py; --config.key=value overrides a value of it",
    )
    add("--workdir", required=True, help="folder of the study's outputs")
    parser.set_defaults(overrides=[])


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        default="best",
        choices=tuple(WEIGHTS),
        help="of which checkpoint, raw or averaged (default %(default)s)",
    )


def _numbers(text: str) -> tuple[float, ...]:
    return _parsed(text, float, "numbers separated by commas")


def _integers(text: str) -> tuple[int, ...]:
    return () if not text else _parsed(text, int, "integers separated by commas")


def _parsed(text: str, kind: Callable[[str], Any], wanted: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be {wanted}") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 1")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _key_and_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
