"""A corpus and a model small enough that a whole run takes a fraction of a second."""

import gc
import importlib.metadata
import json
import logging
import os
import pickle
import random
import re
import sys
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import omegaconf
import pytest
from filelock import FileLock
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each process that a test starts would compile the package anew
os.environ["OMP_NUM_THREADS"] = "1"  # before torch: tests run side by side, and several threads each would fight

gc.disable()  # until all tests are imported, which takes a fifth less time so
importlib.metadata.version = cache(importlib.metadata.version)  # a run asks for six, and each is parsed anew

from apollo_cli.cli.logs import OwnOrWarning
from apollo_cli.config.config import Config, parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.data import cache_folder
from apollo_cli.files import write_text

BuiltOnce = Callable[[str, Callable[[Path], object]], Path]

STEPS = 12
TINY = (
    "size=nano",
    "data=text",
    "data.vocab_size=300",
    "data.seq_len=16",
    "data.validation=0.1",
    "model.layers=4",
    "model.hidden=16",
    "model.heads=2",
    "model.ffn=32",
    "schedule.layers=[1,2,4]",
    "schedule.ends=[0.25,0.5,1]",
    f"budget.steps={STEPS}",
    "batch.size=4",
    "batch.micro=2",
    "eval.every=5",
    "eval.rows=4",
    "log.every=3",
    "checkpoint.every=4",
    "optim.lr=3e-3",
    "tracking=local",
    "device=cpu",
    "precision=fp32",  # some CPUs have bf16
)
RARELY = ("batch.micro=4", "eval.every=100", "checkpoint.every=100")  # where none of them is tested: half the time


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, for many tests wait: for a signal, a lock, another process."""
    return int(os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS") or (os.cpu_count() or 1) + 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that import transformers, which takes seconds, come last together, so that few workers import it."""
    imports = cache(lambda path: "from transformers import" in path.read_text(encoding="utf-8"))
    items.sort(key=lambda item: imports(item.path))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test uses the network or an account."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SILENT"):  # the last one is set where a server is asked
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent/netrc")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # as in an active environment


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Removes the handler that Hydra installs for a command: its stream ends with the test."""
    yield
    root = logging.getLogger()
    for handler in [h for h in root.handlers if any(isinstance(f, OwnOrWarning) for f in h.filters)]:
        root.removeHandler(handler)
    root.setLevel(logging.WARNING)


@pytest.fixture(scope="session", autouse=True)
def _no_sync() -> Iterator[None]:
    """Waiting for the disk shows only when a machine loses power; what is synced, and when, is tested by spies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _composed_once(built_once: BuiltOnce) -> Iterator[list[tuple[Any, str, Any]]]:
    """Hydra parses the same words and merges the same files of the package again for each composition.

    Here each word is parsed once, and so is each file; what the words of groups choose is merged once, for all
    workers. A composition takes a fifth of its time so. Nothing is kept where a user's own folders are searched.

    Yields what stood there before: class or module, name, value.
    """
    sources = (of for of in Plugins.instance().discover(ConfigSource) if issubclass(of, ConfigSource))
    source = next(of for of in sources if of.scheme() == "pkg")
    load, parse = source.load_config, OverridesParser.parse_rule
    choose, merge = config_loader_impl.create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
    choices = defaults_list._create_interpolation_map

    interpolation = cache(omegaconf.base.parse)
    read = cache(lambda provider, place, path: pickle.dumps(load(source(provider, f"pkg://{place}"), path)))
    parsed = cache(lambda word, rule: parse(OverridesParser.create(), word, rule))

    def kept(key: object, make: Callable[[], Any]) -> Any:
        name = f"hydra_{sha256(repr(key).encode()).hexdigest()}"
        return pickle.loads(built_once(name, lambda path: path.write_bytes(pickle.dumps(make()))).read_bytes())

    def is_shipped(repo: IConfigRepository) -> bool:
        return all(of.scheme() in ("pkg", "structured") for of in repo.get_sources())

    def read_once(self: ConfigSource, config_path: str) -> ConfigResult:
        return pickle.loads(read(self.provider, self.path, config_path))

    def choose_once(
        repo: IConfigRepository, config_name: str | None, overrides_list: list[Override], **how: bool
    ) -> DefaultsList:
        if not is_shipped(repo):
            return choose(repo, config_name, overrides_list, **how)
        values = Overrides(repo, overrides_list).config_overrides
        of_groups = [word for word in overrides_list if not any(word is value for value in values)]
        key = ([word.input_line for word in of_groups], config_name, how)
        return replace(kept(key, partial(choose, repo, config_name, of_groups, **how)), config_overrides=values)

    def merge_once(self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        return (
            kept(defaults, lambda: merge(self, defaults, repo)) if is_shipped(repo) else merge(self, defaults, repo)
        )

    def choices_where_asked(
        overrides: Overrides, defaults: list[InputDefault], self_added: bool
    ) -> DictConfig | None:
        asked = any(default.is_interpolation() for default in defaults if not default.is_self())
        return choices(overrides, defaults, self_added) if asked else None

    def copy_shallowly(self: CachingConfigRepository, delegate: IConfigRepository) -> None:
        self.delegate, self.cache = copy(delegate), {}  # its sources are replaced, never changed

    replaced: list[tuple[Any, str, Any]] = [
        (CachingConfigRepository, "__init__", copy_shallowly),
        (source, "load_config", read_once),
        (OverridesParser, "parse_rule", lambda self, word, rule: copy(parsed(word, rule))),
        (config_loader_impl, "create_defaults_list", choose_once),
        (defaults_list, "_create_interpolation_map", choices_where_asked),
        *((module, "parse", interpolation) for module in (omegaconf.base, omegaconf._utils)),
        (ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_once),
    ]
    before = [(where, name, getattr(where, name)) for where, name, _ in replaced]
    with pytest.MonkeyPatch.context() as patch:
        for where, name, value in replaced:
            patch.setattr(where, name, value)
        yield before


@pytest.fixture(autouse=True)
def _hydra_as_it_is(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _composed_once: list[tuple[Any, str, Any]]
) -> None:
    """In slow tests Hydra composes by itself, and launchers can send it to other processes."""
    if request.node.get_closest_marker("slow"):
        for where, name, value in _composed_once:
            monkeypatch.setattr(where, name, value)


@pytest.fixture(scope="session")
def composed() -> dict[str, Any]:
    """What `apollo-train` alone composes; not to be changed."""
    return compose_values([])


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> BuiltOnce:
    """Makes a file or folder of this name by a function, once for all workers; returns its path."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def path_of(name: str, build: Callable[[Path], object]) -> Path:
        path, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                build(path)
                done.touch()
        return path

    return path_of


@pytest.fixture(scope="session")
def corpus_file(built_once: BuiltOnce) -> Path:
    """200 documents of random sentences over 400 made-up words, some far more frequent than others."""
    return built_once("corpus", _write_corpus) / "corpus.txt"


def _write_corpus(folder: Path) -> None:
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(400)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    documents = [" ".join(rng.choices(words, weights, k=60)) + "." for _ in range(200)]
    folder.mkdir()
    write_text(folder / "corpus.txt", "\n\n".join(documents))


@pytest.fixture(scope="session")
def tiny(corpus_file: Path) -> tuple[str, ...]:
    """The overrides of a tiny run; its packed corpus is shared by all workers."""
    folder = corpus_file.parent / "cache"
    cache_folder.make(folder)
    return (*TINY, f"data.files=[{corpus_file}]", f"data.cache_dir={folder}")


@pytest.fixture(scope="session")
def config(tiny: tuple[str, ...]) -> Callable[..., Config]:
    """Makes the config of a tiny run with more overrides.

    Hydra composes each option of a group once, and plain values are filled in. Words with interpolations, and
    options that touch several sections, it composes together.
    """

    @cache
    def composed(*options: str) -> dict[str, Any]:
        return compose_values([*tiny, *options])

    @cache
    def with_options(*options: str) -> bytes:
        chosen = [re.fullmatch(r"(model|sampler|expander|schedule|optim|distributed)=\w+", o) for o in options]
        groups = [match[1] for match in chosen if match]
        if len(set(groups)) < len(options):
            values = composed(*options)
        else:
            of_groups = {group: composed(option)[group] for group, option in zip(groups, options, strict=True)}
            values = composed() | of_groups
        return pickle.dumps(OmegaConf.create(values, flags={"struct": True}))

    def make(*more: str) -> Config:
        overrides = OverridesParser.create().parse_overrides(list(more))
        plain = {key for key, value in composed().items() if not isinstance(value, dict)}
        values = [
            o for o in overrides if re.fullmatch(rf"([a-z]+\.\w+|{'|'.join(plain)})=[^$]*", o.input_line or "")
        ]
        filled = pickle.loads(with_options(*(o.input_line or "" for o in overrides if o not in values)))
        for override in values:
            OmegaConf.update(filled, override.key_or_group, override.value(), merge=True)
        return parse(OmegaConf.to_container(filled))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def straight(config: Callable[..., Config], built_once: BuiltOnce) -> dict[str, Path]:
    """A complete run of each model; not to be changed."""
    from apollo_cli.training.run import train

    def build(folder: Path) -> None:
        for kind in ("bert", "gpt"):
            train(config(f"model={kind}"), folder / kind)

    folder = built_once("straight", build)
    return {kind: folder / kind for kind in ("bert", "gpt")}


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def without_clocks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what a clock decides."""
    return [
        {k: v for k, v in row.items() if not k.endswith("_seconds") and not k.startswith("perf/")} for row in rows
    ]
