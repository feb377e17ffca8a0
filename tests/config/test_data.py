from typing import Any

import pytest
import yaml

from apollo_cli.config.config import parse
from apollo_cli.config.hydra_syntax import compose_values
from tests.helpers.config_values import changed, problems_of, refuses


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data.seq_len": 3}, ["data.seq_len=3", "greater than or equal to 4"]),
        ({"data.validation": 1}, ["data.validation=1", "less than or equal to 0.5"]),
        ({"data.vocab_size": True}, ["data.vocab_size=true", "integer"]),
    ],
)
def test_an_invalid_value_is_refused_with_key_value_and_remedy(
    composed: dict[str, Any], changes: dict[str, Any], says: list[str]
) -> None:
    refuses(composed, changes, says)


def test_a_dataset_of_the_hub_is_chosen_by_its_name_alone() -> None:
    data = parse(compose_values(["data=hub", "data.path=somebody/something"])).data
    assert (data.path, data.name) == (("somebody/something",), (None,))  # type: ignore[attr-defined]


def test_two_datasets_need_two_configurations() -> None:
    values = compose_values(["data=wiki_books"])
    (problem,) = problems_of(changed(values, {"data.name": ["20231101.en"]}))
    assert "data.path has 2" in problem
    assert "data.name 1" in problem


def test_a_revision_is_one_for_each_dataset_or_none() -> None:
    words = ["data=hub", "data.path=[a,b]", "data.name=[null,null]"]
    assert parse(compose_values(words)).data.revision == (None,)  # type: ignore[attr-defined]
    pinned = compose_values([*words, "data.revision=[v1,null]"])
    assert parse(pinned).data.revision == ("v1", None)  # type: ignore[attr-defined]
    (problem,) = problems_of(changed(pinned, {"data.revision": "v1"}))
    assert "data.path has 2 entries and data.revision 1" in problem


def test_a_folder_in_the_home_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    data = parse(compose_values(["data=hub", "data.path='~/corpora/mine'"])).data
    assert data.path == ("/home/somebody/corpora/mine",)  # type: ignore[attr-defined]


def test_one_file_needs_no_list() -> None:
    assert parse(compose_values(["data=text", "data.files=a.txt"])).data.files == ("a.txt",)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("model", "entries"), [("bert", 261), ("gpt", 257)])
def test_the_tokenizer_of_bytes_decides_the_vocabulary(model: str, entries: int) -> None:
    config = parse(compose_values(["data.tokenizer=bytes", f"model={model}", "size=base"]))
    assert config.data.vocab_size == config.model_config.vocabulary == config.raw["data"]["vocab_size"] == entries
    assert parse(config.raw) == config


A, B = {"kind": "text", "files": "a.txt"}, {"kind": "hub", "path": "x/y"}


def test_a_source_of_a_mixture_gets_missing_keys_from_beside_sources() -> None:
    values = compose_values(["data=mixture", "data.document=line", "data.split=test"])
    config = parse(
        changed(values, {"data.sources": [A | {"weight": 2}, A | {"weight": 1}, B | {"weight": 1, "split": "own"}]})
    )
    first, _, second = config.data.sources  # type: ignore[attr-defined]
    assert (first.files, first.document, first.weight) == (("a.txt",), "line", 2)
    assert (second.path, second.name, second.split, second.streaming) == (("x/y",), (None,), "own", False)
    written = yaml.safe_dump(config.raw)
    assert "&id" not in written
    assert parse(yaml.safe_load(written)) == config


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ([5], ["data.sources[0]=5", "dictionary"]),
        ([{"files": "a"}], ["data.sources[0].kind=null: should be one of pydocs, text, hub"]),
        ([{"kind": "txt"}], ["data.sources[0].kind=txt", "pydocs, text, hub"]),
        (
            [{"kind": "text", "file": "a"}],
            ["data.sources[0].file: no such key; did you mean data.sources[0].files?"],
        ),
        ([{"kind": "text"}], ["data.sources[0].files: missing"]),
        ([A | {"document": "lines"}], ["data.sources[0].document=lines", "did you mean line?"]),
        ([A | {"weight": 0}], ["data.sources[0].weight=0", "greater than 0"]),
        ([A | {"weight": 1}, B | {"weight": 20000}], ["a weight of 1.0 is under 0.01 % of all"]),
        ([A | {"weight": 1}, B], ["some have a weight and some have none"]),
        ([A, B | {"streaming": True}], ["a streamed source has no known size"]),
        ([A | {"validation_files": ["v"]}, B], ["validation_files or validation_split", "for all, or for none"]),
        ([B | {"path": ["a", "b"]}], ["data.sources[0].path has 2 entries and data.sources[0].name 1"]),
    ],
)
def test_a_problem_of_a_source_names_its_index(sources: list[Any], says: list[str]) -> None:
    found = problems_of(changed(compose_values(["data=mixture"]), {"data.sources": sources}))
    assert any(all(text in problem for text in says) for problem in found), found


def test_several_datasets_are_not_streamed_one_after_another() -> None:
    values = compose_values(["data=hub", "data.path=[a,b]", "data.name=[null,null]", "data.streaming=true"])
    assert "type data=mixture" in problems_of(values)[0]
