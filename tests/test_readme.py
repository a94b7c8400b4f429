"""What the README, the docs and the recipes say can be run, can be run."""

import csv
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap

import pytest
from tiers import full_but

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import blocks as blocks_benchmark
from benchmarks import compare_torch, epoch, rows, tables

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
PAGES = [README, *(path.read_text() for path in sorted(ROOT.glob("docs/**/*.md")))]
HEADERS = [path.read_text() for path in sorted(ROOT.glob("jaxattn/recipes/*.py"))]


def blocks(language):
    """All code of a language, in lists too."""
    fenced = re.compile(rf"^( *)```{language}\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(m[2]) for page in PAGES for m in fenced.finditer(page)]


def commands(start, texts):
    """Every command that starts so, once; a line continued by a backslash as one."""
    joined = "\n".join(texts).replace("\\\n", " ")
    return sorted({" ".join(line.split()) for line in re.findall(start, joined)})


def training_commands():
    return commands(r"python main\.py [^\n&`]+", [*blocks("sh"), *HEADERS])


def jaxattn_commands():
    return commands(r"(?m)^jaxattn .+", blocks("sh"))


def run(*command):
    # What a command would fetch is out of reach.
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(ROOT / "none")}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **nowhere}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_the_first_command_is_there():
    assert training_commands()


@pytest.mark.parametrize(
    "command", full_but(training_commands(), *training_commands()[:1])
)
def test_training_command_is_accepted(command):
    """The config loads with its overrides: only the added mistake is complained of."""
    flags = shlex.split(command)[2:]
    done = run(sys.executable, "main.py", *flags, "--config.num_epochs=0")
    assert done.stderr.strip() == "main.py: num_epochs=0: must be at least 1"
    assert done.returncode == 2


@pytest.mark.full
@pytest.mark.parametrize("command", jaxattn_commands())
def test_jaxattn_command_is_accepted(command):
    """Its arguments are understood, and only the workdir or a file is missing."""
    if re.search("--configs|sweep|jaxattn train", command):  # and so it would train
        command += " --config.model.nme=x"
    command = command.replace("assets/", "missing/")  # and so it would predict
    done = run(sys.executable, "-m", "jaxattn", *shlex.split(command)[1:])
    if command.startswith("jaxattn doctor"):  # what it finds is the machine's
        assert done.stdout.startswith("ok ")
        assert (done.returncode in (0, 1), done.stderr) == (True, "")
        return
    if command.startswith("jaxattn models"):
        assert (done.returncode, done.stderr) == (0, "")
        return
    expected = (
        "holds no run|cannot be read|not a readable CSV|PyTorch is|no such key"
        "|no such file or folder|the hub cannot be reached"
    )
    assert re.fullmatch(rf"jaxattn: .*({expected}).*\n", done.stderr)
    assert done.returncode == 2


def test_every_subcommand_and_method_is_shown():
    names = re.findall(r"^ {4}([a-z-]+)", help_of(), re.MULTILINE)
    assert "predict" in names
    for name in names:
        assert any(re.search(rf"jaxattn {name}(?![\w-])", page) for page in PAGES)
    methods = re.search(r"--method \{(.*?)\}", help_of("predict"))
    assert methods is not None
    for name in methods[1].split(","):
        assert any(f"| `{name}` |" in page for page in PAGES)


def help_of(*subcommand):
    return run(sys.executable, "-m", "jaxattn", *subcommand, "--help").stdout


@pytest.mark.full
@pytest.mark.parametrize("code", blocks("python"))
def test_python_example_runs(code):
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("torch_cpu", compare_torch),
        ("torch_cpu_epyc", compare_torch),
        ("blocks_cpu", blocks_benchmark),
    ],
)
def test_speed_tables_are_made_from_their_results(name, module):
    text = (ROOT / "benchmarks" / "results" / f"{name}.json").read_text()
    assert module.format_table(json.loads(text)) in RESULTS


def test_epoch_table_is_made_from_its_result():
    text = (ROOT / "benchmarks" / "results" / "epoch_cpu.json").read_text()
    assert epoch.format_table([json.loads(text)]) in RESULTS


def test_results_tables_are_made_from_their_records():
    records = rows.read_records(rows.RESULTS)
    for page in (README, RESULTS):
        assert tables.replace_tables(page, records) == page
    for name in tables.NAMES:
        assert f"<!-- table:{name} -->" in README + RESULTS


def test_pictures_exist_and_are_small():
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for picture in re.findall(r"!\[.*?\]\((.*?)\)", page.read_text()):
            assert (page.parent / picture).stat().st_size < 200_000
    assert "![" in README


def test_readme_is_read_in_a_minute():
    """No line of it is about what was not run; the first command is near its top."""
    lines = README.splitlines()
    assert len(lines) <= 180
    assert next(i for i, line in enumerate(lines, 1) if "main.py" in line) <= 25
    assert "not run yet" not in README + RESULTS


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"[^!]\[.*?\]\(([^)#]+)", page.read_text()):
            if not link.startswith("https:"):
                assert (page.parent / link).exists(), (page.name, link)


def test_files_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:jaxattn|tests|docs|benchmarks|configs)/[\w/.-]+)`", text)
    assert len(named) > 10
    for path in named:
        assert (ROOT / path.split("NAME")[0]).exists(), path


def test_photo_of_the_readme_is_classified(tmp_path):
    (command,) = [c for c in jaxattn_commands() if "--data assets/" in c]
    command = command.replace("classes.csv", str(tmp_path / "classes.csv"))
    done = run(sys.executable, "-m", "jaxattn", *shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    with (tmp_path / "classes.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["Labels"] == "horse"
    assert f"with {float(row['horse']):.0%}" in README.replace(" %", "%")


# Each is a process.
MISTAKES = [
    (["--config.num_epoch=3"], "did you mean 'num_epochs'?"),
    (["--config.num_epochs=many"], "flag --config.num_epochs=many: invalid literal"),
    (["--config.schedule=3"], "`3` is not a dict"),
    (["--epochs=3"], "Unknown command line flag 'epochs'"),
    (["stray"], "stray: not a flag"),
    (["--config=configs/none.py"], "--config=configs/none.py: no such file"),
    (["--config=canett"], "--config=canett: did you mean 'canet'? choices: "),
    (["--config=configs/canet.py:huge"], "must be one of tiny, light, base, pro"),
]


@pytest.mark.parametrize(
    ("flags", "message"), full_but(MISTAKES, MISTAKES[0], MISTAKES[3])
)
def test_mistake_on_the_command_line_is_one_line(flags, message, tmp_path):
    base = ["--config=configs/canet.py", f"--workdir={tmp_path / 'run'}"]
    flags = flags + base[1:] if "--config=" in flags[0] else base + flags
    done = run(sys.executable, "main.py", *flags)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()


def test_a_run_is_read_in_eight_files():
    """Of at most 1,500 lines, all that the page names."""
    page = (ROOT / "docs" / "how_a_run_works.md").read_text()
    files = {ROOT / name for name in re.findall(r"`(jaxattn/[\w/]+\.py)`", page)}
    assert len(files) == 8
    assert sum(len(file.read_text().splitlines()) for file in files) <= 1500
