"""The package as it is installed: light to import, nothing missing, nothing where it does not belong."""

# maskaug itself must not be imported here: a spawned worker imports this module before anything else.
from __future__ import annotations

import ast
import concurrent.futures
import multiprocessing
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("envs", "agents", "benchmarks")
IDS = {f"MaskAug-{name}-v0" for name in ("MURA", "HipFracture", "BUSI", "LGG", "MedMNIST", "Manifest", "Synthetic")}


def sources() -> dict[str, Path]:
    """Path in the package → file of the tree."""
    found = {f"maskaug/{path.name}": path for path in (ROOT / "maskaug").glob("*.py")}
    for part in PARTS:
        found |= {f"maskaug/{path.relative_to(ROOT).as_posix()}": path for path in (ROOT / part).rglob("*.py")}
    return found


def test_importing_is_light_and_registers_every_id() -> None:
    code = (
        "import sys, maskaug, gymnasium\n"
        "heavy = {'torch', 'cv2', 'sklearn', 'scipy', 'stable_baselines3', 'PIL', 'tyro'} & set(sys.modules)\n"
        "print(sorted(heavy), sorted(i for i in gymnasium.registry if i.startswith('MaskAug-')))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[] {sorted(IDS)}"


def play_in_a_new_process(env_id: str) -> tuple[bool, str, bool]:
    imported = "maskaug" in sys.modules
    import gymnasium as gym

    env = gym.make(env_id, n=12)
    env.reset(seed=0)
    _, reward, terminated, _, _ = env.step(env.action_space.sample())
    return imported, type(reward).__name__, terminated


def test_an_id_with_its_module_works_in_a_spawned_process() -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(play_in_a_new_process, "maskaug:MaskAug-Synthetic-v0").result() == (False, "float", True)


def test_the_masker_is_there_when_it_is_asked_for() -> None:
    import maskaug
    from maskaug.agents import masker

    assert maskaug.load_masker is masker.load_masker
    assert "load_masker" in maskaug.__all__
    with pytest.raises(AttributeError, match="no attribute 'load_masks'"):
        _ = maskaug.load_masks


def test_registering_again_changes_nothing() -> None:
    import gymnasium as gym

    import maskaug

    before = {env_id: gym.registry[env_id] for env_id in IDS}
    maskaug.register_envs()
    assert all(gym.registry[env_id] is before[env_id] for env_id in IDS)


def test_the_wheel_holds_the_tree_and_nothing_else(tmp_path: Path) -> None:
    # A copy: a build leaves folders behind, and an old one's leftovers would end up in the wheel.
    tree = tmp_path / "tree"
    tree.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    for name in ("maskaug", *PARTS):
        # Without the links: the build must not need them.
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", *PARTS))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        meta = {name.split("/")[1]: name for name in archive.namelist() if ".dist-info/" in name}
        entry_points = archive.read(meta["entry_points.txt"]).decode()
    assert files == {*sources(), "maskaug/py.typed"}
    assert "maskaug = maskaug.cli:" in entry_points
    import maskaug

    assert wheel.name.startswith(f"maskaug-{maskaug.__version__}-")


def imports(path: Path) -> list[tuple[int, str, int]]:
    """(level, module, line) of every import, wherever in the file it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", node.lineno))
    return found


def test_imports_are_absolute() -> None:
    files = [*sources().values(), *(ROOT / "tests").glob("*.py")]
    relative = [f"{path}:{line}" for path in files for level, _, line in imports(path) if level]
    outside = [f"{path}:{line}" for path in files for _, module, line in imports(path) if module.split(".")[0] in PARTS]
    assert relative + outside == []


@pytest.mark.parametrize(
    ("part", "later"), [("envs", ("agents", "benchmarks", "cli")), ("agents", ("benchmarks", "cli"))]
)
def test_imports_run_one_way(part: str, later: tuple[str, ...]) -> None:
    wrong = tuple(f"maskaug.{name}" for name in later)
    found = [
        f"{path}:{line} imports {module}"
        for path in (ROOT / part).glob("*.py")
        for _, module, line in imports(path)
        if module.startswith(wrong)
    ]
    assert found == []


def test_the_links_of_a_checkout_are_relative() -> None:
    for part in PARTS:
        link = ROOT / "maskaug" / part
        assert link.is_symlink()
        assert link.readlink() == Path("..") / part
