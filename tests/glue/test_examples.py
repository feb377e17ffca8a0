from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from apollo_cli.errors import DataError
from apollo_cli.glue import examples
from apollo_cli.glue.examples import note_on_rows, read_examples
from apollo_cli.glue.tasks import TASKS, GlueTask
from tests.helpers.made_glue import ROWS


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_file_of_every_task_is_read(task: GlueTask, glue_dir: Path) -> None:
    for split in (task.splits.train, *task.splits.dev, *task.splits.test):
        part = split.name.partition("_")[0]
        found = read_examples(task, split, glue_dir)
        assert len(found.texts) == ROWS[part]
        assert {len(row) for row in found.texts} == {len(task.columns)}
        assert found.indices == [str(i) for i in range(ROWS[part])]
        assert found.left_out == 0
        expected = [i % (len(task.labels) or 6) for i in range(ROWS[part])] if part != "test" else []
        assert found.labels.tolist() == expected
        assert found.texts[1][0].startswith('"')
        assert found.texts[1][0].endswith("it's")


def _file(folder: Path, title: str, name: str, data: bytes) -> Path:
    (folder / title).mkdir(exist_ok=True)
    (folder / title / name).write_bytes(data)
    return folder


def test_any_line_ending_is_read_and_quotes_are_kept(tmp_path: Path) -> None:
    _file(tmp_path, "SST-2", "train.tsv", b'sentence\tlabel\r\n"a \xe2\x80\xa8 b" \t1\r\n it\x0c\'s\t0\r\n\r\n')
    found = read_examples(TASKS["sst2"], TASKS["sst2"].splits.train, tmp_path)
    assert found.texts == [('"a \u2028 b" ',), (" it\x0c's",)]
    assert found.labels.tolist() == [1, 0]


def test_rows_that_miss_a_field_or_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    rows = "0\t1\t2\tA?\tB?\t1\n1\t3\t4\tonly one\n2\t5\t6\tC?\tD?\t\n3\t7\t8\tE?\tF?\t0\n"
    _file(tmp_path, "QQP", "train.tsv", (head + rows).encode())
    found = read_examples(TASKS["qqp"], TASKS["qqp"].splits.train, tmp_path)
    assert found.texts == [("A?", "B?"), ("E?", "F?")]
    assert found.labels.tolist() == [1, 0]
    assert found.left_out == 2
    note = note_on_rows(TASKS["qqp"], TASKS["qqp"].splits.train, found)
    assert note == (
        "note: QQP train has 2 of the 363,846 published rows "
        "and is without 2 rows that lacked a sentence or a label"
    )


def test_mnli_rows_without_a_gold_label_are_left_out(tmp_path: Path) -> None:
    text = "sentence1\tsentence2\tlabel1\tlabel2\tgold_label\na\tb\tneutral\tentailment\t-\nc\td\tx\tx\tneutral\n"
    _file(tmp_path, "MNLI", "dev_matched.tsv", text.encode())
    found = read_examples(TASKS["mnli"], TASKS["mnli"].splits.dev[0], tmp_path)
    assert (found.texts, found.labels.tolist(), found.left_out) == ([("c", "d")], [1], 1)


def test_similarities_are_numbers(tmp_path: Path) -> None:
    _file(tmp_path, "STS-B", "dev.tsv", b"sentence1\tsentence2\tscore\na\tb\t4.750\n")
    found = read_examples(TASKS["stsb"], TASKS["stsb"].splits.dev[0], tmp_path)
    assert found.labels.dtype == np.float32
    assert found.labels.tolist() == [4.75]


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        (
            "sst2",
            b"sentence\tlabel\nfine\t1\nodd\t2\n",
            "SST-2/train.tsv, line 3: the label '2' should be one of 0, 1",
        ),
        (
            "stsb",
            b"sentence1\tsentence2\tscore\na\tb\t5.1\n",
            "line 2: the score '5.1' should be a number",
        ),
        ("stsb", b"sentence1\tsentence2\tscore\na\tb\thigh\n", "line 2: the score 'high' should be a number from"),
        (
            "rte",
            b"index\tsentence1\tlabel\n0\ta\tentailment\n",
            r"no column 'sentence2' \(it has: index, ",
        ),
        ("rte", b"", r"no column 'sentence1', 'sentence2', 'label' \(it has: none\)"),
        ("rte", b"sentence1\tsentence2\tlabel\n", "RTE/train.tsv: no row with a label is in it"),
        ("cola", b"gj04\t1\t\t\xff\n", "CoLA/train.tsv: not UTF-8 at byte 8"),
    ],
)
def test_invalid_files_are_refused_with_the_line(task: str, data: bytes, message: str, tmp_path: Path) -> None:
    _file(tmp_path, TASKS[task].title, "train.tsv", data)
    with pytest.raises(DataError, match=message):
        read_examples(TASKS[task], TASKS[task].splits.train, tmp_path)


def test_a_missing_file_is_refused_with_the_folder_to_give(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"WNLI: .*/train.tsv cannot .*glue.data_dir must be a folder .* WNLI/train"
    ):
        read_examples(TASKS["wnli"], TASKS["wnli"].splits.train, tmp_path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the hub's layout in the place of the data set there."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(examples, "HUB", str(folder))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return folder


def _publish(folder: Path, name: str, **splits: dict[str, Any]) -> None:
    from datasets import Dataset

    files = []
    for split, columns in splits.items():
        path = folder / name / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns).to_parquet(path)
        files.append({"split": split, "path": f"{name}/{split}.parquet"})
    card = yaml.safe_dump({"configs": [{"config_name": name, "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")


def test_the_hub_has_numbers_for_labels_and_other_columns(hub: Path) -> None:
    sides = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0], "idx": [0, 1]}
    tests = {"premise": ["e"], "hypothesis": ["f"], "label": [-1], "idx": [7]}
    _publish(hub, "mnli", validation_matched=sides, test_matched=tests)
    found = read_examples(TASKS["mnli"], TASKS["mnli"].splits.dev[0], None)
    assert found.texts == [("a", "c"), ("b", "d")]
    assert [TASKS["mnli"].labels[i] for i in found.labels] == ["contradiction", "entailment"]
    found = read_examples(TASKS["mnli"], TASKS["mnli"].splits.test[0], None)
    assert (found.texts, found.indices, found.labels.tolist()) == ([("e", "f")], ["7"], [])


def test_a_hub_without_the_columns_is_refused(hub: Path) -> None:
    _publish(hub, "cola", train={"text": ["a"], "label": [1]})
    with pytest.raises(DataError, match=r"cola: no column sentence \(it has: text, label\)"):
        read_examples(TASKS["cola"], TASKS["cola"].splits.train, None)


def test_without_a_way_to_the_hub_the_original_files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(examples, "HUB", "nobody/nothing")
    with pytest.raises(DataError, match=r"or type glue\.data_dir=DIR, .* CoLA/train\.tsv among them"):
        read_examples(TASKS["cola"], TASKS["cola"].splits.train, None)


def test_the_fingerprint_is_of_texts_and_labels(glue_dir: Path) -> None:
    task = TASKS["rte"]
    first, again, other = (
        read_examples(task, split, glue_dir) for split in (task.splits.train, task.splits.train, task.splits.dev[0])
    )
    assert first.fingerprint == again.fingerprint != other.fingerprint
