"""The words of `apollo-eval`, the rows that it measures on, and its table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field
from rich.table import Table

from apollo_cli.cli.arguments import CommandLine
from apollo_cli.cli.error_help import explained
from apollo_cli.cli.plain_words import parse_words
from apollo_cli.config.config import Config, parse
from apollo_cli.config.data import is_streamed
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.config.schema import Section, Size
from apollo_cli.data import cache_folder
from apollo_cli.data.batches import EvaluationBatches
from apollo_cli.data.tokenizer import special_ids
from apollo_cli.errors import ApolloError, CheckpointError, ConfigError
from apollo_cli.inference.evaluation import bits_per_byte, layer_worths, measure, pseudo_perplexity, sliding_windows
from apollo_cli.inference.trained import TrainedModel, cache_of, load_trained
from apollo_cli.tracking.console import Console
from apollo_cli.training.corpora import measured_corpus, prepare_corpus
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_task

_MOST_LOGITS = 2**26  # numbers at once
_STREAM_ROWS = 512  # of a stream, where `rows` is not typed
_CORPUS = ("data", "data.files", "data.path", "data.sources")  # keys that name another corpus
_OF_MODEL = ("data.seq_len", "data.tokenizer", "data.vocab_size")
_OF_SPLITS = ("data.validation", "data.validation_seed", "data.validation_files")


class EvaluationArgs(Section, strict=False):
    """What may be typed, beside the keys of `data`."""

    run: tuple[str, ...] = Field(min_length=1)
    checkpoint: str | None = None
    depth: Size | None = None
    rows: Size | None = None
    stride: Size | None = None
    pseudo: Annotated[int, Field(ge=0)] = 0
    per_layer: bool = False
    device: str = "auto"
    precision: str = "auto"


def evaluate_models(words: Sequence[str]) -> None:
    """Measures each model that is typed, and prints a table or JSON."""
    as_json = "--json" in words
    of_data = [word for word in words if word.startswith(("data=", "data."))]
    args = parse_words(EvaluationArgs, [w for w in words if w not in (*of_data, "--json")], "apollo-eval")
    console, names_corpus = Console(quiet=as_json), _names_corpus(of_data)
    found: list[dict[str, Any]] = []
    try:
        for folder in args.run:
            found.append(_evaluated(Path(folder), of_data, args, console, names_corpus))
    except ApolloError:
        if found:  # perhaps after hours
            console.show(_table(found))
        raise
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console.show(_table(found))
    for result in found if args.per_layer else []:
        console.show(_layer_table(result))


def _config(trained: TrainedModel, of_data: Sequence[str], args: EvaluationArgs, names_corpus: bool) -> Config:
    """The run's config, with the typed corpus instead of its own, on the typed device."""
    if trained.config:
        raw = dict(trained.config.raw)
    elif names_corpus:
        raw = compose_values([f"model={trained.kind}", "schedule=scratch"])
    else:
        raise ConfigError(
            f"run={trained.title}: this folder does not say what it was trained on; type data.files=FILE"
        )
    if of_data:
        line = CommandLine.parse([*of_data, f"model={trained.kind}"])
        try:
            typed = compose_values(line.overrides)["data"]
        except (HydraException, OmegaConfBaseException) as error:
            raise explained(line, error, to_sweep="") from error
        in_bytes = raw["data"]["tokenizer"] == "bytes"
        of_model = {
            "tokenizer": "bytes" if in_bytes else str(trained.tokenizer_folder.resolve()),
            "vocab_size": trained.tokenizer.get_vocab_size(),
            "seq_len": trained.model.model_config.positions,
        }
        raw["data"] = typed | of_model if names_corpus else raw["data"] | {"cache_dir": typed["cache_dir"]}
    precision = args.precision
    if precision == "auto" and trained.config and trained.config.run.precision != "bf16":
        precision = "fp32"  # as its own evaluations
    return parse(raw | {"device": args.device, "precision": precision, "devices": None, "compile": "auto"})


def _names_corpus(of_data: Sequence[str]) -> bool:
    """Whether the words of `data` name another corpus than the run's; a ConfigError if one has no effect here."""
    keys = [word.partition("=")[0] for word in of_data]
    is_typed = not set(keys).isdisjoint(_CORPUS)
    problems = []
    for key, word in zip(keys, of_data, strict=True):
        if key in _OF_MODEL:
            problems.append(f"{word}: it is that of the model; leave it out")
        elif key in _OF_SPLITS:
            problems.append(f"{word}: nothing is held out here, all rows are measured; leave it out")
        elif key == "data.inspect":
            problems.append(f"{word}: nothing is inspected here; type it with apollo-train")
        elif not is_typed and key != "data.cache_dir":
            problems.append(f"{word}: it names no corpus; type data.files=FILE or data=NAME beside it")
    if problems:
        raise ConfigError(*problems)
    return is_typed


def _evaluated(
    folder: Path, of_data: Sequence[str], args: EvaluationArgs, console: Console, names_corpus: bool
) -> dict[str, Any]:
    trained = load_trained(folder, console, args.checkpoint)
    _check(args, trained)
    config = _config(trained, of_data, args, names_corpus)
    device = choose(config.run)
    cache = cache_folder.path(config.data.cache_dir) if of_data else cache_of(config)
    if names_corpus:
        most = args.rows or (_STREAM_ROWS if is_streamed(config.data) else None)
        corpus = measured_corpus(config, cache, console, most or 0)
    else:
        most = args.rows or config.eval.rows
        corpus = prepare_corpus(config, cache, console, 1)
        same_tokens = corpus.tokenizer.get_vocab() == trained.tokenizer.get_vocab()
        if not same_tokens or trained.fingerprint not in (None, corpus.fingerprint):
            raise CheckpointError(
                f"run={trained.title}: its corpus is not there as it was when it was trained (its fingerprint or "
                "its tokenizer differs); restore it, or type data.files=FILE to measure on another text"
            )
    rows = corpus.evaluation(most) if most else corpus.validation
    model, sizes = trained.model.to(device.device), trained.model.model_config
    micro = max(1, min(32, _MOST_LOGITS // (sizes.vocabulary * sizes.positions)))
    batches = EvaluationBatches(rows, make_task(config, corpus.tokenizer), micro)
    depth = args.depth or len(model.blocks)
    windows = sliding_windows(rows, args.stride) if args.stride else batches
    result: dict[str, Any] = {"run": trained.title, "rows": len(rows), **measure(model, windows, device, depth)}
    # a masked loss is not that of a text
    is_masked = trained.kind == "bert"
    result["bits_per_byte"] = None if is_masked else bits_per_byte(result["loss"], rows, corpus.tokenizer)
    if args.pseudo:
        mask = special_ids("bert", corpus.tokenizer)["mask"]
        result["pseudo_perplexity"] = pseudo_perplexity(model, rows[: args.pseudo], mask, device, micro)
    if args.per_layer:
        result["layers"] = layer_worths(model, batches, device)
    return result


def _check(args: EvaluationArgs, trained: TrainedModel) -> None:
    """Raises a ConfigError for what this model cannot be asked, before its corpus is read."""
    trained.check_depth(args.depth)
    problems, positions = [], trained.model.model_config.positions
    if args.per_layer and not trained.model.blocks:
        problems.append(f"per_layer=true: {trained.title} stores no layer; leave it out")
    if args.stride and trained.kind == "bert":
        problems.append(f"stride={args.stride}: BERT predicts masked tokens, not the next one; leave it out")
    elif args.stride and args.stride >= positions:
        wrong = f"windows of {positions} tokens would leave tokens out between them"
        problems.append(f"stride={args.stride}: {wrong}; type at most {positions - 1}")
    if args.pseudo and trained.kind != "bert":
        problems.append(f"pseudo={args.pseudo}: it is for BERT; {trained.kind} has a perplexity")
    if problems:
        raise ConfigError(*problems)


def _table(found: Sequence[dict[str, Any]]) -> Table:
    """One row a model; above them the path of the only one, or of the folder that they share."""
    paths = [Path(result["run"]) for result in found]
    shared = set.intersection(*({*path.parents} for path in paths)) - {Path(), Path("/")}
    folder = max(shared, key=lambda path: len(path.parts), default=Path())
    title = str(paths[0]) if len(paths) == 1 else str(folder) if shared else None
    table = Table(title=title, title_justify="left")
    heads = {
        **({"run": "{}"} if len(paths) > 1 else {}),
        "depth": "{}",
        "rows": "{:,}",
        "loss": "{:.4f}",
        "perplexity": "{:.2f}",
        "bits_per_byte": "{:.4f}",
        "accuracy": "{:.2%}",
        "pseudo_perplexity": "{:.2f}",
    }
    shown = {key: form for key, form in heads.items() if any(result.get(key) is not None for result in found)}
    for key in shown:
        table.add_column(key.replace("_", " "), justify="left" if key == "run" else "right", overflow="fold")
    for result, path in zip(found, paths, strict=True):
        cells = result | {"run": path.relative_to(folder) if folder in path.parents else path}
        table.add_row(
            *(form.format(cells[key]) if cells.get(key) is not None else "-" for key, form in shown.items())
        )
    return table


def _layer_table(result: dict[str, Any]) -> Table:
    table = Table(title=result["run"], title_justify="left")
    for name in ("layer", "loss without it", "more by", "update", "like the next"):
        table.add_column(name, justify="right")
    for number, layer in enumerate(result["layers"]):
        similarity = "-" if layer["similarity"] is None else f"{layer['similarity']:.3f}"
        table.add_row(
            str(number),
            f"{layer['loss_without']:.4f}",
            f"{layer['more']:+.4f}",
            f"{layer['update']:.3f}",
            similarity,
        )
    return table
