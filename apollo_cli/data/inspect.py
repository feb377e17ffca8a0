"""What `data.inspect=true` shows: statistics of a corpus, and the first rows as the model will see them."""

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

import numpy as np
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from apollo_cli.data.batches import MaskedTokens, TrainingBatches
from apollo_cli.data.corpus import Corpus

_ROWS_SHOWN = 3


def inspection(corpus: Corpus, batches: TrainingBatches) -> Iterator[Table]:
    yield _statistics(corpus)
    if len(corpus.packed.parts) > 1:
        yield _parts(corpus)
    yield _first_rows(corpus.tokenizer, batches)


def _statistics(corpus: Corpus) -> Table:
    packed, seq_len = corpus.packed, corpus.training.shape[1]
    documents = sum(packed.documents.values())
    held_out = "given" if packed.given else "held out"
    if packed.tail:
        held_out = "the last rows, for documents are too few"
    table = Table(title="The corpus", title_justify="left", show_header=False)
    rows = {
        "documents": f"{documents:,}: {packed.documents['training']:,} training, "
        f"{packed.documents['validation']:,} validation ({held_out})",
        "exact copies": f"{packed.copies:,} of them are copies of an earlier one; a copy never is in both parts",
        "left out": f"{packed.left_out:,} for training that validation has, too; {packed.empty:,} without text",
        "text": f"{packed.num_bytes:,} bytes of UTF-8",
        "tokens": f"{packed.tokens:,} of a vocabulary of {corpus.tokenizer.get_vocab_size():,}",
        "unknown": f"{packed.unknown:,} of the tokens ({packed.share_unknown:.2%}) are unknown to the tokenizer",
        "bytes per token": f"{packed.num_bytes / max(1, packed.tokens):.3f}",
        "tokens a document": f"{packed.tokens / max(1, documents):,.1f} on average, at most {packed.longest:,}",
        "rows": f"{len(corpus.training):,} training, {len(corpus.validation):,} validation, of {seq_len} tokens",
        "left over": f"{packed.left_over:,} tokens at the end that fill no row, or none that this run needs",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _parts(corpus: Corpus) -> Table:
    table = Table(title="Its parts", title_justify="left")
    for name in ("part", "weight", "training rows", "validation rows"):
        table.add_column(name)
    for part in corpus.packed.parts:
        weight = "by its rows" if part.weight is None else f"{part.weight:g}"
        table.add_row(Text(part.title), weight, f"{part.training:,}", f"{part.validation:,}")
    return table


def _first_rows(tokenizer: Tokenizer, batches: TrainingBatches) -> Table:
    """The first rows of the run; a token to be predicted that was masked is shown as ⟦it→its replacement⟧."""
    masked = isinstance(batches.task, MaskedTokens)
    batch, rows = batches.micro_batch(0, 0), batches.rows[batches.row_numbers(0, 0)]
    title = "The first rows of this run" + (": ⟦token→what the model sees instead⟧ is asked for" if masked else "")
    table = Table(title=title, title_justify="left", show_header=False, show_lines=True)
    predicted = np.zeros(rows.shape, dtype=bool)
    if masked:
        predicted.reshape(-1)[batch.positions.numpy()] = True
    for row, seen, marks in list(zip(rows, batch.tokens.numpy(), predicted, strict=True))[:_ROWS_SHOWN]:
        table.add_row(Text(_marked(tokenizer, row, seen, marks)))  # Text: no markup is interpreted
    return table


def _marked(tokenizer: Tokenizer, row: np.ndarray, seen: np.ndarray, marks: np.ndarray) -> str:
    texts = []
    for is_marked, tokens in groupby(zip(marks, row.tolist(), seen.tolist(), strict=True), itemgetter(0)):
        if is_marked:
            texts += [f"⟦{tokenizer.id_to_token(was)}→{tokenizer.id_to_token(now)}⟧" for _, was, now in tokens]
        else:
            texts.append(tokenizer.decode([was for _, was, _ in tokens], skip_special_tokens=False))
    return " ".join(filter(None, texts))
