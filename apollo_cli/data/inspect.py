"""What `data.inspect=true` shows: the numbers of a corpus, and the first rows as the model will see them."""

from collections.abc import Iterator

import numpy as np
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from apollo_cli.data.batches import MaskedTokens, TrainingBatches
from apollo_cli.data.corpus import Corpus
from apollo_cli.data.packer import PackingStats

_ROWS_SHOWN = 3


def inspection(corpus: Corpus, batches: TrainingBatches) -> Iterator[Table]:
    """Tables for a terminal: the numbers, the parts of a mixture, the lengths of documents, the first rows."""
    yield _numbers(corpus)
    if len(corpus.packed.parts) > 1:
        yield _parts(corpus)
    yield _lengths(corpus)
    yield _first_rows(corpus.tokenizer, batches)


def _numbers(corpus: Corpus) -> Table:
    packed, seq_len = corpus.packed, corpus.training.shape[1]
    documents = sum(packed.documents.values())
    table = Table(title="The corpus", title_justify="left", show_header=False)
    rows = {
        "documents": f"{documents:,}: {packed.documents['training']:,} training, "
        f"{packed.documents['validation']:,} validation ({_of_validation(packed)})",
        "exact copies": f"{packed.copies:,} {_of_copies(packed)}; a copy never is in both parts",
        "left out": f"{packed.left_out:,} for training that validation has, too; {packed.empty:,} without text",
        "text": f"{packed.num_bytes:,} bytes of UTF-8",
        "tokens": f"{packed.tokens:,} of a vocabulary of {corpus.tokenizer.get_vocab_size():,}",
        "bytes per token": f"{packed.num_bytes / max(1, packed.tokens):.3f}",
        "tokens a document": f"{packed.tokens / max(1, documents):,.1f} on average, at most {packed.longest:,}",
        "rows": f"{len(corpus.training):,} training, {len(corpus.validation):,} validation, of {seq_len} tokens",
        "left over": f"{packed.left_over:,} tokens at the end that fill no row, or none that this run needs",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _of_validation(packed: PackingStats) -> str:
    if packed.tail:
        return "the last rows, for documents are too few"
    return "given" if packed.given else "held out"


def _of_copies(packed: PackingStats) -> str:
    return "copies of others were left out" if packed.distinct else "of them are copies of an earlier one"


def _parts(corpus: Corpus) -> Table:
    table = Table(title="Its parts", title_justify="left")
    for name in ("part", "weight", "training rows", "validation rows"):
        table.add_column(name)
    for part in corpus.packed.parts:
        weight = "by its rows" if part["weight"] is None else f"{part['weight']:g}"
        table.add_row(Text(part["title"]), weight, f"{part['training']:,}", f"{part['validation']:,}")
    return table


def _lengths(corpus: Corpus) -> Table:
    """Between powers of two."""
    table = Table(title="Lengths of the documents", title_justify="left")
    for name in ("tokens", "documents", "share", "up to here"):
        table.add_column(name, justify="right")
    lengths = corpus.packed.lengths
    total, so_far = sum(lengths.values()), 0
    for digits in sorted(lengths):
        so_far += lengths[digits]
        low, high = (1 << digits) >> 1, (1 << digits) - 1
        span = f"{low:,}" if high <= low else f"{low:,} - {high:,}"
        table.add_row(span, f"{lengths[digits]:,}", f"{lengths[digits] / total:.1%}", f"{so_far / total:.1%}")
    return table


def _first_rows(tokenizer: Tokenizer, batches: TrainingBatches) -> Table:
    """The first rows of the run; where a token is asked for that was masked, ⟦it→what stands there⟧."""
    masked = isinstance(batches.task, MaskedTokens)
    batch, rows = batches.micro_batch(0, 0), batches.rows[batches.row_numbers(0, 0)]
    title = "The first rows of this run" + (": ⟦token→what the model sees instead⟧ is asked for" if masked else "")
    table = Table(title=title, title_justify="left", show_header=False, show_lines=True)
    asked = np.zeros(rows.shape, dtype=bool)
    if masked:
        asked.reshape(-1)[batch.positions.numpy()] = True
    for row, seen, marks in list(zip(rows, batch.tokens.numpy(), asked, strict=True))[:_ROWS_SHOWN]:
        table.add_row(Text(_marked(tokenizer, row, seen, marks)))  # no markup of rich's
    return table


def _marked(tokenizer: Tokenizer, row: np.ndarray, seen: np.ndarray, marks: np.ndarray) -> str:
    """A row as text, decoded between its marks."""
    edges = np.flatnonzero(np.diff(marks, prepend=False, append=False))
    texts, place = [], 0
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        texts.append(tokenizer.decode(row[place:start].tolist(), skip_special_tokens=False))
        pairs = zip(row[start:end].tolist(), seen[start:end].tolist(), strict=True)
        texts += [f"⟦{tokenizer.id_to_token(was)}→{tokenizer.id_to_token(now)}⟧" for was, now in pairs]
        place = int(end)
    texts.append(tokenizer.decode(row[place:].tolist(), skip_special_tokens=False))
    return " ".join(text for text in texts if text)
