"""Subcommands about the machine and what lies on it: doctor, verify, CPU kernels."""

import argparse
from collections.abc import Iterable

from jaxattn.cli.arguments import Command, location, name_data_options
from jaxattn.errors import require


def _doctor(args: argparse.Namespace) -> int:
    from jaxattn import doctor

    given = args.data_path
    holds = given is None or args.data_name is not None
    require("--data-path", given, holds, "given with --data-name")
    holds = not args.all_images or args.data_name is not None
    require("--all-images", args.all_images, holds, "given with --data-name")
    findings = doctor.diagnose(
        workdir=args.workdir,
        data_name=args.data_name,
        data_path=args.data_path,
        all_images=args.all_images,
    )
    return _print_findings(
        (status, name_data_options(text, args)) for status, text in findings
    )


def _verify(args: argparse.Namespace) -> int:
    from jaxattn import doctor

    return _print_findings(doctor.verify(args.workdir))


def _print_findings(findings: Iterable[tuple[str, str]]) -> int:
    """Prints a line for each, and returns the exit code."""
    code = 0
    for status, text in findings:
        print(f"{status:8} {text}", flush=True)
        code = code or int(status == "FAIL")
    return code


def _build_cpu_kernels(args: argparse.Namespace) -> None:
    from jaxattn.ops import cpu_kernels

    del args  # there are none
    print(f"one CPU device now computes by the CPU kernels: {cpu_kernels.build()}")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data-name", help="a data set to look for, such as cifar10")
    add("--data-path", type=location, help="where the data are")
    add("--all-images", action="store_true", help="decodes every image of the data")
    add(
        "--workdir",
        type=location,
        help="folder that a run will write (default workdir)",
    )


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir", type=location, required=True, help="folder of a run"
    )


COMMANDS = (
    Command(
        "build-cpu-kernels",
        "Builds the kernels that make CPUs faster; `train` does, where it can.",
        _build_cpu_kernels,
    ),
    Command("doctor", "Checks the machine by a tiny training.", _doctor, _add_doctor),
    Command("verify", "Checks all checkpoints of a workdir.", _verify, _add_verify),
)
