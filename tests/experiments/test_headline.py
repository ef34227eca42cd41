import io
import math

import pandas as pd
from rich.console import Console

from experiments.headline import accuracy_line, headline
from tests.experiments.test_summary import table


def printed(*rows: tuple[str, int, float | None, float | None], **model: float) -> list[str]:
    output = io.StringIO()
    for part in headline(table(*rows), model) if rows else headline(table(("dlg", 0, 1.0, 1.0)).head(0), model):
        Console(file=output, width=400).print(part)
    return [" ".join(line.split()) for line in output.getvalue().splitlines()]


def test_the_figures_are_a_table() -> None:
    assert printed(("dlg", 0, 20.0, 12.0), ("dlg", 1, 40.0, 12.0)) == [
        "attack images median PSNR >= 30 dB timesteps exact labels exact",
        "dlg 2 30.0 dB 50 % 2/2 2/2",
    ]


def test_what_is_no_evidence_is_left_out_and_said() -> None:
    assert printed(("dlg", 0, 20.0, 12.0), ("dlg", 1, 40.0, 31.0))[1:] == [
        "dlg 1 20.0 dB 0 % 1/1 1/1",
        "1 original without content left out: a flat picture of its mean colour already reaches 30 dB.",
    ]
    assert printed(("dlg", 0, 84.0, math.inf))[1] == "dlg 0 no evidence"


def test_a_column_stands_only_for_what_clients_trained_with() -> None:
    classifiers = table(("dlg", 0, 20.0, 12.0)).assign(timestep=None, timestep_recovered=None)
    output = io.StringIO()
    Console(file=output, width=400).print(*headline(classifiers, {}))
    assert " ".join(output.getvalue().splitlines()[0].split()) == "attack images median PSNR >= 30 dB labels exact"


def test_dropout_is_said_below_the_table() -> None:
    assert "dropout 0.3" in printed(("dlg", 0, 20.0, 12.0), dropout=0.3)[2]


def test_without_attacks_nothing_is_printed() -> None:
    assert printed(dropout=0.3) == []


def test_the_latest_accuracy_is_said_if_one_was_measured() -> None:
    rounds = pd.DataFrame({"round": [1, 2, 3], "heldout_accuracy": [0.5, 0.9714, math.nan]})
    assert accuracy_line(rounds) == ["held-out accuracy after round 2: 97.1 %"]
    assert accuracy_line(rounds.tail(1)) == accuracy_line(rounds[["round"]]) == []
