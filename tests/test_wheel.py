"""The wheel on its own: installed elsewhere, it finds its configs."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_runs_from_an_environment_of_its_own(tmp_path: Path) -> None:
    """The dependencies are lent by this environment, our own package is not."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("apollo_train-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    subprocess.run(install, check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    command = [str(tmp_path / "venv" / "bin" / "apollo-train"), "plan=true", "hydra.run.dir=run", "device=cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    steps = json.loads((tmp_path / "run" / "plan.json").read_text())["steps"]
    assert f"Plan: {steps:,} steps" in done.stdout
    assert list(site.glob("apollo_cli/conf/schema.json"))  # which the YAML files there name
    where = subprocess.run(
        [python, "-c", "import apollo_cli; print(apollo_cli.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(site))
