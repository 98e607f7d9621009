"""The wheel that a user installs holds every file of the packages, and its modules import without the extras."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("simulator", "collectives", "kernels", "reports", "trainer")
# Modules for which a user installs [train], [gpu-...] or [notebook] say so by importing torch at their top.
NEEDS_TORCH = "import torch"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built through the sdist, without build isolation: the test needs no network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(folder.glob("*.whl"))


def tracked_files() -> set[str]:
    done = subprocess.run(
        ["git", "ls-files", "src/flopcast", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = set()
    for name in done.stdout.splitlines():
        path = Path(name)
        if (ROOT / path).is_symlink():
            continue
        names.add(name.removeprefix("src/") if name.startswith("src/") else f"flopcast/{name}")
    return names


def test_the_wheel_holds_what_git_tracks(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert tracked_files() - packed == set()
    assert {name for name in packed - tracked_files() if not name.endswith(".pyc")} == set()


def test_every_module_of_the_planners_install_imports_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """In an environment that sees the base dependencies, with torch and cupy hidden."""
    environment = tmp_path / "venv"
    venv.create(environment, system_site_packages=False, with_pip=False)
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    modules = []
    for path in sorted((target / "flopcast").rglob("*.py")):
        dotted = path.relative_to(target).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        if NEEDS_TORCH not in path.read_text() and not dotted.endswith("__main__"):
            modules.append(dotted)
    assert "flopcast.simulator.forecast" in modules
    purelib = Path(sys.prefix) / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    code = f"""
import importlib, sys
sys.path[:0] = [{str(target)!r}]
sys.path.append({str(purelib)!r})
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'cupy'):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Hidden())
failed = []
for name in {modules!r}:
    try:
        module = importlib.import_module(name)
        assert module.__file__.startswith({str(target)!r}), module.__file__
    except ModuleNotFoundError as error:
        if error.name not in ('torch', 'cupy'):
            raise
        failed.append(name)
print(failed)
sys.exit(bool([n for n in failed if n.split('.')[1] in ('simulator', 'cli', 'reports') or n.endswith('.cost')]))
"""
    python = environment / "bin" / "python"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
