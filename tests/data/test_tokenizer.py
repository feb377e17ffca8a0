import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import EntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertConfig, BertTokenizerFast, GPT2Config, GPT2TokenizerFast

from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.recipe import SPECIAL_TOKENS, byte_vocabulary
from apollo_cli.errors import DataError

BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
EOS = "<|endoftext|>"
ENTRIES = {"bert": 200, "gpt": 300}
LINES = [
    "The unaffable THING is walking, slowly.",
    "naïve Café ÀÉÎÕÜ straße",
    "日本語 and 한국어 and हिन्दी",
    "😀 👩‍👩‍👧 emoji",
    "1234567 3.14159 -1e-5 ½",
    "don't they've I'LL",
    "a" * 99,
    "a" * 100,
    "a" * 101,
    "the" * 80,
    "  two  spaces \t tab \n new line\u00a0no-break",
    "control \x00 \x07 \ufffd z\u0301 \u200d",
    "line\u2028separator\x85next",
    "a [MASK] b [SEP] [CLS] [UNK] [pad]",
    f"one{EOS}two <|x|>",
    "",
    "   ",
]


@pytest.fixture(scope="session")
def bert_vocabulary() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    whole = [*letters, *"!?.,'-[]<|>日本é", "the", "un", "is", "😀", "½"]
    inside = [f"##{piece}" for piece in [*letters, "日", "ing", "aff", "able", "ss"]]
    return [*BERT_SPECIAL, *whole, *inside]


@pytest.fixture
def vocab_txt(tmp_path: Path, bert_vocabulary: list[str]) -> Path:
    path = tmp_path / "wordpiece" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("".join(f"{token}\n" for token in bert_vocabulary), encoding="utf-8")
    return path


@pytest.fixture
def vocab_json(tmp_path: Path) -> Path:
    merges = ["t h", "th e", "Ġ the", "i n", "in g", "Ġ a", "a a", "1 2", "' t", "Ġ Ġ", "ð Ł"]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in merges), EOS]
    path = tmp_path / "bpe" / "vocab.json"
    path.parent.mkdir()
    path.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    path.with_name("merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(documents: list[str]) -> dict[str, Tokenizer]:
    return {kind: tokenizers.train_tokenizer(kind, entries, documents) for kind, entries in ENTRIES.items()}


@pytest.mark.parametrize(
    ("kind", "entries"), [("bert", 100), ("bert", 200), ("bert", 257), ("gpt", 258), ("gpt", 300), ("gpt", 401)]
)
def test_training_gives_exactly_the_vocabulary_asked_for(documents: list[str], kind: str, entries: int) -> None:
    vocabulary = tokenizers.train_tokenizer(kind, entries, documents).get_vocab(with_added_tokens=True)
    assert sorted(vocabulary.values()) == list(range(entries))


def test_special_tokens_have_the_first_ids(trained: dict[str, Tokenizer]) -> None:
    assert [trained["bert"].token_to_id(token) for token in BERT_SPECIAL] == [0, 1, 2, 3, 4]
    assert tokenizers.special_ids("bert", trained["bert"]) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert trained["gpt"].token_to_id(EOS) == 0
    assert tokenizers.special_ids("gpt", trained["gpt"]) == {"eos": 0}


@pytest.mark.parametrize("kind", ["bert", "gpt"])
@pytest.mark.parametrize(("entries", "reason"), [(100_000, "more than"), (20, "too small")])
def test_a_vocabulary_that_the_corpus_cannot_fill_is_refused_with_one_that_it_can(
    documents: list[str], kind: str, entries: int, reason: str
) -> None:
    with pytest.raises(DataError, match=rf"data\.vocab_size={entries} is {reason}") as error:
        tokenizers.train_tokenizer(kind, entries, documents)
    offer = re.search(r"Type data\.vocab_size=(\d+)", str(error.value))
    assert offer
    assert tokenizers.train_tokenizer(kind, int(offer[1]), documents).get_vocab_size() == int(offer[1])


def chinese(letters: int, documents: int = 300) -> list[str]:
    """Texts without spaces, of so many letters that are used more or less often."""
    rng = random.Random(0)
    weights = [1 / (i + 20) for i in range(letters)]
    used = [chr(0x4E00 + 7 * i) for i in range(letters)]
    return ["".join(rng.choices(used, weights, k=60)) for _ in range(documents)]


@pytest.mark.parametrize(
    ("kind", "algorithm"), [(k, a) for k, names in tokenizers.ALGORITHMS.items() for a in names]
)
@pytest.mark.parametrize(
    ("letters", "entries"),
    [(30, 70), (1000, 4096), *(pytest.param(*other, marks=pytest.mark.slow) for other in [(30, 4096), (1000, 70)])],
)
def test_a_vocabulary_that_a_message_offers_is_taken(kind: str, algorithm: str, entries: int, letters: int) -> None:
    texts = chinese(letters)
    try:
        tokenizer = tokenizers.train_tokenizer(kind, entries, texts, algorithm=algorithm)
    except DataError as error:
        if "not large enough" in str(error):  # what the library says without a number
            return
        offered = re.search(r"Type data\.vocab_size=(\d+)", str(error))
        assert offered
        entries = int(offered[1])
        tokenizer = tokenizers.train_tokenizer(kind, entries, texts, algorithm=algorithm)
    assert tokenizer.get_vocab_size() == entries


def test_wordpiece_takes_more_letters_where_words_do_not_fill_the_vocabulary() -> None:
    texts = chinese(1500)
    count = len({letter for text in texts for letter in text})
    every = tokenizers.train_tokenizer("bert", 5 + 2 * count, texts)
    assert tokenizers.unknown_id(every) not in every.encode("".join(texts), add_special_tokens=False).ids
    few = tokenizers.train_tokenizer("bert", 605, texts)
    entries = few.get_vocab()
    assert sum(len(entry) == 1 for entry in entries) == sum(entry.startswith("##") for entry in entries) == 300


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_rare_letters_that_are_equally_rare_do_not_make_trainings_differ(documents: list[str], kind: str) -> None:
    rare = [*documents, *(chr(0x4E00 + i) for i in range(300))]
    first, second = (tokenizers.train_tokenizer(kind, ENTRIES[kind], rare) for _ in range(2))
    assert set(first.get_vocab()) == set(second.get_vocab())


def test_training_reads_only_the_start_of_a_large_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "SAMPLE_CHARACTERS", 1000)
    read = []

    def endless() -> Iterator[str]:
        while True:
            read.append(1)
            yield "some words of a large corpus"

    assert tokenizers.train_tokenizer("gpt", 260, endless()).get_vocab_size() == 260
    assert len(read) <= 1000 // len("some words of a large corpus") + 2


def test_bert_lower_cases_strips_accents_and_frames(trained: dict[str, Tokenizer]) -> None:
    tokens = trained["bert"].encode("ABC dÉf").tokens
    assert tokens == trained["bert"].encode("abc def").tokens
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    pair = trained["bert"].encode("abc", "def")
    assert [t for t in pair.tokens if t in BERT_SPECIAL] == ["[CLS]", "[SEP]", "[SEP]"]
    assert (pair.type_ids[0], pair.type_ids[-1]) == (0, 1)


@pytest.mark.parametrize("line", LINES)
def test_gpt_restores_every_text(trained: dict[str, Tokenizer], line: str) -> None:
    assert trained["gpt"].decode(trained["gpt"].encode(line).ids, skip_special_tokens=False) == line


BYTES = {kind: tokenizers.byte_tokenizer(kind) for kind in SPECIAL_TOKENS}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)  # a lone surrogate is in no UTF-8 text


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_bytes_are_the_special_tokens_and_256_values(kind: str) -> None:
    vocabulary = BYTES[kind].get_vocab(with_added_tokens=True)
    special = SPECIAL_TOKENS[kind]
    assert len(vocabulary) == byte_vocabulary(kind) == {"bert": 261, "gpt": 257}[kind]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert list(tokenizers.special_ids(kind, BYTES[kind]).values()) == list(range(len(special)))
    tokenizers.check_tokenizer(kind, BYTES[kind], "bytes")


@pytest.mark.parametrize("kind", ["bert", "gpt"])
@given(text=TEXTS)
def test_every_text_is_its_bytes_and_comes_back_from_them(kind: str, text: str) -> None:
    tokenizer = Tokenizer.from_str(BYTES[kind].to_str())
    tokenizer.encode_special_tokens = True  # as when a corpus is packed
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) == len(text.encode())
    assert min(ids, default=256) >= len(SPECIAL_TOKENS[kind])
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_bytes_are_framed_for_bert_alone() -> None:
    ids = BYTES["bert"].encode("é").ids
    assert (len(ids), ids[0], ids[-1]) == (4, 2, 3)
    assert len(BYTES["gpt"].encode("é").ids) == 2


@pytest.mark.parametrize("kind", ["bert", "gpt"])
@pytest.mark.parametrize("inside", ["tokenizer.json", ""])
def test_a_saved_tokenizer_loads_from_its_file_and_its_folder(
    trained: dict[str, Tokenizer], tmp_path: Path, kind: str, inside: str
) -> None:
    trained[kind].save(str(tmp_path / "tokenizer.json"))
    assert tokenizers.load_tokenizer(kind, str(tmp_path / inside)).to_str() == trained[kind].to_str()


@pytest.mark.parametrize("special", [True, False])
def test_a_vocab_txt_gives_the_ids_of_transformers(vocab_txt: Path, special: bool) -> None:
    theirs = BertTokenizerFast.from_pretrained(vocab_txt.parent)
    for name in (vocab_txt, vocab_txt.parent):
        ours = tokenizers.load_tokenizer("bert", str(name))
        for line in LINES:
            expected = theirs(line, add_special_tokens=special)["input_ids"]
            assert ours.encode(line, add_special_tokens=special).ids == expected, line


def test_a_vocab_json_with_merges_gives_the_ids_of_transformers(vocab_json: Path) -> None:
    theirs = GPT2TokenizerFast.from_pretrained(vocab_json.parent)
    for name in (vocab_json, vocab_json.parent):
        ours = tokenizers.load_tokenizer("gpt", str(name))
        for line in LINES:
            assert ours.encode(line).ids == theirs(line)["input_ids"], line


def test_the_vocabularies_of_these_tests_are_really_used(vocab_txt: Path, vocab_json: Path) -> None:
    assert tokenizers.load_tokenizer("bert", str(vocab_txt)).encode("Unaffable thing").tokens == [
        *("[CLS]", "un", "##aff", "##able", "the"[:1], "##h", "##ing", "[SEP]")
    ]
    assert tokenizers.load_tokenizer("gpt", str(vocab_json)).encode("the the thing").tokens == [
        "the",
        "Ġthe",
        "Ġ",
        "th",
        "ing",
    ]


def test_the_id_of_a_token_is_its_line_in_vocab_txt(tmp_path: Path) -> None:
    tokens = [*BERT_SPECIAL, "\u2028", "\x85", "\x1c", "\x0b", "the"]
    (tmp_path / "vocab.txt").write_bytes("\n".join([*tokens, ""]).encode())
    assert tokenizers.load_tokenizer("bert", str(tmp_path)).token_to_id("the") == 9
    assert BertTokenizerFast.from_pretrained(tmp_path).convert_tokens_to_ids("the") == 9


@pytest.mark.parametrize("missing", BERT_SPECIAL)
def test_a_vocab_txt_without_a_special_token_is_refused_by_its_name(
    vocab_txt: Path, bert_vocabulary: list[str], missing: str
) -> None:
    vocab_txt.write_text("\n".join(token for token in bert_vocabulary if token != missing), encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(missing)) as error:
        tokenizers.load_tokenizer("bert", str(vocab_txt))
    assert not any(token in str(error.value) for token in BERT_SPECIAL if token != missing)


def test_a_tokenizer_of_the_other_model_is_refused(vocab_txt: Path, vocab_json: Path) -> None:
    with pytest.raises(DataError, match=r"model=gpt needs the token <\|endoftext\|>"):
        tokenizers.load_tokenizer("gpt", str(vocab_txt))
    with pytest.raises(DataError, match=r"model=bert needs the token \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"):
        tokenizers.load_tokenizer("bert", str(vocab_json))


def test_a_tokenizer_that_cannot_be_loaded_is_refused_with_what_can(tmp_path: Path, vocab_json: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    vocab_json.with_name("merges.txt").unlink()
    (tmp_path / "empty").mkdir()
    for name in (tmp_path / "tokenizer.json", vocab_json, tmp_path / "empty", tmp_path / "gone.json", "no/such"):
        with pytest.raises(DataError, match=re.escape(f"data.tokenizer={name}: cannot be loaded")) as error:
            tokenizers.load_tokenizer("gpt", str(name))
        assert "tokenizer.json, a vocab.txt, a vocab.json beside its merges.txt" in str(error.value)


@pytest.mark.parametrize("beside_a_model", [False, True])
@pytest.mark.parametrize("origin", ["trained", "loaded", "bytes"])
@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_auto_tokenizer_reads_what_is_exported(
    trained: dict[str, Tokenizer],
    vocab_txt: Path,
    vocab_json: Path,
    tmp_path: Path,
    kind: str,
    origin: str,
    beside_a_model: bool,
) -> None:
    own = {"bert": vocab_txt, "gpt": vocab_json}
    made = {"trained": trained, "bytes": BYTES}
    original = made[origin][kind] if origin in made else tokenizers.load_tokenizer(kind, str(own[kind]))
    tokenizers.save_companions(kind, original, 64, tmp_path)
    if beside_a_model:
        config = BertConfig if kind == "bert" else GPT2Config
        ends: dict[str, Any] = (
            {} if kind == "bert" else {name: original.token_to_id(EOS) for name in ("bos_token_id", "eos_token_id")}
        )
        config(vocab_size=original.get_vocab_size(), **ends).save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    for line in LINES:
        for special in (True, False):
            expected = original.encode(line, add_special_tokens=special).ids
            assert read(line, add_special_tokens=special)["input_ids"] == expected, line
    assert len(read) == original.get_vocab_size()
    assert read.model_max_length == 64
    if kind == "bert":
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        assert [getattr(read, name) for name in names] == BERT_SPECIAL
        assert read.mask_token_id == original.token_to_id("[MASK]")
    else:
        assert (read.eos_token, read.eos_token_id) == (EOS, original.token_to_id(EOS))
        assert (read.pad_token, read.pad_token_id) == (EOS, read.eos_token_id)


@pytest.mark.parametrize(("algorithm", "entries"), [("wordpiece", 400), ("bpe", 600), ("unigram", 100)])
def test_a_typed_mask_is_the_row_that_training_makes(
    documents: list[str], tmp_path: Path, algorithm: str, entries: int
) -> None:
    """In training the one token of a word, which may hold the space before it, becomes [MASK]."""
    made = tokenizers.train_tokenizer("bert", entries, documents, algorithm=algorithm)

    def ids(text: str) -> list[int]:
        return made.encode(text, add_special_tokens=False).ids

    words = sorted(token.lstrip("Ġ▁") for token in made.get_vocab())
    word = next(w for w in words if w.isalpha() and len(ids(f"p {w} p")) == len(ids("p p")) + 1)
    row, vocabulary = ids(f"p {word} p"), made.get_vocab()
    row[len(ids("p"))] = vocabulary["[MASK]"]
    tokenizers.let_mask_take_space(made)
    tokenizers.save_companions("bert", made, 64, tmp_path)
    assert ids("p [MASK] p") == row
    assert AutoTokenizer.from_pretrained(tmp_path)("p [MASK] p", add_special_tokens=False)["input_ids"] == row
    assert made.get_vocab() == vocabulary


def test_a_space_that_is_a_token_stays_before_a_mask() -> None:
    made = tokenizers.byte_tokenizer("bert")
    tokenizers.let_mask_take_space(made)
    assert made.encode("a [MASK]", add_special_tokens=False).tokens == ["a", "Ġ", "[MASK]"]


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_exported_ids_are_in_the_vocabulary(trained: dict[str, Tokenizer], kind: str) -> None:
    ids = tokenizers.exported_ids(kind, trained[kind])
    assert set(ids) == ({"pad_token_id"} if kind == "bert" else {"bos_token_id", "eos_token_id", "pad_token_id"})
    assert max(ids.values()) < trained[kind].get_vocab_size()


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_what_is_exported_loads_here_too(trained: dict[str, Tokenizer], tmp_path: Path, kind: str) -> None:
    tokenizers.save_companions(kind, trained[kind], 64, tmp_path)
    assert tokenizers.load_tokenizer(kind, str(tmp_path)).to_str() == trained[kind].to_str()


def test_a_word_level_tokenizer_with_the_special_tokens_is_taken(tmp_path: Path) -> None:
    words = {token: i for i, token in enumerate([*BERT_SPECIAL, "one", "two"])}
    Tokenizer(models.WordLevel(words, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    assert tokenizers.load_tokenizer("bert", str(tmp_path)).get_vocab() == words


TRAINED = [("bert", "bpe"), ("bert", "unigram"), ("gpt", "unigram")]
FILLED = {"bert": {"bpe": 300, "unigram": 100}, "gpt": {"bpe": 300, "unigram": 270}}


@pytest.fixture(scope="module")
def by_algorithm(documents: list[str]) -> dict[tuple[str, str], Tokenizer]:
    keys = [*TRAINED, ("gpt", "bpe")]
    return {
        key: tokenizers.train_tokenizer(key[0], FILLED[key[0]][key[1]], documents, algorithm=key[1]) for key in keys
    }


@pytest.mark.parametrize(("kind", "algorithm"), TRAINED)
def test_each_algorithm_fills_its_vocabulary_the_same_every_time(
    documents: list[str], by_algorithm: dict[tuple[str, str], Tokenizer], kind: str, algorithm: str
) -> None:
    first = by_algorithm[kind, algorithm]
    tokenizers.check_tokenizer(kind, first, algorithm)
    assert first.get_vocab_size() == FILLED[kind][algorithm]
    assert list(tokenizers.special_ids(kind, first).values()) == list(range(len(SPECIAL_TOKENS[kind])))
    for _ in range(2):
        again = tokenizers.train_tokenizer(kind, FILLED[kind][algorithm], documents, algorithm=algorithm)
        assert again.to_str() == first.to_str()


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("key", [("bert", "bpe"), ("gpt", "unigram")])
def test_byte_level_tokenizers_restore_every_text(
    by_algorithm: dict[tuple[str, str], Tokenizer], key: tuple[str, str], line: str
) -> None:
    tokenizer = Tokenizer.from_str(by_algorithm[key].to_str())
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(line, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == line


def test_a_unigram_for_bert_lower_cases_frames_and_has_an_unknown_token(
    by_algorithm: dict[tuple[str, str], Tokenizer],
) -> None:
    tokenizer = by_algorithm["bert", "unigram"]
    assert tokenizer.encode("Abc dÉf").ids == tokenizer.encode("abc def").ids
    ids = tokenizer.encode("abc \n 日").ids
    assert (ids[0], ids[-2:]) == (2, [1, 3])
    assert tokenizer.decode(ids[1:-2]).strip() == "abc"


def test_a_wordpiece_for_gpt_is_refused_with_what_there_is(documents: list[str]) -> None:
    with pytest.raises(DataError, match=r"data\.tokenizer=wordpiece: model=gpt has no token .*=bpe or unigram"):
        tokenizers.train_tokenizer("gpt", 300, documents, algorithm="wordpiece")


def test_auto_is_the_algorithm_of_the_model_and_gives_the_same_tokenizer_every_time(
    documents: list[str], trained: dict[str, Tokenizer]
) -> None:
    for kind, algorithm in (("bert", "wordpiece"), ("gpt", "bpe")):
        assert (
            tokenizers.train_tokenizer(kind, ENTRIES[kind], documents, algorithm=algorithm).to_str()
            == trained[kind].to_str()
        )


@pytest.mark.parametrize("key", [("bert", "wordpiece"), *TRAINED])
def test_words_begin_where_a_text_has_them(
    trained: dict[str, Tokenizer], by_algorithm: dict[tuple[str, str], Tokenizer], key: tuple[str, str]
) -> None:
    tokenizer = trained["bert"] if key[1] == "wordpiece" else by_algorithm[key]
    words = ["doc12", "abcdefghijkl", "mnopab", "cd", "efefefefgh"]
    ids = tokenizer.encode(" ".join(words), add_special_tokens=False).ids
    inside = tokenizers.inside_words(tokenizer)
    starts = [i for i, token in enumerate(ids) if i == 0 or not inside[token]]
    decoded = [tokenizer.decode(ids[a:b]).strip() for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    assert decoded == words
    assert not inside[list(tokenizers.special_ids(key[0], tokenizer).values())].any()


def varied_lines(count: int) -> list[str]:
    """Words of the vocabularies here, unicode, emoji, numbers, very long words, odd spaces."""
    rng = random.Random(0)
    alphabets = [
        "abcdefghijklmnop",
        "éüßñçøåÀ",
        "日本語한국어हिन्दी",
        "😀👩‍👩‍👧½",
        "0123456789",
        ".,'!?-[](){}<>|\\/",
        "\u0301\u200d\u00a0\u3000",
    ]
    lines = []
    for _ in range(count):
        words = ["".join(rng.choices(rng.choice(alphabets), k=rng.choice([1, 3, 7, 120]))) for _ in range(8)]
        words += rng.choices(["the", "unaffable", "THING", "[MASK]", EOS, "don't", "12"], k=4)
        rng.shuffle(words)
        lines.append(rng.choice([" ", " ", "  ", "\n", "\t", ""]).join(words))
    return lines


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_varied_lines_give_the_ids_of_transformers(count: int, vocab_txt: Path, vocab_json: Path) -> None:
    """Of small vocabularies; the slow form takes real ones, too, from the folders named in the environment."""
    lines = list(dict.fromkeys(varied_lines(count * 2)))[:count]
    assert len(lines) == count
    vocabularies = [("bert", vocab_txt, BertTokenizerFast), ("gpt", vocab_json, GPT2TokenizerFast)]
    if count == 10_000 and (folder := os.environ.get("BERT_TOKENIZER")):
        vocabularies.append(("bert", Path(folder, "vocab.txt"), BertTokenizerFast))
    if count == 10_000 and (folder := os.environ.get("GPT2_TOKENIZER")):
        vocabularies.append(("gpt", Path(folder, "vocab.json"), GPT2TokenizerFast))
    for kind, path, theirs in vocabularies:
        expected = theirs.from_pretrained(path.parent)(lines)["input_ids"]
        ours = [encoding.ids for encoding in tokenizers.load_tokenizer(kind, str(path)).encode_batch(lines)]
        assert ours == expected


def test_a_vocab_txt_with_capitals_is_cased_and_may_have_any_name(
    tmp_path: Path, bert_vocabulary: list[str]
) -> None:
    cased = [*bert_vocabulary, "T", "H", "##H", "##I", "É", "é"]
    path = tmp_path / "bert-cased-vocab.txt"
    path.write_text("".join(f"{token}\n" for token in dict.fromkeys(cased)), encoding="utf-8")
    (tmp_path / "vocab.txt").write_bytes(path.read_bytes())
    theirs = BertTokenizerFast.from_pretrained(tmp_path, do_lower_case=False)
    ours = tokenizers.load_tokenizer("bert", str(path))
    assert "T" in ours.encode("THI is É").tokens
    assert [encoding.ids for encoding in ours.encode_batch(LINES)] == theirs(LINES)["input_ids"]


@pytest.mark.parametrize(("kind", "there"), [("bert", ["vocab.txt"]), ("gpt", ["vocab.json", "merges.txt"])])
def test_a_name_on_the_hub_is_loaded_from_what_it_has(
    vocab_txt: Path, vocab_json: Path, kind: str, there: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = vocab_txt.parent if kind == "bert" else vocab_json.parent

    def download(name: str, file: str) -> str:
        assert name == "somebody/tokenizer"
        if file not in there:
            raise EntryNotFoundError(f"no {file}")
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert (
        tokenizers.load_tokenizer(kind, "somebody/tokenizer").to_str()
        == tokenizers.load_tokenizer(kind, str(folder)).to_str()
    )
    there.clear()
    with pytest.raises(DataError, match=r"it has no tokenizer\.json, vocab\.txt, vocab\.json"):
        tokenizers.load_tokenizer(kind, "somebody/tokenizer")


def test_a_name_out_of_reach_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"data\.tokenizer=wordpiec: .*none of auto, wordpiece, bpe, unigram"):
        tokenizers.load_tokenizer("bert", "wordpiec")
    with pytest.raises(DataError, match=r"data\.tokenizer=nobody/x: .*not in the cache: unset HF_HUB_OFFLINE"):
        tokenizers.load_tokenizer("bert", "nobody/x")


@pytest.mark.parametrize("end", ["</s>", "<|end_of_text|>"])
def test_a_tokenizer_of_llama_may_have_its_own_end_of_text(end: str, vocab_json: Path, tmp_path: Path) -> None:
    theirs = tokenizers.load_tokenizer("gpt", str(vocab_json)).to_str().replace("<|endoftext|>", end)
    (tmp_path / "tokenizer.json").write_text(theirs, encoding="utf-8")
    tokenizer = tokenizers.load_tokenizer("llama", str(tmp_path))
    assert tokenizers.special_ids("llama", tokenizer) == {"eos": tokenizer.token_to_id(end)}
    tokenizers.save_companions("llama", tokenizer, 16, tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert saved["eos_token"] == saved["pad_token"] == end
