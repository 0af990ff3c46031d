"""`clipworks methods`: what is known of a method is printed at once, measured or not."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import methods
from pipelines.cli import main
from pipelines.methods import load_method, method_names
from pipelines.reproduction.card import ArmOfCard, Card, MeanOfCard, MeasureOfCard, read_card, write_card
from pipelines.reproduction.measured import find_card

HERE = Path(__file__).parent


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of methods with `example` alone, something shared and something common, none of which is a method."""
    folder = tmp_path / "methods"
    folder.mkdir()
    shutil.copy(HERE / "example_method.py", folder / "example.py")
    (folder / "_shared.py").write_text("")
    (folder / "method.py").write_text("")
    monkeypatch.setattr(methods, "__path__", [str(folder)])
    monkeypatch.delitem(sys.modules, "pipelines.methods.example", raising=False)
    return folder


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    """A folder with a card of the example."""
    arms = {"trained": ArmOfCard(title="true captions", role="method", note="")}
    mean = MeanOfCard(mean=0.5, low=0.4, high=0.6, n=2)
    measure = MeasureOfCard(title="zero-shot top-1", better="higher", unit="fraction", place="a/b/c/d", samples=10,
                            chance=0.1, values={"trained": (0.4, 0.6)}, means={"trained": mean})  # fmt: skip
    card = Card(method="example", head="Not reproduced at this scale", effect="+1.0 ± 2.0 points | made up",
                data="ten samples", seeds=2, headline="top1", arms=arms, measures={"top1": measure}, comparisons=(),
                orderings=(), command="clipworks reproduce example --seeds 2", stages=1, compute_seconds=1.0,
                device=None, cpus=None, versions={})  # fmt: skip
    write_card(str(tmp_path / "cards" / "example.json"), card)
    return tmp_path / "cards"


def test_every_committed_method_says_what_it_must() -> None:
    for name in method_names():
        method = load_method(name)
        assert method.name == name
        assert all((method.title, method.paper, method.claim, method.formula, method.start, method.result)), name
        assert method.limits, name
        for limit in method.limits:
            file, _, test = limit.test.partition("::")
            text = (HERE.parents[1] / file).read_text()
            assert f"def {test.split('::')[-1].partition('[')[0]}(" in text, f"{name}: {limit.test}"


def test_a_method_is_a_module_of_its_own(example: Path) -> None:
    assert method_names() == ["example"]
    assert load_method("example").title == "True captions"


def test_list(example: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    plain = capsys.readouterr().out
    assert "Nobody et al., Captions | pictures, 1999" in plain
    assert "not measured" in plain
    assert main(["methods", "list", "--cards", str(cards)]) == 0
    assert "+1.0 ± 2.0 points" in capsys.readouterr().out
    assert main(["methods", "list", "--json", "--cards", str(cards)]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["head"] == "Not reproduced at this scale"
    assert told["name"] == "example"


def test_no_methods_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str],
                           capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr(methods, "__path__", [str(tmp_path)])
    assert main(["methods"]) == 0
    assert capsys.readouterr().out == "no methods\n"
    assert "have none" in refused("methods", "show", "anything")


def test_show(example: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "show", "example"]) == 0
    plain = capsys.readouterr().out
    for text in ("loss = InfoNCE", "trained for seconds", "test_fit.py::test_nothing", "clipworks run tiny",
                 "any checkpoint", "clipworks reproduce example --seeds 5"):  # fmt: skip
        assert text in plain
    assert main(["methods", "show", "example", "--cards", str(cards)]) == 0
    measured = capsys.readouterr().out
    assert "Not reproduced at this scale" in measured
    assert "50.0 % (40.0–60.0)" in measured
    assert main(["methods", "show", "example", "--json", "--cards", str(cards)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["limits"][0]["statement"] == "no pairs: the weights of the start"
    assert told["measured"]["measures"]["top1"]["values"] == {"trained": [0.4, 0.6]}


def test_an_unknown_method_is_answered_with_the_nearest(example: Path, refused: Callable[..., str]) -> None:
    assert "did you mean 'example'?" in refused("methods", "show", "exmaple")
    assert "did you mean 'example'?" in refused("reproduce", "exmaple")


def test_one_seed_is_refused(example: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    said = refused("reproduce", "example", "--seeds", "1", "--root", tmp_path / "runs")
    assert "--seeds 1: an interval over seeds needs at least 2" in said
    assert not (tmp_path / "runs").exists()


def test_index(example: Path, cards: Path) -> None:
    assert main(["methods", "index", str(cards)]) == 0
    line = (cards / "README.md").read_text().splitlines()[-1]
    assert line.startswith("| [True captions](example.html) | Nobody et al., Captions \\| pictures, 1999 |")
    assert line.count(" | ") == 4
    (cards / "example.json").unlink()
    assert main(["methods", "index", str(cards)]) == 0
    assert (
        "| True captions | Nobody et al., Captions \\| pictures, 1999 | not measured |"
        in (cards / "README.md").read_text()
    )


def test_a_card_comes_back_as_it_was_written_and_a_torn_one_is_refused(
    example: Path, cards: Path, refused: Callable[..., str]
) -> None:
    path = cards / "example.json"
    card = read_card(str(path))
    assert card is not None
    again = cards / "again.json"
    write_card(str(again), card)
    assert again.read_bytes() == path.read_bytes()
    path.write_text(path.read_text()[:100])
    assert "run `clipworks reproduce` again" in refused("methods", "show", "example", "--cards", cards)


def test_cards_that_come_with_the_package_are_found(example: Path, cards: Path) -> None:
    assert find_card("example") is None
    shutil.copytree(cards, example / "measured")
    assert find_card("example") == read_card(str(cards / "example.json"))


def test_nothing_heavy_is_imported(example: Path) -> None:
    program = (
        "import sys, pipelines.methods as methods; methods.__path__ = [sys.argv[1]]; from pipelines.cli import main;"
        "codes = [main(['methods']), main(['methods', 'show', 'example'])];"
        "sys.exit(str({'torch', 'ray', 'kfp', 'scipy', 'matplotlib', 'pandas'} & set(sys.modules) or codes))"
    )
    answer = subprocess.run([sys.executable, "-c", program, str(example)], capture_output=True, text=True,
                            cwd=HERE.parents[1])  # fmt: skip
    assert answer.stderr == "[0, 0]\n"
