"""docs/notebook.ipynb: its cells run one after the other, as a reader would run them; in this process, no kernel."""

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests.experiments.in_process import without_ray
from tests.pages.pages import REPOSITORY

NOTEBOOK = json.loads((REPOSITORY / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the cells have defined; the attack is shorter than in the notebook."""
    matplotlib.use("Agg")
    found: dict[str, Any] = {"__name__": "notebook", "_figures": []}
    with without_ray(), chdir(tmp_path_factory.mktemp("notebook")), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plt, "show", lambda: found["_figures"].append(plt.gcf()))
        for number, cell in enumerate(CODE):
            source = "".join(cell["source"]).replace("max_evaluations=150", "max_evaluations=2")
            exec(compile(source, f"notebook.ipynb, code cell {number}", "exec"), found)
        assert Path("runs/notebook/report.html").is_file()
    return found


def test_its_cells_run(names: dict[str, Any]) -> None:
    assert names["run"].leakage["round"].tolist() == [1, 1, 2, 2]
    assert set(names["run"].leakage["status"]) == {"ok"}
    by_round, pictures = names["_figures"]
    assert [line.get_label() for line in by_round.axes[0].lines][:1] == ["residual"]
    assert [axes.get_title() for axes in pictures.axes] == ["original", "residual"]
    assert [axes.images[0].get_array().shape for axes in pictures.axes] == [(16, 16, 3)] * 2


def test_it_is_kept_without_outputs() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
