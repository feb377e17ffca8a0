"""Rows that are taken once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apollo_cli.models.rows import take_rows


@given(st.integers(1, 9), st.data())
def test_rows_and_gradients_are_those_of_indexing(rows: int, data: st.DataObject) -> None:
    taken = data.draw(st.lists(st.integers(0, rows - 1), unique=True))
    random = torch.Generator().manual_seed(rows)
    values, upstream = torch.randn(rows, 3, generator=random), torch.randn(len(taken), 3, generator=random)
    tables = [values.clone().requires_grad_() for _ in range(2)]
    indices = torch.tensor(taken, dtype=torch.int64)
    ours, theirs = take_rows(tables[0], indices), tables[1][indices]
    assert torch.equal(ours, theirs)
    ours.backward(upstream)
    theirs.backward(upstream)
    assert tables[0].grad is not None
    assert tables[1].grad is not None
    assert torch.equal(tables[0].grad, tables[1].grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_gradients_have_the_type_of_the_rows(dtype: torch.dtype) -> None:
    table = torch.ones(4, 2, dtype=dtype, requires_grad=True)
    take_rows(table, torch.tensor([3, 1])).sum().backward()
    assert table.grad is not None
    assert table.grad.dtype == dtype
    assert table.grad.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]
