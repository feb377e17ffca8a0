"""Programs that pretrain the same model on the same rows, each with a gate; and rates of matrix products.

python -m benchmarks.contenders NAME KIND HIDDEN [OVERRIDE...] PIPE
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import torch.nn.functional as F

from apollo_cli.config.config import Config
from apollo_cli.data import cache_folder
from apollo_cli.data.batches import TrainingBatches
from apollo_cli.models.build import build
from apollo_cli.models.hf import save_model
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.tracking.console import Console
from apollo_cli.training.corpora import prepare_corpus
from apollo_cli.training.device import choose
from apollo_cli.training.optimizer import build_optimizer
from apollo_cli.training.planning import make_task
from apollo_cli.training.run import train
from benchmarks.configs import config_of
from benchmarks.gate import Gate

ROWS, VOCABULARY, LONG = 32, 8192, 100_000


def words(kind: str, hidden: int, more: Sequence[str] = ()) -> list[str]:
    """Overrides of every contender: 12 layers at full depth, no evaluation and no checkpoint."""
    common = [
        f"model={kind}", "size=nano", f"model.hidden={hidden}", f"model.heads={hidden // 64}",
        f"model.ffn={4 * hidden}", f"data.vocab_size={VOCABULARY}", f"batch.size={ROWS}", "device=cpu",
        "precision=fp32", f"budget.steps={LONG}", "sampler=full", "schedule=scratch", f"eval.every={LONG}",
        f"checkpoint.every={LONG}", "tracking.wandb=disabled",
    ]  # fmt: skip
    replaced = {word.partition("=")[0] for word in more}
    return [*(word for word in common if word.partition("=")[0] not in replaced), *more]


def ours(config: Config, gate: Gate) -> None:
    """`apollo-train`."""
    from apollo_cli.training.trainer import Trainer

    original = Trainer.step

    def step(trainer: Trainer) -> None:
        gate.step()
        original(trainer)

    Trainer.step = step  # type: ignore[method-assign, assignment]
    train(config, Path(mkdtemp()))


def plain(config: Config, gate: Gate) -> None:
    """A plain loop: logits of all rows at once, torch's own linear layers."""
    from apollo_cli.models import transformer

    transformer.apply_linear = lambda layer, hidden: layer(hidden)
    model, batches = _model(config), _batches(config)
    groups, optim = build_optimizer(model, config.optim).param_groups, config.optim
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
    for step in range(LONG):
        gate.step()
        batch = batches.micro_batch(step, 0)
        hidden = model.trunk(batch.tokens, range(config.model.layers)).flatten(0, 1)[batch.positions]
        loss = F.cross_entropy(model.head(hidden), batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()


def trainer_compiled(config: Config, gate: Gate) -> None:
    """The same with `torch_compile=True`."""
    trainer(config, gate, compiled=True)


def trainer(config: Config, gate: Gate, *, compiled: bool = False) -> None:
    """Hugging Face's Trainer with transformers' GPT-2 or BERT, from the same weights on the same rows."""
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        DataCollatorForLanguageModeling,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )

    is_bert, device = config.model.kind == "bert", choose(config.run)
    corpus, folder, optim = _corpus(config), Path(mkdtemp()), config.optim
    save_model(_model(config), folder, {})
    collate: Callable[[Any], Any] = default_data_collator
    if is_bert:
        marks = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=corpus.tokenizer, **marks)
        collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    model = (AutoModelForMaskedLM if is_bert else AutoModelForCausalLM).from_pretrained(folder)

    class Gates(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            gate.step()

    def rows() -> Iterator[dict[str, Any]]:
        for row in corpus.training[:8192]:
            ids = row.tolist()
            yield {"input_ids": ids} | ({} if is_bert else {"labels": ids})

    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=LONG, per_device_train_batch_size=config.batch.size,
        learning_rate=optim.lr,
        weight_decay=optim.weight_decay, adam_beta1=optim.betas[0], adam_beta2=optim.betas[1],
        max_grad_norm=optim.clip, lr_scheduler_type="cosine", warmup_steps=2500, logging_steps=10,
        save_strategy="no", report_to="none", use_cpu=device.device.type == "cpu", bf16=device.bf16,
        disable_tqdm=True, torch_compile=compiled,
    )  # fmt: skip
    data = Dataset.from_list(list(rows()))
    Trainer(model, arguments, data_collator=collate, train_dataset=data, callbacks=[Gates()]).train()


def square(config: Config, gate: Gate) -> None:
    """One product of 2048^3 a step."""
    _multiply(config, gate, [(2048, 2048, 2048)])


def layer(config: Config, gate: Gate) -> None:
    """The products of one layer's forward and backward pass, once a step."""
    _multiply(config, gate, products_of_layer(config.model.hidden, config.model.ffn, ROWS * config.data.seq_len))


def products_of_layer(hidden: int, ffn: int, tokens: int) -> list[tuple[int, int, int]]:
    """(a, b, c) for each (a, b) by (b, c): those forward, and the two of each one's backward pass."""
    forward = [(tokens, hidden, 3 * hidden), (tokens, hidden, hidden), (tokens, hidden, ffn), (tokens, ffn, hidden)]
    return [turned for a, b, c in forward for turned in ((a, b, c), (a, c, b), (b, a, c))]


def dense(config: Config, gate: Gate) -> None:
    """One product of 8192^3 a step in the precision of the run, on its device; waits for it every ten."""
    device = choose(config.run)
    left, right = (torch.randn(8192, 8192, device=device.device) for _ in range(2))
    if device.bf16:
        left, right = left.bfloat16(), right.bfloat16()
    for step in range(LONG):
        if step % 10 == 0:
            device.synchronize()
        gate.step()
        torch.mm(left, right)


def _multiply(config: Config, gate: Gate, sizes: list[tuple[int, int, int]]) -> None:
    dtype = torch.bfloat16 if choose(config.run).bf16 else torch.float32
    pairs = [
        (torch.randn(a, b).to(dtype), torch.randn(b, c).to(dtype), torch.empty(a, c, dtype=dtype))
        for a, b, c in sizes
    ]
    while True:
        gate.step()
        for left, right, product in pairs:
            torch.mm(left, right, out=product)


def _corpus(config: Config) -> Any:
    return prepare_corpus(config, cache_folder.path(config.data.cache_dir), Console(), 1)


def _model(config: Config) -> LanguageModel:
    torch.manual_seed(config.run.seed)
    return build(config.model_config, config.model.layers)


def _batches(config: Config) -> TrainingBatches:
    corpus = _corpus(config)
    task = make_task(config, corpus.tokenizer)
    return TrainingBatches(corpus.training, task, config.run.seed, ROWS, ROWS)


CONTENDERS = {f.__name__: f for f in (ours, plain, trainer, trainer_compiled, square, layer, dense)}

if __name__ == "__main__":
    name, kind, hidden, *more, pipe = sys.argv[1:]
    CONTENDERS[name](config_of(words(kind, int(hidden), more)), Gate(int(pipe)))
