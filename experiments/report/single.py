"""The report of one run."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.inversion_judge import Judge
from experiments.inversion_section import InvertedRound, inverted_rounds, private_examples
from experiments.leakage import SERVER, USER
from experiments.pictures import data_uri
from experiments.report.charts import Chart, Reference, curve, drawable, leakage_charts, recognisable
from experiments.report.gallery import Gallery, Guess, read_gallery
from experiments.report.page import columns_and_rows, write_page
from experiments.report.problems import problems_of
from experiments.report.run import Run
from experiments.report.verdict import verdict
from experiments.summary import RECOGNISABLE_DB, blank_originals, describe_blank, is_blank, with_content
from experiments.utility import ACCURACY, LOSS, definitions
from fl_sim.config import SettingsError

TABLE: dict[str, tuple[str, int | None]] = {
    "round": ("round", 0),
    "client": ("client", 0),
    "observer": ("seen by", None),
    "image": ("image", None),
    "attack": ("attack", None),
    "timestep": ("t", 0),
    "timestep_recovered": ("t recovered", 0),
    "label": ("label", 0),
    "label_recovered": ("label recovered", 0),
    "psnr": ("PSNR (dB)", 2),
    "nearest_psnr": ("nearest public (dB)", 2),
    "ssim": ("SSIM", 4),
    "lpips": ("LPIPS", 4),
    "flat_psnr": ("flat PSNR (dB)", 1),
    "mse": ("MSE", -2),
    "matching_loss": ("matching loss", -2),
    "evaluations": ("evaluations", 0),
    "seconds": ("seconds", 1),
    "device": ("device", None),
    "status": ("status", None),
}
"""What the page shows of the leakage table: each column's heading, and its decimals (negative: in powers of ten)."""

CONSTANT = ("threat", "update", "batch_size", "local_steps", "defence", "defence_args", "defence_known", "run")
"""Columns that are the same in every row of a run; only the download has them."""


@dataclass(frozen=True)
class UtilityRow:
    """One figure of the model before the first round and after the last that measured it."""

    name: str
    before: float | None
    after: float


@dataclass(frozen=True)
class ClientRow:
    """What was found in the updates of one client (-1: sums of clients) by the attack that found most of them."""

    client: int
    updates: int
    images: int
    finished: int
    recognisable: int
    median_psnr: float
    best_psnr: float


def build_report(path: Path) -> Path:
    """Write ``report.html`` into the run directory ``path``, complete or not; returns the file's path.

    Raises:
        SettingsError: if ``path`` is no run directory.
    """
    run = Run.read(path)
    gallery = read_gallery(run)
    inversions, not_shown = _inversions(run)
    points = points_of(run, gallery.table)
    return write_page(
        run.directory.report,
        "report.html.j2",
        run=run,
        verdict=verdict(run, gallery.guess),
        gallery=gallery,
        table=_table(run, gallery),
        headings=_headings(run, gallery.table),
        charts=leakage_charts(points, references(gallery.guess)),
        model_charts=_model_charts(run),
        points=columns_and_rows(points),
        clients=_clients(run),
        blank=describe_blank(len(blank_originals(run.leakage))),
        dropout_caveat=run.dropout_caveat(),
        problems=problems_of(run) + gallery.absent + not_shown,
        utility=_utility(run),
        definitions=definitions(run.settings.task),
        inversions=inversions,
        samples=data_uri(run.directory.samples.read_bytes()) if run.directory.samples.is_file() else None,
        config=run.directory.config.read_text(encoding="utf-8"),
    )


def points_of(run: Run, table: pd.DataFrame, series: str = "{attack}") -> pd.DataFrame:
    """What the charts draw of a leakage table: originals with content, infinite PSNR where it can be drawn.

    ``index`` is the row's number in the table; ``series`` says how a row is named, with ``{attack}`` in it.
    """
    rows = with_content(table)
    losses = run.rounds.set_index("round")["train_loss"] if len(run.rounds) else pd.Series(dtype="float64")
    return pd.DataFrame(
        {
            "index": rows.index,
            "series": [series.format(attack=attack) for attack in rows["attack"]],
            "round": rows["round"],
            "client": rows["client"],
            "timestep": rows["timestep"],
            "train_loss": rows["round"].map(losses).astype("float64"),
            "defence": [_defence(run)] * len(rows),
            "psnr": drawable(rows["psnr"]),
        }
    )[rows["psnr"].notna().to_numpy()]


def references(guess: Guess | None) -> list[Reference]:
    """The levels that every chart of leakage shows."""
    if guess is None:
        return [recognisable()]
    level = max(guess.level.values(), default=math.nan)
    known = [
        Reference(level, f"a guess: {level:.1f} dB", right=False),
        Reference(guess.nearest_psnr, f"nearest public image: {guess.nearest_psnr:.1f} dB"),
    ]
    return [recognisable(), *(reference for reference in known if math.isfinite(reference.level))]


def _defence(run: Run) -> str:
    defence = run.settings.defence
    return ", ".join([defence.name, *(f"{key} = {value}" for key, value in defence.args.items())])


def _table(run: Run, gallery: Gallery) -> dict[str, Any]:
    """The leakage table with what each row is called and whether its original has no content."""
    names = [_name(run, row) for row in gallery.table.to_dict("records")]
    return columns_and_rows(gallery.table.assign(name=names, blank=[is_blank(db) for db in gallery.table["flat_psnr"]]))


def _name(run: Run, row: dict[Any, Any]) -> str:
    whose = "Sum of clients" if row["client"] < 0 else f"Client {row['client']}"
    several = row["client"] < 0 or run.settings.client.batch_size * run.settings.client.local_steps > 1
    image = ", mean image" if row["image"] == USER else f", image {row['image']}" if several else ""
    observer = "" if row["observer"] == SERVER else f", seen by {row['observer']}"
    return f"{whose}{image}{observer}"


def _headings(run: Run, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The columns that the page shows: those that are known to it and those of further metrics."""
    left_out = {*CONSTANT, "original", "found", "nearest", "peak_memory"}
    if (table["observer"] == SERVER).all():
        left_out.add("observer")
    if not run.denoises:
        left_out |= {"timestep", "timestep_recovered"}
    if not run.labelled:
        left_out |= {"label", "label_recovered"}
    shown = [str(column) for column in table.columns if column not in left_out]
    shown.sort(key=lambda column: list(TABLE).index(column) if column in TABLE else list(TABLE).index("lpips"))
    told = {column: TABLE.get(column, (column.replace("_", " "), 4)) for column in shown}
    return [{"name": column, "label": label, "decimals": decimals} for column, (label, decimals) in told.items()]


def _clients(run: Run) -> list[ClientRow]:
    """Client by client, of the strongest attack on each; empty if there is one client."""
    rows = with_content(run.leakage)
    best = []
    for client, of_client in rows.groupby("client"):
        by_attack = [_client_row(int(str(client)), alike) for _, alike in of_client.groupby("attack")]
        best.append(max(by_attack, key=lambda row: (row.recognisable, row.finished and row.median_psnr)))
    return best if len(best) > 1 else []


def _client_row(client: int, rows: pd.DataFrame) -> ClientRow:
    return ClientRow(
        client=client,
        updates=len(rows[["round", "observer"]].drop_duplicates()),
        images=len(rows),
        finished=int(rows["psnr"].notna().sum()),
        recognisable=int((rows["psnr"] >= RECOGNISABLE_DB).sum()),
        median_psnr=float(rows["psnr"].median()),
        best_psnr=float(rows["psnr"].max()),
    )


def _inversions(run: Run) -> tuple[list[InvertedRound], list[tuple[str, str]]]:
    """What model inversion found, by round; and what cannot be shown beside it, with the reason."""
    private: dict[int, list[str]] = {}
    absent = []
    if len(run.inversion):
        try:
            private = private_examples(Judge(run.settings, run.recipe), run.inversion)
        except SettingsError as error:
            absent.append(("Private images beside those of the model inversion", str(error)))
    return inverted_rounds(run.directory, run.inversion, private), absent


def _utility(run: Run) -> list[UtilityRow]:
    """How good the model was before and after, figure by figure; empty where that was not measured."""
    rows = []
    for column in run.rounds.columns:
        if column.startswith(tuple(definitions(run.settings.task))):
            before, measured = run.utility.get("before", {}).get(column), run.rounds[column].dropna()
            rows.append(UtilityRow(column, before, measured.iloc[-1] if len(measured) else float("nan")))
    return rows


def _model_charts(run: Run) -> list[Chart]:
    """How good the model was after every round, where that was measured more than once."""
    named = {ACCURACY: "held-out accuracy", LOSS: "held-out loss"}
    charts = []
    for column, title in named.items():
        if column in run.rounds and run.rounds[column].notna().sum() > 1:
            values = run.rounds[column].dropna()
            text = f"{title.capitalize()} by round, from {values.iloc[0]:.4g} to {values.iloc[-1]:.4g}."
            charts.append(curve(run.rounds, column, f"{title.capitalize()} by round", text))
    return charts
