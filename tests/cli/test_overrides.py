import shlex

import pytest

from apollo_cli.cli.arguments import CommandLine
from apollo_cli.cli.help import page
from apollo_cli.cli.overrides import prepare
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.errors import ConfigError

EXAMPLES = [line.split("apollo-train", 1)[1] for line in page().splitlines() if line.startswith("  apollo-train")]


def checked(*words: str) -> CommandLine:
    line = CommandLine.parse(words)
    prepare(line)
    return line


def refused(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        checked(*words)
    return error.value.problems


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_help_page_are_valid(example: str) -> None:
    words = shlex.split(example)
    typed = [word for word in words if word != "-m"]
    assert checked(*words).overrides[: len(typed)] == typed


@pytest.mark.parametrize(
    "words",
    [
        "",
        "model=bert sampler=lvps sampler.k=2",
        "experiment=scratch_bert seed=3",
        "schedule.layers=[2,12] schedule.ends=[0.5,1]",
        "data=text data.files=[a.txt,b.txt]",
        "resume=null",
        "hydra.run.dir=elsewhere",
        "data.tokenizer=bytes model=gpt data.vocab_size=257",
        "seed=1 seed=2",
    ],
)
def test_what_means_something_is_taken_as_it_is(words: str) -> None:
    typed = shlex.split(words)
    assert checked(*typed).overrides == typed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("smapler=lvps", ["smapler: no such key or group", "did you mean sampler?"]),
        (
            "sampler=lvp",
            [
                "sampler=lvp: no such option",
                "did you mean lvps?",
                "edge, full, lvps, prefixes, shallow, subset, uniform",
            ],
        ),
        ("sampler.kk=2", ["sampler.kk: no such key", "did you mean sampler.k?"]),
        ("budget.step=5", ["budget.step: no such key", "did you mean budget.steps?"]),
        (
            "sampler=uniform sampler.k=2",
            ["sampler.k", "a chosen sampler has no such key", "sampler=lvps"],
        ),
        ("expander=stack expander.mode=linear", ["expander.mode", "expander=interpolate"]),
        ("foo", ["foo: not understood", "KEY=VALUE"]),
        ("schedule.layers=[1,3", ["schedule.layers=[1,3: not understood", "'KEY=[1,2]' in quotes"]),
        ("+foo=1", ["foo: no such key"]),
        ("seed=0,1", ["seed=0,1", "a sweep", "-m"]),
        ("sampler=lvps,uniform", ["sampler=lvps,uniform", "a sweep", "-m"]),
        ("seed=abc", ["seed=abc", "integer"]),
        ("model=null", ["model=None: no such option", "bert, gpt"]),
        ("seed=${oc.env:HOME}", ["seed=${oc.env:HOME}: only ${KEY}", "write the value itself"]),
        ("hydra.nothing=1", ["hydra.nothing: it may not be set", "hydra.run.dir"]),
        ("hydra/launcher=1", ["hydra/launcher=1: should be the name"]),
        ("hydra/launcher=none", ["hydra/launcher"]),
        ("hydra.launcher=null", ["hydra.launcher"]),
        (
            "data.tokenizer=bytes data.vocab_size=300",
            ["data.vocab_size=300", "bytes has 261 entries for model=bert", "leave data.vocab_size out"],
        ),
        ("sampler=[lvps]", ["sampler", "lvps"]),
        ("experiment=ablation/k", ["experiment=ablation/k: it is a sweep; add -m"]),
        ("budget={tokens:5}", ["budget"]),
    ],
)
def test_what_means_nothing_is_refused_with_what_is_near(words: str, says: list[str]) -> None:
    (problem,) = refused(*words.split())
    assert all(part in problem for part in says), problem


def test_all_problems_of_a_command_line_come_in_one_message() -> None:
    problems = refused("foo", "smapler=lvps", "sampler=lvp", "optim.lrr=1", "seed=abc", "batch.micro=5")
    assert len(problems) == 6
    for words in ("foo: ", "smapler: ", "sampler=lvp: ", "optim.lrr: ", "seed=abc: ", "batch.micro=5 "):
        assert sum(problem.startswith(words) for problem in problems) == 1, words


@pytest.mark.parametrize("typed", ["tokens=1e8", "flops=1e15", "seconds=60", "steps=50"])
def test_a_budget_that_is_typed_replaces_the_default(typed: str) -> None:
    line = checked(f"budget.{typed}", "seed=1")
    key = typed.partition("=")[0]
    assert line.overrides[:2] == [f"budget.{typed}", "seed=1"]
    assert sorted(line.overrides[2:]) == sorted(
        f"budget.{other}=null" for other in ("steps", "tokens", "flops", "seconds") if other != key
    )
    budget = compose_values(line.overrides)["budget"]
    assert [name for name, value in budget.items() if value is not None] == [key]


def test_a_budget_that_is_typed_replaces_that_of_an_experiment() -> None:
    line = checked("experiment=paper/bert_base", "budget.seconds=60")
    assert compose_values(line.overrides)["budget"] == {"steps": None, "tokens": None, "flops": None, "seconds": 60}


def test_a_budget_in_a_sweep_replaces_the_default() -> None:
    assert "budget.steps=null" in checked("-m", "budget.tokens=1e6,1e7").overrides


@pytest.mark.parametrize("words", ["budget.tokens=1e8 budget.flops=1e15", "budget.steps=10 budget.seconds=5"])
def test_two_typed_budgets_are_refused_by_name(words: str) -> None:
    (problem,) = refused(*words.split())
    assert "exactly one budget" in problem
    assert all(word.partition("=")[0] in problem for word in words.split())


def test_no_budget_is_refused() -> None:
    (problem,) = refused("budget.steps=null")
    assert "exactly one budget" in problem


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("-m model=bert,gpt model.mask_fraction=0.2", ["model.mask_fraction", "a chosen model", "model=bert"]),
        ("-m sampler=lvps,uniform sampler.k=2", ["sampler.k", "a chosen sampler", "sampler=lvps"]),
        ("-m seed=0,1 sampler.k=-1", ["sampler.k=-1"]),
        ("-m data.vocab_size=300,400 data.tokenizer=bytes", ["data.vocab_size=300,400", "bytes has 261"]),
    ],
)
def test_a_sweep_in_which_every_cell_would_fail_is_refused(words: str, says: list[str]) -> None:
    (problem,) = refused(*words.split())
    for part in says:
        assert part in problem


@pytest.mark.parametrize(
    "words",
    [
        "-m seed=0,1 model=bert,gpt model.dropout=0.1",
        "-m sampler=lvps,edge sampler.lower=0.5",
        "-m experiment=apollo_bert,scratch_bert seed=range(3)",
        "-m sampler=glob(*)",
        "-m sampler.k=1,-1",
        "-m data.tokenizer=auto,bytes data.vocab_size=500",
    ],
)
def test_a_sweep_is_checked_by_name_only(words: str) -> None:
    assert checked(*words.split()).overrides == words.split()[1:]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("-m sampler=lvps,uniform sampler.kk=2", "sampler.kk"),
        ("-m sampler=lvps,unifrm", "sampler=unifrm: no such option; did you mean uniform?"),
        ("-m sede=0,1", "sede: no such key or group; did you mean seed?"),
        ("-m experiment=ablation/k,stackbert", "experiment=ablation/k: it is a sweep itself"),
        ("-m experiment=glob(a*)", "experiment=ablation/expander: it is a sweep itself"),
        ("-m experiment=ablation/k sampler=uniform", "sampler.k: a chosen sampler has no such key"),
        ("-m experiment=ablation/k data.vocab_size=300", "data.vocab_size=300: data.tokenizer=bytes has 261"),
    ],
)
def test_a_sweep_with_a_wrong_name_is_refused(words: str, says: str) -> None:
    (problem,) = refused(*words.split())
    assert says in problem
