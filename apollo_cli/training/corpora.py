"""The corpus and the batches of a config."""

from dataclasses import replace
from pathlib import Path

from apollo_cli import files
from apollo_cli.config.config import Config
from apollo_cli.config.data import HubKeys, MixtureArgs, TextKeys, is_streamed
from apollo_cli.config.schema import Section
from apollo_cli.data import sources
from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.batches import TrainingBatches
from apollo_cli.data.corpus import Corpus, load_corpus
from apollo_cli.data.hub import Hub
from apollo_cli.data.mixture import Mixture as MixtureOfSources
from apollo_cli.data.recipe import Bound, Recipe
from apollo_cli.tracking.console import Console
from apollo_cli.training.distributed.group import ALONE, ProcessGroup
from apollo_cli.training.planning import make_task


def training_batches(
    config: Config, corpus: Corpus, first_sample: int = 0, processes: ProcessGroup = ALONE
) -> TrainingBatches:
    """The micro-batches of a run on this corpus from this sample on, or the share of this process of them."""
    batch, task, seed = config.batch, make_task(config, corpus.tokenizer), config.run.seed
    return TrainingBatches(
        corpus.training,
        task,
        seed,
        batch.size,
        batch.micro_size,
        corpus.order,
        processes.rank,
        processes.world_size,
        first_sample,
    )


def prepare_corpus(
    config: Config,
    cache: Path,
    console: Console,
    steps: int,
    processes: ProcessGroup = ALONE,
    first_sample: int = 0,
) -> Corpus:
    """The packed corpus of a config, from the cache folder or built there now by one process of each machine.

    Of an endless source, as many rows as `steps` need from the sample `first_sample` on.
    """
    recipe = _recipe(config, Bound(first_sample + steps * config.batch.size, config.eval.rows))
    with processes.local_rank_zero_first("corpus"):
        corpus = load_corpus(_source(config.data), recipe, cache, console.say, console.progress)
    if len(corpus.validation) < config.eval.rows:
        console.say(
            f"note: eval.rows={config.eval.rows}, but validation has "
            f"{files.counted(len(corpus.validation), 'row')}; all of it is used "
            "(a larger data.validation holds out more)"
        )
    return corpus


def measured_corpus(config: Config, cache: Path, console: Console, rows: int) -> Corpus:
    """The packed corpus of a config where nothing is trained on it.

    What is given for validation, else all of it; of a stream, and of parts mixed with one, `rows` rows each.
    """
    recipe = replace(_recipe(config, Bound(0, rows)), validation=1.0)
    return load_corpus(_source(config.data), recipe, cache, console.say, console.progress)


def _recipe(config: Config, bound: Bound) -> Recipe:
    data = config.data
    return Recipe(
        kind=config.model.kind,
        tokenizer=data.tokenizer,
        vocabulary=data.vocab_size,
        seq_len=data.seq_len,
        validation=data.validation,
        validation_seed=data.validation_seed,
        bound=bound if is_streamed(data) else None,
    )


def check_files(config: Config) -> None:
    """Opens the files of a config, and asks no network; a DataError if one is missing or cannot be read."""
    tokenizers.check_there(config.data.tokenizer)
    for part in _source(config.data).parts():
        if isinstance(part.source, sources.TextFiles):
            part.source.check_readable()


def _source(data: Section) -> sources.Source:
    if isinstance(data, MixtureArgs):
        return MixtureOfSources(tuple(sources.Part(_source(source), source.weight) for source in data.sources))
    if isinstance(data, TextKeys):
        return sources.TextFiles(data.files, data.document, data.text_field, data.errors, data.validation_files)
    if isinstance(data, HubKeys):
        options = (data.split, data.streaming, data.text_field, data.validation_split, data.revision)
        return Hub(data.path, data.name, *options)
    return sources.PyDocs()
