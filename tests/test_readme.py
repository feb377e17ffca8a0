"""What README.md and docs/ show can be typed, and what they name is there."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from apollo_cli.cli.help import groups
from apollo_cli.cli.plain_words import parse_words
from apollo_cli.compare import parser
from apollo_cli.config.conf_folder import CONF
from apollo_cli.config.config import Config, parse
from apollo_cli.config.hydra_syntax import compose_values, job_config
from apollo_cli.config.schema import Section
from apollo_cli.inference.evaluation_command import EvaluationArgs
from apollo_cli.inference.sampling_command import SamplingArgs
from apollo_cli.signals import Interrupted
from apollo_cli.train import run
from apollo_cli.training import calibration
from apollo_cli.training.run import train
from apollo_cli.training.trainer import Trainer
from tests.helpers import made_slurm
from tests.helpers.pages import COMMANDS, PAGES, README, REPOSITORY, blocks
from tests.sweeps import test_all_methods

LONGEST_README, LONGEST_LINE = 170, 300
SLURM = "hydra/launcher=slurm"
TRAINED = ("data", "devices", "-m")  # test_runs.py trains what other options are, here they are planned


def test_wandb_agent_runs_what_the_shown_sweep_says() -> None:
    """The words that an agent makes of it compose to a valid config."""
    from wandb.sdk.launch.sweeps import utils

    (block,) = (text for text in blocks("yaml") if "args_no" in text)
    sweep = yaml.safe_load(block)
    chosen = {key: {"value": options["values"][-1]} for key, options in sweep["parameters"].items()}
    words = utils.create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    found = parse(compose_values(words))
    assert sweep["command"] == ["${env}", "${program}", "${args_no_hyphens}"]
    assert (found.optim.lr, getattr(found.sampler, "k", None)) == (0.002, 4)


def _speed(words: list[str]) -> list[pytest.MarkDecorator]:
    """Sweeps are slow however small their cells are, and a mixture with the whole default text."""
    large = {*(f"experiment=ablation/{name}" for name in ("samplers", "k", "expander", "schedule", "lr_transfer"))}
    large |= {"experiment=all_methods", "sampler=lvps,uniform,edge,full", "data=mixture", "devices=2"}
    is_small = large.isdisjoint(words) and not any(word.startswith(SLURM) for word in words)
    return [] if is_small else [pytest.mark.slow]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words[1:], id=" ".join(words[1:]), marks=_speed(words))
        for words in COMMANDS
        if words[0] == "apollo-train"
    ],
)
def test_every_command_runs(
    words: list[str],
    tiny: tuple[str, ...],
    config: Callable[..., Config],
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it stands, but for a smaller model, corpus and budget where it trains."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration, "_layer_rate", lambda *_: 1e9)  # that of a large model takes seconds
    (tmp_path / "corpus").mkdir()
    for name, step in {"corpus/one.txt": 1, "a.txt": 1, "c.txt": -1}.items():
        (tmp_path / name).write_bytes(corpus_file.read_bytes()[::step])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a few words"}\n'))
    typed = {word.partition("=")[0] for word in words}
    if any(word.startswith(SLURM) for word in words):
        made_slurm.enter(tmp_path / "slurm", monkeypatch)
        words = [*words, *tiny, "plan=true", "hydra.launcher.nodes=1", "hydra.launcher.gpus_per_node=1"]
    elif "resume" in typed:
        even = ["optim.schedule=constant"] if "budget.steps" in typed else []
        _interrupted_run(lambda: config(*even), Path(words[0].partition("=")[2]), monkeypatch)
        words = ["budget.steps=16" if word.startswith("budget.steps=") else word for word in words]
    elif any(word.startswith("experiment=ablation/") for word in words):
        words = [*words, "plan=true", *([] if "seed" in typed else ["seed=0"])]
    elif "experiment=all_methods" in words:
        words = [*words, *test_all_methods.small(tiny)]
    elif any(word.startswith("data=") and word not in ("data=text", "data=mixture") for word in words):
        words = [*words, "plan=true"]  # no test has a network
    elif "plan" not in typed:
        if sources := [word.partition("=")[2] for word in words if word.startswith("init_from.path=")]:
            small = (
                "model.layers=2",
                "schedule.layers=[2]",
                "schedule.ends=[1]",
                "budget.steps=1",
                "checkpoint.best=true",
            )
            train(config(*small), Path(sources[0]))
        trials = ["hydra.sweeper.n_trials=1"] if "hydra/sweeper" in typed else []
        words = [*(word for word in words if "n_trials" not in word), *trials]
        words += ["plan=true"] if words and not any(word.startswith(TRAINED) for word in words) else []
        own = ("model.layers", "schedule.", "batch.micro", "eval.every", *(f"{key}=" for key in typed))
        own += ("data.vocab_size=",) if "data.tokenizer" in typed else ()
        own += ("data.files=",) if "data=mixture" in words else ()
        every = 1 if any("plateau" in word for word in words) else 100
        words += [word for word in tiny if not word.startswith(own)] + ["budget.steps=16", f"eval.every={every}"]
    assert run(words) == 0


@pytest.mark.slow
@pytest.mark.parametrize("words", [w for w in COMMANDS if w[0] in ("torchrun", "srun")], ids=" ".join)
def test_every_launch_of_several_processes_runs(
    words: list[str], tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, but for a tiny model and two processes, which take this machine for two where two are named."""
    monkeypatch.chdir(tmp_path)
    module = words.index("-m")
    flags, typed = words[1:module], [word for word in words[module + 2 :] if not word.startswith("size=")]
    own = [word for word in tiny if word.partition("=")[0] not in {word.partition("=")[0] for word in typed}]
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    changed = {"--nproc-per-node": "2", "--master-addr": "localhost", "--master-port": port}
    changed |= {"--nproc-per-node": "1"} if "--nnodes=2" in flags else {}
    named = {name: changed.get(name, value) for name, _, value in (flag.partition("=") for flag in flags)}
    environments: list[dict[str, str]] = [{}]
    starts = [[sys.executable, "-m", "torch.distributed.run"]]
    if words[0] == "srun":
        assert flags == ["--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "python"]
        job = {"SLURM_JOB_ID": str(int(port) - 20_000), "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
        environments = [job | {"SLURM_PROCID": n, "SLURM_STEP_NODELIST": "localhost"} for n in "01"]
        starts = [[sys.executable]] * 2
    elif "--nnodes" in named:
        starts = [[*starts[0], *_flags(named | {"--node-rank": n})] for n in "01"]
        environments *= 2
    else:
        starts[0] += _flags(named)
    processes = [
        subprocess.Popen([*start, "-m", words[module + 1], *typed, *own], env=os.environ | environment)
        for start, environment in zip(starts, environments, strict=True)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * len(processes)
    (summary,) = tmp_path.glob("outputs/*/*/summary.json")
    assert json.loads(summary.read_text(encoding="utf-8"))["devices"] == 2


@pytest.mark.parametrize(
    "words", [w for w in COMMANDS if w[0] in ("torchrun", "srun") or any(SLURM in word for word in w)], ids=" ".join
)
def test_every_command_for_many_devices_composes(words: list[str]) -> None:
    """Launcher and job; the devices that it names share the rows of a micro-step evenly."""
    text = " ".join(words)
    after = words.index("-m") + 2 if "apollo_cli.train" in words else 1
    typed = OverridesParser.create().parse_overrides([word for word in words[after:] if word != "-m"])
    job = [f"{o.get_key_element()}={next(o.sweep_string_iterator())}" for o in typed if o.is_sweep_override()]
    job += [o.input_line or "" for o in typed if not o.is_sweep_override()]
    with initialize_config_module(CONF, version_base="1.3"):
        values = compose("config", job, return_hydra_config=True)
    launcher = values.hydra.launcher
    numbers = [re.search(rf"--{name}=(\d+)", text) for name in ("n(?:node|ode)s", "n(?:tasks|proc)-per-node")]
    nodes, each = [int(found[1]) if found else 1 for found in numbers]
    if SLURM in text:
        nodes, each = launcher.nodes, launcher.gpus_per_node
    config = job_config(OmegaConf.masked_copy(values, [str(key) for key in values if key != "hydra"]), job)
    assert (config.batch.micro or config.batch.size) % (nodes * each) == 0


def _flags(named: dict[str, str]) -> list[str]:
    return [f"{name}={value}" if value else name for name, value in named.items()]


@pytest.mark.parametrize(
    "words", [words[1:] for words in COMMANDS if words[0] == "apollo-compare"], ids=lambda words: " ".join(words)
)
def test_every_comparison_can_be_typed(words: list[str]) -> None:
    asked = parser().parse_args(words)
    assert asked.runs or asked.wandb


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        ({"apollo-eval": EvaluationArgs, "apollo-sample": SamplingArgs}[words[0]], words[1:])
        for words in COMMANDS
        if words[0] in ("apollo-eval", "apollo-sample")
    ],
)
def test_every_evaluation_and_sample_can_be_typed(cls: type[Section], words: list[str]) -> None:
    assert parse_words(cls, [word for word in words if not word.startswith("data.")], "apollo-eval")


def _interrupted_run(config: Callable[[], Config], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.save

    def stop(loop: Trainer) -> None:
        original(loop)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", stop)
        with pytest.raises(Interrupted):
            train(config(), folder)


def test_every_make_target_is_there() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    named = {target for text in PAGES.values() for target in re.findall(r"`make ([a-z-]+)", text)}
    targets = {words[1] for words in COMMANDS if words[0] == "make"} | named
    assert {"train", "demo", "test", "reproduce", "help"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:.*## ", makefile, flags=re.MULTILINE), target


def test_every_group_and_option_is_named() -> None:
    for group, options in groups().items():
        rows = [line for line in README.splitlines() if line.startswith(f"| `{group}` |")]
        for option in options:
            assert any(f"`{option}`" in row for row in rows), option


@pytest.mark.parametrize("name", PAGES)
def test_every_link_picture_and_anchor_is_there(name: str) -> None:
    """As `mkdocs build --strict` checks it for docs/."""
    for target in re.findall(r"\]\(([^)]+)\)", _without_code(PAGES[name])):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        assert file.is_file(), target
        assert not anchor or anchor in _anchors(file.read_text(encoding="utf-8")), target


def _without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", _without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_readme_is_short_and_lines_can_be_read() -> None:
    assert len(README.splitlines()) <= LONGEST_README
    for name, text in PAGES.items():
        assert [line for line in text.splitlines() if len(line) > LONGEST_LINE] == [], name


def test_the_site_and_the_readme_list_every_page() -> None:
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = [path for part in site["nav"] for pages in part.values() for page in pages for path in page.values()]
    pages = sorted(name.removeprefix("docs/") for name in PAGES if name.startswith("docs/"))
    results = [f"benchmarks/{path.name}" for path in (REPOSITORY / "benchmarks").glob("*.md")]
    assert sorted(listed) == sorted([*pages, *results])
    assert all(f"](docs/{page})" in README for page in pages)


def test_the_paper_and_the_project_can_be_cited() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == "Apache-2.0"
    assert "2401.09192" in str(citation["preferred-citation"])
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text(encoding="utf-8")


def test_every_promise_has_a_test_that_is_there() -> None:
    lines = PAGES["docs/guarantees.md"].splitlines()
    promises = [line for line in lines if line.startswith("| ") and "`tests/" in line]
    assert len(promises) >= 14
    for line in promises:
        for path in re.findall(r"`(tests/\S+)`", line):
            assert "def test_" in (REPOSITORY / path).read_text(encoding="utf-8"), path
