import numpy as np
import pytest
import torch

from apollo_cli.data.batches import EvaluationBatches, MaskedTokens, NextToken, TrainingBatches
from apollo_cli.data.row_order import RowOrder, shuffled
from apollo_cli.growth.rng import Purpose
from apollo_cli.models.transformer import Batch

MASK_ID, VOCABULARY = 4, 1000
MASKED = MaskedTokens(0.15, MASK_ID, VOCABULARY)


def order(rows: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return shuffled(rows, seed, epoch, np.arange(rows))


def framed(rows: int, seq_len: int) -> np.ndarray:
    """Random rows of BERT: [CLS] = 2, tokens of 5 or more, [SEP] = 3."""
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, size=(rows, seq_len), dtype=np.uint16)
    tokens[:, 0], tokens[:, -1] = 2, 3
    return tokens


def numbered(rows: int, seq_len: int = 6) -> np.ndarray:
    """Rows that begin with their own number."""
    tokens = np.ones((rows, seq_len), dtype=np.uint16)
    tokens[:, 0] = np.arange(rows)
    return tokens


def places(batch: Batch) -> np.ndarray:
    """(row, column) of each prediction."""
    return np.stack(np.divmod(batch.positions.numpy(), batch.tokens.shape[1]), axis=1)


def masks(batch: Batch) -> np.ndarray:
    """The columns of the predictions, row by row."""
    return places(batch)[:, 1].reshape(len(batch.tokens), -1)


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_a_shuffle_has_every_row_once(seed: int) -> None:
    for rows in (*range(1, 301), 1023, 1024, 1025, 4096, 65_537, 100_000):
        assert np.array_equal(np.sort(order(rows, seed)), np.arange(rows)), rows


def test_a_shuffle_can_be_computed_position_by_position() -> None:
    whole = order(1000, seed=3, epoch=2)
    asked = np.array([999, 0, 17, 17, 500])
    assert np.array_equal(shuffled(1000, 3, 2, asked), whole[asked])


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = {tuple(order(100, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


@pytest.mark.parametrize("rows", [50, *(pytest.param(rows, marks=pytest.mark.slow) for rows in (64, 100))])
def test_every_row_is_as_likely_to_come_first(rows: int) -> None:
    from scipy.stats import chisquare  # takes a second

    first = [int(shuffled(rows, seed, 0, np.array([0]))[0]) for seed in range(2000)]
    assert chisquare(np.bincount(first, minlength=rows)).pvalue > 0.001


def test_a_shuffle_has_no_correlation_with_the_order() -> None:
    from scipy.stats import spearmanr

    fixed = 0
    for seed in range(30):
        shuffle = order(2000, seed)
        assert abs(spearmanr(shuffle, np.arange(2000)).statistic) < 0.1
        assert abs(spearmanr(shuffle[1:], shuffle[:-1]).statistic) < 0.1
        fixed += int((shuffle == np.arange(2000)).sum())
    assert 10 < fixed < 55  # one for each shuffle is expected


@pytest.mark.parametrize(
    ("seq_len", "count"), [(4, 1), (8, 1), (16, 2), (64, 9), (128, 19), (512, 76), (1024, 153)]
)
def test_bert_masks_the_rounded_share_of_every_row(seq_len: int, count: int) -> None:
    assert MASKED.predictions(seq_len) == count
    rows = framed(20, seq_len)
    batch = MASKED.batch(rows, 0, Purpose.MASK, np.arange(20))
    columns = masks(batch)
    assert columns.shape == (20, count)
    assert all(len(set(row)) == count for row in columns.tolist())
    assert columns.min() >= 1
    assert columns.max() <= seq_len - 2


def test_bert_predicts_the_original_tokens_and_changes_no_other() -> None:
    rows = framed(50, 64)
    before = rows.copy()
    batch = MASKED.batch(rows, 0, Purpose.MASK, np.arange(50))
    row, column = places(batch).T
    assert np.array_equal(batch.targets.numpy(), before[row, column])
    untouched = np.ones(rows.shape, dtype=bool)
    untouched[row, column] = False
    assert np.array_equal(batch.tokens.numpy()[untouched], before[untouched])
    assert np.array_equal(rows, before)
    assert batch.tokens.dtype == batch.positions.dtype == batch.targets.dtype == torch.int64


def test_bert_replaces_80_10_10() -> None:
    from scipy.stats import chisquare

    rows = framed(2000, 128)
    batch = MASKED.batch(rows, 1, Purpose.MASK, np.arange(2000))
    inputs = batch.tokens.flatten()[batch.positions].numpy()
    targets = batch.targets.numpy()
    assert len(inputs) == 2000 * 19
    assert np.mean(inputs == MASK_ID) == pytest.approx(0.8, abs=0.01)
    assert np.mean(inputs == targets) == pytest.approx(0.1, abs=0.01)
    random = inputs[(inputs != MASK_ID) & (inputs != targets)]
    assert len(random) / len(inputs) == pytest.approx(0.1, abs=0.01)
    assert chisquare(np.bincount(random * 20 // VOCABULARY, minlength=20)).pvalue > 0.001


def test_bert_masks_every_position_equally_often() -> None:
    columns = masks(MASKED.batch(framed(2000, 128), 1, Purpose.MASK, np.arange(2000)))
    counts = np.bincount(columns.ravel(), minlength=128)[1:-1]
    expected = 2000 * 19 / 126
    assert np.abs(counts - expected).max() < 5 * expected**0.5


def test_the_masks_of_a_row_depend_on_seed_purpose_and_sample() -> None:
    row = framed(1, 128)

    def mask(seed: int, purpose: Purpose, sample: int) -> tuple[int, ...]:
        return tuple(masks(MASKED.batch(row, seed, purpose, np.array([sample])))[0].tolist())

    asked = [
        (seed, purpose, sample)
        for seed in (0, 1)
        for purpose in (Purpose.MASK, Purpose.EVALUATION_MASK)
        for sample in (0, 1, 10**12)
    ]
    assert len({mask(*key) for key in asked}) == len(asked)
    assert [mask(*key) for key in asked] == [mask(*key) for key in asked]


def test_gpt_predicts_the_next_token_at_all_positions_but_the_last() -> None:
    rows = np.array([[5, 6, 7], [8, 9, 10]], dtype=np.uint16)
    batch = NextToken().batch(rows, 0, Purpose.MASK, np.arange(2))
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 9, 10]]
    assert batch.positions.tolist() == [0, 1, 3, 4]
    assert batch.targets.tolist() == [6, 7, 9, 10]
    assert NextToken().predictions(3) == 2
    assert batch.tokens.dtype == batch.positions.dtype == batch.targets.dtype == torch.int64


@pytest.mark.parametrize("task", [MASKED, NextToken()])
@pytest.mark.parametrize("step", [0, 3, 11])
def test_a_step_is_the_same_for_every_micro_size(task: MaskedTokens | NextToken, step: int) -> None:
    rows = framed(37, 32)  # the fifth step of 8 crosses into the second epoch

    def samples(micro: int) -> list[tuple[list[int], list[int], list[int]]]:
        batches = TrainingBatches(rows, task, 5, 8, micro)
        parts = [batches.micro_batch(step, part) for part in range(8 // micro)]
        return [
            (tokens, columns, targets)
            for part in parts
            for tokens, columns, targets in zip(
                part.tokens.tolist(),
                masks(part).tolist(),
                part.targets.view(len(part.tokens), -1).tolist(),
                strict=True,
            )
        ]

    assert len(samples(8)) == 8
    assert samples(8) == samples(4) == samples(1)


def test_a_step_does_not_depend_on_those_before() -> None:
    rows = framed(37, 32)
    late = TrainingBatches(rows, MASKED, 5, 8, 4).micro_batch(20, 1)
    batches = TrainingBatches(rows, MASKED, 5, 8, 4)
    for step in range(20):
        batches.micro_batch(step, 0)
    again = batches.micro_batch(20, 1)
    assert torch.equal(late.tokens, again.tokens)
    assert torch.equal(late.positions, again.positions)


@pytest.mark.parametrize(("rows", "size", "micro"), [(37, 8, 4), (64, 16, 16), (5, 8, 2), (1, 4, 4)])
def test_every_row_comes_once_an_epoch_and_each_epoch_in_an_order_of_its_own(
    rows: int, size: int, micro: int
) -> None:
    batches = TrainingBatches(numbered(rows), NextToken(), 0, size, micro)
    steps = -(-3 * rows // size)
    seen = [
        int(row[0])
        for step in range(steps)
        for part in range(size // micro)
        for row in batches.micro_batch(step, part).tokens
    ]
    epochs = [seen[first : first + rows] for first in range(0, 3 * rows, rows)]
    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs)
    if rows > 30:
        assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_rows_of_a_step_are_those_of_its_samples_one_by_one() -> None:
    """They are looked up in blocks of 1,024 samples, or of an epoch."""
    order = RowOrder((7, 5000), (1.0, 3.0))
    batches = TrainingBatches(np.zeros((5007, 8), np.uint16), NextToken(), 3, 96, 48, order, first_sample=4000)
    for step, part in ((0, 0), (0, 1), (1, 0), (60, 1)):
        first = 4000 + 96 * step + 48 * part
        one_by_one = [int(order.row_numbers(3, np.array([sample]))[0]) for sample in range(first, first + 48)]
        assert batches.row_numbers(step, part).tolist() == one_by_one


def test_seeds_have_other_orders_and_other_masks() -> None:
    first, second = (TrainingBatches(framed(64, 32), MASKED, seed, 16, 16).micro_batch(0, 0) for seed in (0, 1))
    assert not torch.equal(first.tokens[:, 1], second.tokens[:, 1])
    assert not torch.equal(first.positions, second.positions)


def test_a_row_is_masked_anew_in_each_epoch() -> None:
    batches = TrainingBatches(framed(1, 128), MASKED, 0, 1, 1)
    assert len({tuple(batches.micro_batch(step, 0).positions.tolist()) for step in range(10)}) == 10


def test_evaluation_has_every_row_in_order_with_the_same_masks_for_every_micro_size() -> None:
    rows = framed(10, 32)
    split = {micro: [b for b, _ in EvaluationBatches(rows, MASKED, micro)] for micro in (1, 4, 10, 64)}
    assert [len(batch.tokens) for batch in split[4]] == [4, 4, 2]
    for batches in split.values():
        assert torch.equal(torch.cat([b.tokens for b in batches]), split[10][0].tokens)
        assert np.array_equal(np.concatenate([masks(b) for b in batches]), masks(split[10][0]))
        assert torch.equal(torch.cat([b.targets for b in batches]), split[10][0].targets)
    originals = split[10][0].tokens.numpy().copy()
    row, column = places(split[10][0]).T
    originals[row, column] = split[10][0].targets.numpy()
    assert np.array_equal(originals, rows)


def test_evaluation_is_the_same_every_time_and_not_masked_as_training_is() -> None:
    rows = framed(10, 128)
    batches = EvaluationBatches(rows, MASKED, 10)
    ((first, _),), ((second, _),) = list(batches), list(batches)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.positions, second.positions)
    assert not torch.equal(first.positions, MASKED.batch(rows, 0, Purpose.MASK, np.arange(10)).positions)


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [1, 5, 10, 13])
def test_evaluation_of_several_processes_counts_every_row_once(processes: int, count: int) -> None:
    rows = framed(count, 32)
    shares = [list(EvaluationBatches(rows, MASKED, 6, rank, processes)) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1  # a model in shards needs all of them in each
    counted = [batch.targets for turn in zip(*shares, strict=True) for batch, n in turn if n]
    ((whole, _),) = list(EvaluationBatches(rows, MASKED, count))
    assert torch.equal(torch.cat(counted), whole.targets)
    assert all(n in (0, len(batch.targets)) for share in shares for batch, n in share)


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_share_a_micro_step_row_by_row(processes: int) -> None:
    rows = framed(20, 32)
    whole = TrainingBatches(rows, MASKED, 3, 12, 6)
    shares = [TrainingBatches(rows, MASKED, 3, 12, 6, rank=rank, processes=processes) for rank in range(processes)]
    for step, part in [(0, 0), (0, 1), (4, 1)]:
        parts = [share.micro_batch(step, part) for share in shares]
        assert torch.equal(torch.cat([p.tokens for p in parts]), whole.micro_batch(step, part).tokens)
        assert torch.equal(torch.cat([p.targets for p in parts]), whole.micro_batch(step, part).targets)
        assert all(np.array_equal(share.row_numbers(step, part), whole.row_numbers(step, part)) for share in shares)


INSIDE = np.zeros(VOCABULARY, dtype=bool)
INSIDE[500:] = True  # half of the entries go on with a word
WORDS = MaskedTokens(0.15, MASK_ID, VOCABULARY, INSIDE)


def words_of(row: np.ndarray) -> list[list[int]]:
    """The columns of each word of a framed row."""
    words: list[list[int]] = []
    for column in range(1, len(row) - 1):
        if column > 1 and INSIDE[row[column]]:
            words[-1].append(column)
        else:
            words.append([column])
    return words


def test_whole_words_are_masked_but_for_one_a_row() -> None:
    rows = framed(400, 128)
    batch = WORDS.batch(rows, 0, Purpose.MASK, np.arange(400))
    columns = masks(batch)
    assert columns.shape == (400, 19)
    cut = 0
    for row, masked in zip(rows, columns.tolist(), strict=True):
        assert masked == sorted(set(masked))
        broken = [word for word in words_of(row) if 0 < len(set(word) & set(masked)) < len(word)]
        assert len(broken) <= 1
        cut += len(broken)
    assert cut < 40  # only where no word is short enough for the rest


def test_whole_words_are_replaced_80_10_10_and_masked_everywhere_alike() -> None:
    rows = framed(2000, 128)
    batch = WORDS.batch(rows, 1, Purpose.MASK, np.arange(2000))
    inputs, targets = batch.tokens.flatten()[batch.positions].numpy(), batch.targets.numpy()
    assert np.mean(inputs == MASK_ID) == pytest.approx(0.8, abs=0.01)
    assert np.mean(inputs == targets) == pytest.approx(0.1, abs=0.01)
    counts = np.bincount(masks(batch).ravel(), minlength=128)
    assert counts[[0, -1]].sum() == 0
    expected = 2000 * 19 / 126
    assert np.abs(counts[5:-5] - expected).max() < 7 * expected**0.5  # tokens of a word come together


def test_long_words_are_masked_as_often_as_short_ones() -> None:
    """But for those that are too long for what is left: a bias towards the short, of a few percent."""
    rows = framed(3000, 128)
    columns = masks(WORDS.batch(rows, 2, Purpose.MASK, np.arange(3000)))
    there, masked = np.zeros(5), np.zeros(5)
    for row, chosen in zip(rows, columns.tolist(), strict=True):
        for word in words_of(row):
            if len(word) < 5:
                there[len(word)] += 1
                masked[len(word)] += set(word) <= set(chosen)
    rates = masked[1:] / there[1:]
    assert np.abs(rates - 0.15).max() < 0.03


def test_a_word_that_fills_the_row_gives_as_many_tokens_as_are_needed() -> None:
    rows = np.full((1, 64), 700, dtype=np.uint16)
    assert masks(WORDS.batch(rows, 0, Purpose.MASK, np.arange(1)))[0].tolist() == list(range(1, 10))


def test_masks_of_whole_words_depend_on_the_sample_alone() -> None:
    rows = framed(10, 64)
    whole = masks(WORDS.batch(rows, 3, Purpose.EVALUATION_MASK, np.arange(10)))
    split = [masks(batch) for batch, _ in EvaluationBatches(rows, WORDS, 3)]
    assert np.array_equal(np.concatenate(split), masks(next(iter(EvaluationBatches(rows, WORDS, 10)))[0]))
    assert np.array_equal(whole, masks(WORDS.batch(rows, 3, Purpose.EVALUATION_MASK, np.arange(10))))
