"""The model card of an exported model: README.md, which the hub and people read."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from apollo_cli import __version__
from apollo_cli.config.config import Config
from apollo_cli.config.data import HubKeys, MixtureArgs, PyDocsKeys
from apollo_cli.errors import in_markdown
from apollo_cli.files import counted
from apollo_cli.growth.plan import Plan
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.tracking.console import duration
from apollo_cli.training.evaluate import perplexity
from apollo_cli.training.labels import tags, trains_whole

CARD = "README.md"
WeightsOf = Literal["end", "average", "best"]
_ANYWHERE = 'name = "."  # this folder, or its name on the hub'
_NAMES = {"bert": "BERT", "gpt": "GPT-2", "llama": "LLaMA"}
_CLASSES = {"bert": "AutoModelForMaskedLM", "gpt": "AutoModelForCausalLM", "llama": "AutoModelForCausalLM"}
_TASKS = {"bert": "fill-mask", "gpt": "text-generation", "llama": "text-generation"}
_ON_HUB = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_CITATION = """\
@inproceedings{pan2024apollo,
  title     = {Preparing Lessons for Progressive Training on Language Models},
  author    = {Pan, Yu and Yuan, Ye and Yin, Yichun and Shi, Jiaxin and Xu, Zenglin and Zhang, Ming and Shang,
               Lifeng and Jiang, Xin and Liu, Qun},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2024},
  note      = {arXiv:2401.09192},
}"""


def model_card(config: Config, plan: Plan, summary: dict[str, Any], *, of: WeightsOf = "end") -> str:
    """The card as Markdown with the hub's metadata; names in it, which may be another person's, are escaped.

    `of` says which of the run's weights the model has.
    """
    from huggingface_hub import ModelCard, ModelCardData  # its import takes half a second

    kind, datasets = config.model.kind, [*dict.fromkeys(_datasets(config.data))]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=_TASKS[kind],
        tags=["apollo-train", "progressive-training", *dict.fromkeys(tags(config))],
        datasets=datasets or None,
    )
    body = "\n".join(_body(config, plan, summary, datasets, of))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def with_repository(card: str, name: str) -> str:
    """The card where it says how to load the model from this repository of the hub."""
    return card.replace(_ANYWHERE, f'name = "{name}"')


def _body(config: Config, plan: Plan, summary: dict[str, Any], datasets: list[str], of: WeightsOf) -> Iterator[str]:
    kind, totals = config.model.kind, summary["totals"]
    last = plan.stages[plan.schedule.index(max(0, totals["steps"] - 1))]  # a budget of seconds may end it earlier
    yield f"# {in_markdown(config.run.name)}\n"
    way = "all of its layers from the first step" if trains_whole(config) else "its depth growing meanwhile"
    norm = "pre-norm " if config.model_config.norm == "pre" else ""
    weights = {
        "average": " These are the averages of its weights (EMA).",
        "best": f" These are its weights after step {(summary.get('best') or {}).get('step')}, the best ones.",
        "end": "",
    }[of]
    layers, hidden = totals["layers"], config.model_config.narrowed(last.stage.width).hidden
    yield (
        f"A {norm}{_NAMES[kind]} of {counted(layers, 'layer')} of width {hidden} "
        f"({last.parameters:,} parameters), pretrained with apollo-train, {way}.{weights} It is a base "
        "model: it completes text as its training data would, and was not made safe or tested for any use.\n"
    )
    yield "## Use\n"
    yield "```python"
    yield f"from transformers import {_CLASSES[kind]}, AutoTokenizer\n"
    yield _ANYWHERE
    yield f"model, tokenizer = {_CLASSES[kind]}.from_pretrained(name), AutoTokenizer.from_pretrained(name)"
    yield "```\n"
    yield f"Rows have at most {config.data.seq_len} tokens of a vocabulary of {config.data.vocab_size:,}.\n"
    yield "## Results\n"
    yield from _table([("", "value"), *_results(summary, kind, of)])
    yield "## Training\n"
    yield from _table([("", "value"), *_training(config, summary)])
    yield from _growth(config.model_config, plan, summary)
    yield "## Data\n"
    own = "Documentation of a Python installation" if isinstance(config.data, PyDocsKeys) else "Texts of its author"
    names, facts = ", ".join(map(in_markdown, datasets)) or own, summary["data"]
    yield f"{names}: {facts['training_rows']:,} training rows."
    yield f"Fingerprint of rows and tokenizer: `{facts['fingerprint']}`.\n"
    yield "## Citation\n"
    yield "The method:\n"
    yield f"```bibtex\n{_CITATION}\n```\n"
    commit = f", commit {summary['git_commit']}" if summary["git_commit"] else ""
    yield in_markdown(f"The program: apollo-train {__version__}{commit}.")


def _table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    head, *body = rows
    for row in (head, ("---",) * len(head), *body):
        yield f"| {' | '.join(cell if cell == '---' else in_markdown(cell) for cell in row)} |"
    yield ""


def _results(summary: dict[str, Any], kind: str, of: WeightsOf) -> Iterator[tuple[str, str]]:
    losses = summary.get("best") or {} if of == "best" else summary["losses"]
    loss = losses.get("eval/loss_ema" if of == "average" else "eval/loss")
    if loss is None:
        return
    of_what = " of the masked tokens" if kind == "bert" else ""
    yield f"validation loss{of_what} (nats)", f"{loss:.4f}"
    if kind != "bert":
        yield "perplexity", f"{perplexity(loss):.2f}"


def _training(config: Config, summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    totals, batch, optim = summary["totals"], config.batch, config.optim
    yield "steps", f"{totals['steps']:,}"
    yield "tokens", f"{totals['tokens']:,}"
    yield "batch", f"{batch.size} rows of {config.data.seq_len} tokens"
    yield "model FLOPs", f"{totals['flops']:.4e}"
    yield "from scratch in as many steps", f"{totals['scratch_flops']:.4e}"
    if totals["source_flops"] != 0:
        source = totals["source_flops"]
        yield "FLOPs of the model that it began from", "not known" if source is None else f"{source:.4e}"
    yield "optimizer", f"{optim.kind}, peak learning rate {optim.lr:g}, {optim.schedule}"
    yield "depth", f"sampler {config.sampler.kind}, expander {config.expander.kind}"
    yield "precision", summary["precision"]
    yield "device", summary["device"] + (f" x {summary['devices']}" if summary["devices"] > 1 else "")
    yield "training time", f"{duration(totals['train_seconds'])} (h:mm:ss)"
    yield "seed", str(summary["seed"])


def _growth(model_config: ModelConfig, plan: Plan, summary: dict[str, Any]) -> Iterator[str]:
    """Its stages that have begun, and the loss on both sides of each growth; nothing where only one has."""
    totals = summary["totals"]
    begun = [part for part in plan.stages if part.stage.first_step < totals["steps"]]
    if len(begun) <= 1:
        return
    before = {growth["step"]: growth for growth in summary["growths"]}
    rows = [("layers", "width", "steps", "FLOPs", "validation loss at the growth")]
    flops = [part.flops for part in begun[:-1]]
    flops.append(totals["flops"] - sum(flops) - sum(part.map_flops for part in begun))  # it may have ended early
    for part, spent in zip(begun, flops, strict=True):
        stage, growth = part.stage, before.get(part.stage.first_step)
        sides = [growth.get(f"eval/loss_{side}") for side in ("before", "after")] if growth else []
        change = " to ".join("-" if loss is None else f"{loss:.4f}" for loss in sides)
        steps = f"{stage.first_step:,} to {min(stage.end_step, totals['steps']):,}"
        width = model_config.narrowed(stage.width).hidden
        rows.append((str(stage.layers), str(width), steps, f"{spent:.3e}", change))
    yield from _table(rows)


def _datasets(data: Any) -> Iterator[str]:
    """Names on the hub; those of local folders are nobody else's business."""
    for source in data.sources if isinstance(data, MixtureArgs) else (data,):
        names = source.path if isinstance(source, HubKeys) else ()
        yield from (name for name in names if _ON_HUB.fullmatch(name) and not Path(name).exists())
