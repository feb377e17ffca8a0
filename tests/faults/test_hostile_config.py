"""A run directory is data: nothing in its config.yaml is executed, no secret is read. A name is no path."""

from pathlib import Path

import pytest
import yaml

from apollo_cli.train import run

SECRET = "a-key-that-nobody-may-see"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", SECRET)
    return tmp_path


@pytest.mark.parametrize("name", ["../up", "/tmp/abs", "a/b", "..", ".hidden", "a\nb", "a\0b", "~", ""])
def test_a_name_is_no_path(name: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([f"name='{name}'", "plan=true"]) == 2
    assert "name" in capfd.readouterr().err
    assert list(place.iterdir()) == []


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "content",
    [
        b"!!python/object/apply:os.mkdir [mark]",
        b"seed: !!python/object/apply:os.mkdir [mark]",
        b"!!python/name:os.system",
        BOMB.encode(),
        b"a: " + b"[" * 100_000,
        b"\xff\xfe\x00",
        b"seed: \x00",
        b"",
        b"- 1",
        b"format: 2\n" + b"#" * 17_000_000,
        b"format: 1\nseed: ${oc.env:SECRET}\nname: ${oc.env:SECRET}\n",
        b"format: 1\nhydra:\n callbacks:\n  x:\n   _target_: os.mkdir\n   path: mark\n",
        b"format: 1\nmodel:\n _target_: os.mkdir\n path: mark\n",
        b"format: 1\nhydra:\n run:\n  dir: ${oc.env:SECRET}\n",
    ],
)
def test_a_run_directory_that_is_not_ours_is_refused_and_executes_nothing(
    content: bytes, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "theirs").mkdir()
    (place / "theirs" / "config.yaml").write_bytes(content)
    (place / "theirs" / "plan.json").write_text('{"steps": 12}')
    before = sorted((place / "theirs").iterdir())
    assert run(["resume=theirs"]) == 2
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    assert "Traceback" not in said.err
    assert "config" in said.err
    assert sorted((place / "theirs").iterdir()) == before
    assert not (place / "mark").exists()


def test_an_interpolation_in_a_saved_config_stays_text(
    tiny: tuple[str, ...], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*tiny, "plan=true", "hydra.run.dir=theirs"]) == 0
    path = place / "theirs" / "config.yaml"
    values = yaml.safe_load(path.read_text()) | {"plan": False}
    values["tracking"]["notes"] = "${oc.env:SECRET}"
    path.write_text(yaml.safe_dump(values))
    assert run(["resume=theirs"]) == 0
    assert all(SECRET.encode() not in p.read_bytes() for p in place.rglob("*") if p.is_file())
    assert SECRET not in "".join(capfd.readouterr())


def test_a_run_directory_does_not_choose_the_cache(
    tiny: tuple[str, ...], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*tiny, "plan=true", "hydra.run.dir=theirs"]) == 0
    path = place / "theirs" / "config.yaml"
    values = yaml.safe_load(path.read_text()) | {"plan": False}
    values["data"]["cache_dir"] = str(place / "mine")
    path.write_text(yaml.safe_dump(values))
    (place / "mine").mkdir()
    assert run(["resume=theirs"]) == 2
    assert f"type 'data.cache_dir={place}/mine' yourself, beside resume=" in capfd.readouterr().err
    assert list((place / "mine").iterdir()) == []
    assert run(["resume=theirs", f"data.cache_dir={place}/mine"]) == 0


@pytest.mark.parametrize(
    "section",
    [
        {"hydra": {"callbacks": {"x": {"_target_": "os.mkdir", "path": "mark"}}}},
        {"model": {"_target_": "os.mkdir", "path": "mark"}},
        {"defaults": ["/tracking: ${oc.env:SECRET}"]},
    ],
)
def test_what_hydra_would_act_on_is_an_unknown_key_of_a_saved_config(
    section: dict[str, object], tiny: tuple[str, ...], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*tiny, "plan=true", "hydra.run.dir=theirs"]) == 0
    path = place / "theirs" / "config.yaml"
    values = yaml.safe_load(path.read_text()) | {"plan": False}
    for key, value in section.items():
        values[key] = values[key] | value if isinstance(values.get(key), dict) else value
    path.write_text(yaml.safe_dump(values))
    capfd.readouterr()
    assert run(["resume=theirs"]) == 2
    error = capfd.readouterr().err
    assert "no such key" in error
    assert SECRET not in error
    assert not (place / "mark").exists()


def test_a_refused_corpus_leaves_no_cache(tiny: tuple[str, ...], place: Path) -> None:
    rest = [word for word in tiny if not word.startswith(("data.files=", "data.cache_dir="))]
    (place / "mine").mkdir()
    for folder in ("mine", "new/cache"):
        assert run([*rest, "data.files=[gone.txt]", f"data.cache_dir={folder}"]) == 2
    assert list(place.rglob("*")) == [place / "mine"]
