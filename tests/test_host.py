import os
import pathlib
import platform
import subprocess
import sys

import pytest

from jaxattn import host


def run(code, **environment):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SETTING = host._SETTING
CODE = "from jaxattn import host; host.prepare(); import os; "
CODE += "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'))"


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not SETTING.exists(), reason="needs glibc"
)
def test_program_starts_itself_anew_with_huge_pages():
    """The same process with the same arguments, once."""
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment |= {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-c", CODE], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        pid, tunables = process.communicate()[0].split()
    assert int(pid) == process.pid
    is_for_those_who_ask = "[madvise]" in SETTING.read_text()
    assert tunables == ("glibc.malloc.hugetlb=1" if is_for_those_who_ask else "None")


def test_what_the_user_set_is_left_alone():
    assert run(CODE, GLIBC_TUNABLES="glibc.malloc.check=0").endswith("check=0")


@pytest.mark.parametrize(
    ("libc", "setting", "expected"),
    [
        (("glibc", "2.36"), "always [madvise] never", True),
        (("glibc", "2.34"), "always [madvise] never", False),
        (("", ""), "always [madvise] never", False),
        (("glibc", "2.36"), "[always] madvise never", False),
        (("glibc", "2.36"), "always madvise [never]", False),
    ],
)
def test_huge_pages_are_asked_for_where_it_helps(
    libc, setting, expected, monkeypatch, tmp_path
):
    (tmp_path / "enabled").write_text(setting)
    monkeypatch.setattr(host, "_SETTING", tmp_path / "enabled")
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert host._wants_huge_pages() == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "{here}"}, "{here}/jaxattn/xla"),
        ({"XDG_CACHE_HOME": "c", "JAX_COMPILATION_CACHE_DIR": "/mine"}, "/mine"),
        ({"XDG_CACHE_HOME": "/dev/null/c"}, "None"),
    ],
)
def test_programs_are_cached_where_the_user_says(
    environment, expected, monkeypatch, tmp_path
):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    environment = {k: v.format(here=tmp_path) for k, v in environment.items()}
    code = "from jaxattn import host; host.prepare(); import jax;"
    code += "print(jax.config.jax_compilation_cache_dir)"
    assert run(code, **environment) == expected.format(here=tmp_path)


def test_matplotlib_has_a_folder_where_the_users_cannot_be_written(monkeypatch):
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/c")
    host._keep_matplotlib_quiet()
    folder = os.environ.pop("MPLCONFIGDIR")
    assert pathlib.Path(folder).is_dir()
    monkeypatch.setenv("MPLCONFIGDIR", "/mine")
    host._keep_matplotlib_quiet()
    assert os.environ["MPLCONFIGDIR"] == "/mine"


def test_a_user_without_a_home_has_no_caches(monkeypatch):
    def no_home(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pathlib.Path, "home", no_home)
    assert not host.cache_folder().exists()
    assert not host.can_write(host.cache_folder())


def test_cache_is_the_users_by_default(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert host.cache_folder() == pathlib.Path.home() / ".cache" / "jaxattn"


@pytest.mark.parametrize(("platforms", "expected"), [("cpu", False), ("cuda", True)])
def test_an_accelerator_is_its_plugin(platforms, expected, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(host, "_ACCELERATORS", ("json",))  # any module that exists
    assert host._has_accelerator() == expected
