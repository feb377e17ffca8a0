import json
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from apollo_cli.data import packer
from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.corpus import Corpus, Recipe, load_corpus
from apollo_cli.data.hub import Hub
from apollo_cli.data.mixture import Mixture
from apollo_cli.data.sources import Part, Source, TextFiles
from apollo_cli.errors import DataError

ENTRIES = {"bert": 200, "gpt": 300}
SEQ_LEN = 16
PAD, UNK, CLS, SEP, MASK = range(5)  # of the tokenizers trained here
EOS = 0


@dataclass
class Memory(Source):
    texts: list[str]
    reads: int = 0
    broken_after: int | None = None

    def documents(self) -> Iterator[str]:
        self.reads += 1
        for i, text in enumerate(self.texts):
            if i == self.broken_after:
                raise KeyboardInterrupt
            yield text

    def identity(self) -> dict[str, Any]:
        return {"texts": self.texts}


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="session")
def tokenizer_files(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tokenizer.json of each kind."""
    files = {}
    for kind, entries in ENTRIES.items():
        files[kind] = tmp_path_factory.mktemp(kind) / "tokenizer.json"
        tokenizers.train_tokenizer(kind, entries, documents).save(str(files[kind]))
    return files


@pytest.fixture
def recipes(tokenizer_files: dict[str, Path]) -> dict[str, Recipe]:
    return {kind: Recipe(kind, str(tokenizer_files[kind]), ENTRIES[kind], SEQ_LEN, 0.1) for kind in ENTRIES}


def pack(texts: list[str], recipe: Recipe, cache: Path) -> Corpus:
    return load_corpus(Memory(texts), recipe, cache, silent)


def stream(kind: str, rows: np.ndarray) -> list[int]:
    """The tokens of rows, the frames of BERT taken off."""
    return (rows[:, 1:-1] if kind == "bert" else rows).ravel().tolist()


def tokens_of(kind: str, tokenizer: Tokenizer, text: str) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if kind == "bert":
        return ids
    end = tokenizer.token_to_id("<|endoftext|>")
    assert end is not None
    return [*ids, end]


def left_over(cache: Path) -> int:
    (facts,) = cache.glob("*/corpus.json")
    return json.loads(facts.read_text(encoding="utf-8"))["packed"]["left_over"]


def rebuild(kind: str, corpus: Corpus, texts: list[str], tokenizer: Tokenizer) -> tuple[list[str], list[str], int]:
    """The documents of either part, each found whole and in order in its rows, and the tokens left over."""
    streams = [stream(kind, corpus.training), stream(kind, corpus.validation)]
    places = [0, 0]
    found: tuple[list[str], list[str]] = ([], [])
    for text in texts:
        ids = tokens_of(kind, tokenizer, text)
        parts = [p for p in (0, 1) if streams[p][places[p] : places[p] + len(ids)] == ids]
        if not parts:  # the last of its part: only its beginning fills rows
            parts = [p for p in (0, 1) if ids[: len(streams[p]) - places[p]] == streams[p][places[p] :]]
        assert parts, f"{text!r} is in neither part"
        places[parts[0]] += len(ids)
        found[parts[0]].append(text)
    return found[0], found[1], sum(places) - sum(map(len, streams))


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_every_token_is_packed_once_and_in_order_but_for_a_counted_tail(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path, kind: str
) -> None:
    corpus = pack(documents, recipes[kind], tmp_path)
    training, validation, rest = rebuild(kind, corpus, documents, Tokenizer.from_file(recipes[kind].tokenizer))
    assert len(training) + len(validation) == len(documents)
    assert 0.04 < len(validation) / len(documents) < 0.2
    assert rest == left_over(tmp_path)
    assert 0 <= rest < 2 * SEQ_LEN


def test_bert_rows_are_framed_and_hold_no_other_special_token(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    corpus = pack(documents, recipes["bert"], tmp_path)
    for rows in (corpus.training, corpus.validation):
        assert rows.shape[1] == SEQ_LEN
        assert (rows[:, 0] == CLS).all()
        assert (rows[:, -1] == SEP).all()
        assert not np.isin(rows[:, 1:-1], [PAD, CLS, SEP, MASK]).any()


def test_gpt_documents_are_separated_by_end_of_text(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    corpus = pack(documents, recipes["gpt"], tmp_path)
    for rows in (corpus.training, corpus.validation):
        texts = corpus.tokenizer.decode(rows.ravel().tolist(), skip_special_tokens=False).split("<|endoftext|>")
        assert len(texts) > 10
        assert set(texts[:-1]) <= set(documents)
        assert texts[-1] == "" or any(text.startswith(texts[-1]) for text in documents)


def test_the_name_of_a_special_token_in_a_text_is_text(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    texts = [f"{text} [CLS] [SEP] [MASK] [PAD] <|endoftext|> {text}" for text in documents]
    bert = pack(texts, recipes["bert"], tmp_path / "bert")
    assert not np.isin(bert.training[:, 1:-1], [PAD, CLS, SEP, MASK]).any()
    gpt = pack(texts, recipes["gpt"], tmp_path / "gpt")
    pieces = "".join(map(chr, gpt.training.ravel().tolist())).split(chr(EOS))
    assert {gpt.tokenizer.decode(list(map(ord, piece))) for piece in pieces[:-1]} <= set(texts)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_tokenizer_that_cuts_and_pads_does_not_cut_or_pad_the_corpus(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path, kind: str
) -> None:
    whole = Tokenizer.from_file(recipes[kind].tokenizer)
    cutting = Tokenizer.from_file(recipes[kind].tokenizer)
    cutting.enable_truncation(8)
    cutting.enable_padding(length=8)
    cutting.save(str(tmp_path / "tokenizer.json"))
    recipe = replace(recipes[kind], tokenizer=str(tmp_path / "tokenizer.json"))
    corpus = pack(documents, recipe, tmp_path / "cache")
    packed = (
        len(stream(kind, corpus.training)) + len(stream(kind, corpus.validation)) + left_over(tmp_path / "cache")
    )
    assert packed == sum(len(tokens_of(kind, whole, text)) for text in documents)


def test_duplicates_never_cross_from_training_to_validation(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    texts = documents[:100] * 5
    random.Random(0).shuffle(texts)
    corpus = pack(texts, recipes["gpt"], tmp_path)
    parts = [
        set(corpus.tokenizer.decode(rows.ravel().tolist(), skip_special_tokens=False).split("<|endoftext|>")[:-1])
        for rows in (corpus.training, corpus.validation)
    ]
    assert all(len(part) > 3 for part in parts)
    assert parts[0].isdisjoint(parts[1])


def test_a_document_stays_in_its_part_when_others_come(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_file(recipes["gpt"].tokenizer)
    few, many = documents[:150], documents[::-1]
    training, validation, _ = rebuild("gpt", pack(few, recipes["gpt"], tmp_path / "few"), few, tokenizer)
    more_training, more_validation, _ = rebuild(
        "gpt", pack(many, recipes["gpt"], tmp_path / "many"), many, tokenizer
    )
    assert set(training) <= set(more_training)
    assert set(validation) <= set(more_validation)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_corpus_of_one_document_holds_out_its_tail(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path, kind: str
) -> None:
    text = " ".join(documents)
    corpus = pack([text], recipes[kind], tmp_path)
    tokens = tokens_of(kind, Tokenizer.from_file(recipes[kind].tokenizer), text)
    packed = stream(kind, corpus.training) + stream(kind, corpus.validation)
    assert packed == tokens[: len(packed)]
    assert len(tokens) - len(packed) == left_over(tmp_path) < SEQ_LEN
    rows = len(corpus.training) + len(corpus.validation)
    assert len(corpus.validation) == pytest.approx(0.1 * rows, abs=1)


def test_every_corpus_of_one_document_is_enough(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    for i in range(40):
        corpus = pack([" ".join(documents[i : i + 20])], recipes["gpt"], tmp_path)
        assert len(corpus.training) > len(corpus.validation) > 0


@pytest.mark.parametrize("texts", [[], [""], ["one"], ["one two three", "four five"]])
@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_corpus_of_less_than_two_rows_is_refused(
    recipes: dict[str, Recipe], tmp_path: Path, kind: str, texts: list[str]
) -> None:
    recipe = replace(recipes[kind], seq_len=64)
    with pytest.raises(DataError, match=r"corpus is too small.*data\.seq_len=64.*Give more text or a smaller"):
        pack(texts, recipe, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".lock", ".TAG")]


@pytest.mark.parametrize(("tokens", "enough"), [(2 * SEQ_LEN - 1, False), (2 * SEQ_LEN, True), (3 * SEQ_LEN, True)])
def test_two_rows_are_the_least(recipes: dict[str, Recipe], tmp_path: Path, tokens: int, enough: bool) -> None:
    text = "!" * (tokens - 1)  # of one token each; the last of all is end-of-text
    assert len(tokens_of("gpt", Tokenizer.from_file(recipes["gpt"].tokenizer), text)) == tokens
    if enough:
        corpus = pack([text], recipes["gpt"], tmp_path)
        assert (len(corpus.training), len(corpus.validation)) == (tokens // SEQ_LEN - 1, 1)
    else:
        with pytest.raises(DataError, match="too small: the corpus fills 1 rows"):
            pack([text], recipes["gpt"], tmp_path)


@pytest.mark.parametrize(("entries", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_a_token_takes_two_bytes_where_the_vocabulary_allows(tmp_path: Path, entries: int, dtype: type) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {token: i for i, token in enumerate([*special, *(f"w{i}" for i in range(5, entries))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    numbers = np.random.default_rng(0).permutation(np.arange(5, entries))[: 14 * 20]
    numbers[7] = entries - 1
    recipe = Recipe("bert", str(tmp_path / "tokenizer.json"), entries, SEQ_LEN, 1e-9)
    corpus = pack([" ".join(f"w{number}" for number in numbers)], recipe, tmp_path / "cache")
    assert corpus.training.dtype == corpus.validation.dtype == dtype
    assert stream("bert", corpus.training) + stream("bert", corpus.validation) == numbers.tolist()
    (file,) = (tmp_path / "cache").glob("*/training.bin")
    assert file.stat().st_size == len(corpus.training) * SEQ_LEN * np.dtype(dtype).itemsize


def test_a_vocabulary_size_that_is_not_the_tokenizers_is_refused_with_the_right_one(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"data\.vocab_size=999: type data\.vocab_size=200$"):
        pack(documents, replace(recipes["bert"], vocabulary=999), tmp_path)


def test_a_tokenizer_whose_ids_do_not_fit_its_vocabulary_is_refused(tmp_path: Path) -> None:
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "one": 5, "two": 900}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    recipe = Recipe("bert", str(tmp_path / "tokenizer.json"), len(words), SEQ_LEN, 0.1)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        pack(["one two " * 200], recipe, tmp_path / "cache")


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_tokenizer_is_trained_when_asked(documents: list[str], tmp_path: Path, kind: str) -> None:
    corpus = pack(documents, Recipe(kind, "auto", ENTRIES[kind], SEQ_LEN, 0.1), tmp_path)
    assert corpus.tokenizer.get_vocab_size() == ENTRIES[kind]
    training, validation, rest = rebuild(kind, corpus, documents, corpus.tokenizer)
    assert len(training) + len(validation) == len(documents)
    assert rest == left_over(tmp_path)


@pytest.mark.parametrize("tokenizer", ["auto", "file"])
def test_a_cached_corpus_does_not_read_its_source(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path, tokenizer: str
) -> None:
    recipe = recipes["bert"] if tokenizer == "file" else replace(recipes["bert"], tokenizer="auto")
    source = Memory(documents)
    first = load_corpus(source, recipe, tmp_path, silent)
    reads = source.reads
    said: list[str] = []
    second = load_corpus(source, recipe, tmp_path, said.append)
    assert source.reads == reads > 0
    assert said == []
    assert np.array_equal(first.training, second.training)
    assert np.array_equal(first.validation, second.validation)
    assert first.fingerprint == second.fingerprint
    assert first.tokenizer.to_str() == second.tokenizer.to_str()


def test_rows_come_from_the_disk_and_cannot_be_changed(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    corpus = pack(documents, recipes["bert"], tmp_path)
    for rows in (corpus.training, corpus.validation):
        assert isinstance(rows, np.memmap)
        assert not rows.flags.writeable


def test_a_folder_named_bytes_changes_nothing(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(recipes["gpt"], tokenizer="bytes", vocabulary=257)
    first = pack(documents, recipe, tmp_path / "cache")
    (tmp_path / "bytes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert pack(documents, recipe, tmp_path / "cache").fingerprint == first.fingerprint
    text = first.tokenizer.decode(stream("gpt", first.training), skip_special_tokens=False)
    assert text.startswith(documents[0] + "<|endoftext|>")


@pytest.mark.parametrize(
    "change",
    [
        {"seq_len": 32},
        {"validation": 0.3},
        {"kind": "gpt", "tokenizer": "auto", "vocabulary": 300},
        {"tokenizer": "auto", "vocabulary": 201},
        {"tokenizer": "bytes", "vocabulary": 261},
    ],
)
def test_another_recipe_is_another_cached_corpus(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path, change: dict[str, Any]
) -> None:
    first = pack(documents, recipes["bert"], tmp_path)
    second = pack(documents, replace(recipes["bert"], **change), tmp_path)
    assert second.fingerprint != first.fingerprint
    assert len(list(tmp_path.glob("*/corpus.json"))) == 2


def test_another_source_is_another_cached_corpus(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    first = pack(documents, recipes["bert"], tmp_path)
    second = pack(documents[1:], recipes["bert"], tmp_path)
    assert first.fingerprint != second.fingerprint
    assert len(list(tmp_path.glob("*/corpus.json"))) == 2


def test_a_text_file_that_changed_is_packed_again(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    path = tmp_path / "corpus.txt"
    fingerprints = []
    for texts in (documents, documents[::-1][:-1]):
        path.write_text("\n\n".join(texts), encoding="utf-8")
        fingerprints.append(
            load_corpus(TextFiles((str(path),)), recipes["bert"], tmp_path / "c", silent).fingerprint
        )
    assert fingerprints[0] != fingerprints[1]


def unknown_share(known: int, unknown: int) -> list[str]:
    """Documents of which so many words are known to the tokenizer of `word_tokenizer`, and the others not."""
    rng = random.Random(0)
    words = ["one"] * known + ["other"] * unknown
    return [" ".join(rng.sample(words, len(words))) + f" {i}" for i in range(100)]


@pytest.fixture
def word_tokenizer(tmp_path: Path) -> Recipe:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {token: i for i, token in enumerate([*special, "one", *map(str, range(100))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return Recipe("bert", str(tmp_path / "tokenizer.json"), len(words), SEQ_LEN, 0.1)


@pytest.mark.parametrize(
    ("known", "unknown", "share"), [(50, 0, ""), (98, 1, "1.00%"), (94, 5, "5.00%"), (39, 60, "60.0%")]
)
def test_the_share_of_unknown_tokens_is_shown_warned_of_and_refused_above_half(
    word_tokenizer: Recipe, tmp_path: Path, known: int, unknown: int, share: str
) -> None:
    said: list[str] = []
    texts = unknown_share(known, unknown)
    if unknown > known:
        with pytest.raises(
            DataError, match=rf"{share} of all tokens are unknown.*for other text.*data\.tokenizer=bpe,"
        ):
            load_corpus(Memory(texts), word_tokenizer, tmp_path / "cache", said.append)
        assert not list((tmp_path / "cache").glob("*/*"))
        return
    packed = load_corpus(Memory(texts), word_tokenizer, tmp_path / "cache", said.append).packed
    assert packed.unknown == 100 * unknown
    assert any(f"{share} of all tokens are unknown" in line for line in said) == bool(unknown)
    assert any(line.startswith("warning: 5.0% of all tokens") for line in said) == (unknown == 5)


@pytest.mark.parametrize(("kind", "algorithm"), [("bert", "wordpiece"), ("bert", "unigram"), ("gpt", "bpe")])
def test_the_unknown_token_is_known(documents: list[str], kind: str, algorithm: str) -> None:
    tokenizer = tokenizers.train_tokenizer(kind, {"bert": 100, "gpt": 300}[kind], documents, algorithm=algorithm)
    assert tokenizers.unknown_id(tokenizer) == (UNK if kind == "bert" else -1)


def replace_by_other(path: Path) -> None:
    path.with_name("other").write_text("other words " * 500, encoding="utf-8")
    path.with_name("other").replace(path)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "appended to": lambda path: path.open("a").write("more\n\n"),
    "replaced": replace_by_other,
    "deleted": lambda path: path.unlink(),
    "cut inside of a letter": lambda path: path.write_bytes(path.read_bytes()[:5000] + b"\xc3"),
}


@pytest.mark.parametrize(
    ("moment", "change", "kind"),
    [  # fast: each change at each moment, of one kind
        pytest.param(moment, change, kind, marks=[] if (i + j + k) % 3 == 0 else pytest.mark.slow)
        for (i, moment), (j, change), (k, kind) in product(
            enumerate(["training a tokenizer", "tokenizing and packing"]),
            enumerate(CHANGES),
            enumerate(["files", "a mixture", "a dataset"]),
        )
    ],
)
def test_a_corpus_that_changes_while_it_is_packed_is_refused_by_name_and_not_kept(
    documents: list[str], tmp_path: Path, moment: str, change: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    for name in ("a.txt", "b.txt"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("\n\n".join(documents), encoding="utf-8")
    source: Source = TextFiles((str(tmp_path / "in/*.txt"),))
    if kind == "a mixture":
        source = Mixture(tuple(Part(TextFiles((str(tmp_path / "in" / name),)), 1.0) for name in ("a.txt", "b.txt")))
    elif kind == "a dataset":
        source = Hub((str(tmp_path / "in"),), (None,))

    def say(line: str) -> None:
        if line.startswith(moment):
            CHANGES[change](tmp_path / "in/b.txt")

    with pytest.raises(DataError, match=r"b\.txt") as error:
        load_corpus(source, Recipe("gpt", "auto", 300, SEQ_LEN, 0.1), tmp_path / "cache", say)
    assert ("changed while it was read" in str(error.value)) or change == "deleted"
    assert "a.txt" not in str(error.value)
    assert not list((tmp_path / "cache").glob("*/*"))


def test_a_tokenizer_file_that_changed_packs_again(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    shutil.copy(recipes["gpt"].tokenizer, path)
    recipe = replace(recipes["gpt"], tokenizer=str(path))
    pack(documents, recipe, tmp_path / "cache")
    other = tokenizers.train_tokenizer("gpt", ENTRIES["gpt"], [text[::-1] for text in documents])
    other.save(str(path))
    assert pack(documents, recipe, tmp_path / "cache").tokenizer.get_vocab() == other.get_vocab()


@pytest.mark.parametrize("kind", ["bert", "gpt"])
@pytest.mark.parametrize("tokenizer", ["auto", "file"])
def test_equal_content_has_an_equal_fingerprint(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path, kind: str, tokenizer: str
) -> None:
    recipe = recipes[kind] if tokenizer == "file" else replace(recipes[kind], tokenizer="auto")
    corpora = [pack(documents, recipe, tmp_path / name) for name in ("one", "two")]
    assert np.array_equal(corpora[0].training, corpora[1].training)
    assert corpora[0].fingerprint == corpora[1].fingerprint


def test_other_rows_have_another_fingerprint(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    first = pack(documents, recipes["bert"], tmp_path / "one")
    swapped = [documents[1], documents[0], *documents[2:]]
    assert pack(swapped, recipes["bert"], tmp_path / "two").fingerprint != first.fingerprint


def test_an_interrupted_build_leaves_no_corpus(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    whole = pack(documents, recipes["bert"], tmp_path / "other")
    source = Memory(documents, broken_after=200)
    with pytest.raises(KeyboardInterrupt):
        load_corpus(source, recipes["bert"], tmp_path / "cache", silent)
    assert not list((tmp_path / "cache").glob("*/*"))
    source.broken_after = None
    assert load_corpus(source, recipes["bert"], tmp_path / "cache", silent).fingerprint == whole.fingerprint


def test_files_of_a_killed_build_are_not_used(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    source = Memory(documents)
    whole = load_corpus(source, recipes["bert"], tmp_path, silent).fingerprint
    (folder,) = (path.parent for path in tmp_path.glob("*/corpus.json"))
    (folder / "training.bin").write_bytes(b"half a row")
    folder.rename(folder.with_suffix(".building"))
    assert load_corpus(source, recipes["bert"], tmp_path, silent).fingerprint == whole
    assert source.reads == 2
    assert not list(tmp_path.glob("*.building"))


def test_threads_at_once_build_once(documents: list[str], recipes: dict[str, Recipe], tmp_path: Path) -> None:
    source = Memory(documents)
    with ThreadPoolExecutor(4) as pool:
        corpora = list(pool.map(lambda _: load_corpus(source, recipes["bert"], tmp_path, silent), range(4)))
    assert source.reads == 1
    assert len({corpus.fingerprint for corpus in corpora}) == 1


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_long_document_gives_the_tokens_of_its_whole_text(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    texts = [" ".join(documents[i : i + 60]) for i in range(0, 300, 60)]
    whole = pack(texts, recipes[kind], tmp_path / "whole")
    monkeypatch.setattr(packer, "_LONGEST_PIECE", 100)
    monkeypatch.setattr(packer, "_CHARACTERS_AT_ONCE", 500)
    tokenized: list[list[str]] = []
    original = packer._batched

    def recorded(pieces: Any) -> Iterator[Any]:
        for batch in original(pieces):
            tokenized.append([piece.text for piece in batch])
            yield batch

    monkeypatch.setattr(packer, "_batched", recorded)
    cut = pack(texts, recipes[kind], tmp_path / "cut")
    assert len(tokenized) > 20
    assert all(len(text) <= 100 for batch in tokenized for text in batch)  # memory is bounded
    assert all(sum(map(len, batch)) < 600 for batch in tokenized)
    assert np.array_equal(cut.training, whole.training)
    assert np.array_equal(cut.validation, whole.validation)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_tokenizer_is_the_same_whether_it_was_trained_on_whole_documents_or_pieces(
    documents: list[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    text = ["\n".join(documents)]
    whole = tokenizers.train_tokenizer(kind, ENTRIES[kind], text)
    monkeypatch.setattr(tokenizers, "_LONGEST", 100)
    assert tokenizers.train_tokenizer(kind, ENTRIES[kind], text).to_str() == whole.to_str()


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_a_cache_that_cannot_be_written_is_refused_with_the_key(
    documents: list[str], recipes: dict[str, Recipe], tmp_path: Path, inside: str
) -> None:
    file = tmp_path / "cache"
    file.write_text("a file, not a folder", encoding="utf-8")
    with pytest.raises(DataError, match=rf"cannot be built in {file / inside}.*data\.cache_dir"):
        pack(documents, recipes["bert"], file / inside)


def test_a_source_that_cannot_be_read_is_refused_with_its_own_message(
    recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"one\n\xff\n")
    with pytest.raises(DataError, match="line 2, byte offset 4 of the file: 0xff is not UTF-8"):
        load_corpus(TextFiles((str(path),)), recipes["bert"], tmp_path / "cache", silent)
