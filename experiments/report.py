"""The report of a run and the comparison of several: one HTML file each, which opens offline."""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from attacks.attack import AttackError
from attacks.observation import UpdateId
from attacks.reconstruction_file import load_reconstruction
from experiments import figures
from experiments.commands import attack_command
from experiments.experiment import build_recipe
from experiments.inversion_judge import Judge
from experiments.inversion_section import InvertedRound, inverted_rounds, private_examples
from experiments.inversion_section import problems as inversion_problems
from experiments.inversion_table import read_inversions
from experiments.leakage import (
    OK,
    SERVER,
    USER,
    Truth,
    match,
    observing_peer,
    read_leakage,
    shared_truth,
    summed_truth,
)
from experiments.package_data import data_file
from experiments.pictures import data_uri, image_uri
from experiments.rounds import clients_behind
from experiments.run_directory import RunDirectory
from experiments.settings import ExperimentSettings
from experiments.summary import (
    NO_EVIDENCE,
    RECOGNISABLE_DB,
    Summary,
    blank_originals,
    describe_blank,
    dropout_caveat,
    is_blank,
    summarise,
    with_content,
)
from experiments.utility import ACCURACY, definitions
from fl_sim.config import SettingsError
from fl_sim.errors import explain, printable_page
from fl_sim.files import write_atomically
from fl_sim.wire import Recipe


@dataclass(frozen=True)
class Picture:
    """A reconstruction to show: what made it, the image as a URI (None if it is missing), and its row of the table."""

    attack: str
    uri: str | None
    row: dict[Hashable, Any]


@dataclass(frozen=True)
class Victim:
    """One attacked image: the original as a URI (None if it cannot be read) and its reconstructions.

    ``image`` is its number, or USER: all that the client trained on, of which ``original`` is the mean.
    """

    client: int
    observer: str
    image: str
    timestep: int | None
    label: int | None
    blank: bool
    original: str | None
    pictures: list[Picture]


@dataclass(frozen=True)
class Run:
    """What a run directory holds, finished or not."""

    directory: RunDirectory
    settings: ExperimentSettings
    leakage: pd.DataFrame
    rounds: pd.DataFrame
    utility: dict[str, Any]
    environment: dict[str, Any]
    inversion: pd.DataFrame

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read a run directory; SettingsError if it is none or holds no leakage table."""
        directory = RunDirectory.open(path)
        if not directory.leakage_csv.is_file():
            raise SettingsError(f"{path}: the run has no leakage.csv; it stopped before its first round")
        return cls(
            directory,
            directory.settings(),
            read_leakage(directory.leakage_csv),
            _read_rounds(directory.rounds),
            _read_json(directory.utility),
            _read_json(directory.environment),
            _read(directory.inversion, read_inversions),
        )

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.directory.path.resolve().name

    @cached_property
    def summaries(self) -> list[Summary]:
        """The figures of every attack."""
        return summarise(self.leakage)

    @property
    def denoises(self) -> bool:
        """Whether the clients trained a diffusion model."""
        return self.settings.task == "diffusion"

    @property
    def labelled(self) -> bool:
        """Whether the clients' training used class labels."""
        return bool(self.leakage["label"].notna().any())

    @property
    def attack_command(self) -> str:
        """The command that attacks what has not been attacked."""
        return attack_command(self.directory.path, self.settings.model.factory)

    @cached_property
    def recipe(self) -> Recipe:
        """How the clients trained; SettingsError if the checkpoint that they started from is missing."""
        return build_recipe(self.settings)

    def evidence(self) -> dict[str, pd.DataFrame]:
        """The rows of each attack whose originals have content."""
        return {str(attack): with_content(rows) for attack, rows in self.leakage.groupby("attack", sort=True)}

    def dropout_caveat(self) -> str:
        """What dropout does to the figures; empty if there is none, or the checkpoint is missing."""
        try:
            return dropout_caveat(self.recipe.model) if self.summaries else ""
        except SettingsError:
            return ""


@dataclass(frozen=True)
class UtilityRow:
    """One figure of the model before the first round and after the last that measured it."""

    name: str
    before: float | None
    after: float


def build_report(path: Path) -> Path:
    """Write ``report.html`` into the run directory ``path``, complete or not; returns the file's path.

    Raises:
        SettingsError: if ``path`` is no run directory.
    """
    run = Run.read(path)
    gallery, absent = _gallery(run)
    inversions, not_shown = _inversions(run)
    html = _render(
        "report.html.j2",
        run=run,
        gallery=gallery,
        blank=describe_blank(len(blank_originals(run.leakage))),
        dropout_caveat=run.dropout_caveat(),
        problems=_problems(run) + absent + not_shown,
        by_round=_figure(figures.psnr_by_round, run.evidence()),
        by_timestep=_by_timestep(run.evidence()) if run.denoises else None,
        server=SERVER,
        user=USER,
        utility=_utility(run),
        definitions=definitions(run.settings.task),
        accuracy_by_round=data_uri(figures.accuracy_by_round(run.rounds)) if ACCURACY in run.rounds else None,
        inversions=inversions,
        samples=data_uri(run.directory.samples.read_bytes()) if run.directory.samples.is_file() else None,
        config=run.directory.config.read_text(encoding="utf-8"),
    )
    write_atomically(run.directory.report, lambda file: file.write_text(html, encoding="utf-8"))
    return run.directory.report


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


def build_comparison(paths: Sequence[Path], out: Path) -> Path:
    """Write one page that sets several runs side by side to ``out``; SettingsError if one of ``paths`` is no run."""
    runs = [Run.read(path) for path in paths]
    curves = {
        f"{run.name} · {attack}" if len(run.summaries) > 1 else run.name: rows
        for run in runs
        for attack, rows in run.evidence().items()
    }
    html = _render(
        "comparison.html.j2",
        runs=runs,
        differences=_differences(runs),
        by_round=_figure(figures.psnr_by_round, curves),
        by_timestep=_by_timestep(curves) if any(run.denoises for run in runs) else None,
    )
    write_atomically(out, lambda file: file.write_text(html, encoding="utf-8"))
    return out


def _utility(run: Run) -> list[UtilityRow]:
    """How good the model was before and after, figure by figure; empty where that was not measured."""
    rows = []
    for column in run.rounds.columns:
        if column.startswith(tuple(definitions(run.settings.task))):
            before, measured = run.utility.get("before", {}).get(column), run.rounds[column].dropna()
            rows.append(UtilityRow(column, before, measured.iloc[-1] if len(measured) else float("nan")))
    return rows


def _gallery(run: Run) -> tuple[dict[int, list[Victim]], list[tuple[str, str]]]:
    """Every attacked image by round; and what cannot be shown, with the reason."""
    rounds: dict[int, list[Victim]] = {}
    absent: dict[str, str] = {}
    for (*key, observer), rows in run.leakage.groupby(["round", "client", "observer"], sort=True):
        round_number, client = (int(str(part)) for part in key)
        update_id = UpdateId(round_number, client, observing_peer(str(observer)))
        truth = None
        try:
            truth = summed_truth(run.settings, run.recipe, clients_behind(run.rounds, update_id), round_number)
        except SettingsError as error:
            absent["Originals in this report"] = str(error)
        for of_user, alike in rows.groupby(rows["image"] == USER, sort=False):
            compared = shared_truth(truth) if truth and of_user else truth
            rounds.setdefault(round_number, []).extend(_victims(run, update_id, alike, compared))
    return rounds, list(absent.items())


def _victims(run: Run, update_id: UpdateId, rows: pd.DataFrame, truth: Truth | None) -> list[Victim]:
    count = rows["image"].nunique()
    reconstructed = {attack: _load_images(run, update_id, attack, truth, count) for attack in rows["attack"].unique()}
    victims = []
    for index, (image, of_image) in enumerate(rows.groupby("image", sort=False)):
        pictures = [
            Picture(row["attack"], reconstructed[row["attack"]][index], row) for row in of_image.to_dict("records")
        ]
        original = image_uri(truth.images[index]) if truth else None
        row = pictures[0].row
        blank = is_blank(row["flat_psnr"])
        told = row["timestep"], row["label"]
        victims.append(Victim(update_id.client, row["observer"], str(image), *told, blank, original, pictures))
    return victims


def _load_images(run: Run, update_id: UpdateId, attack: str, truth: Truth | None, count: int) -> Any:
    """A reconstruction's images as URIs in the order of the truth, None for each of ``count`` where there is none."""
    try:
        file = run.directory.reconstruction(update_id.round, update_id.client, attack, update_id.observer)
        images = load_reconstruction(file).images
    except AttackError:
        return [None] * count
    return [image_uri(image) for image in (match(truth.images, images) if truth else images)]


def _read_json(path: Path) -> dict[str, Any]:
    """The content of the file, empty if there is no file."""
    if not path.is_file():
        return {}
    content = _read(path, lambda file: json.loads(file.read_text(encoding="utf-8")))
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: damaged: it holds no table")
    return content


def _read_rounds(path: Path) -> pd.DataFrame:
    """The rounds table, empty if there is none yet."""
    if not path.is_file():
        return pd.DataFrame()
    rounds: pd.DataFrame = _read(path, pd.read_parquet)
    if "round" not in rounds:
        raise SettingsError(f"{path}: damaged: it has no column 'round'")
    return rounds


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    """What ``read`` makes of the file; SettingsError if it is damaged."""
    try:
        return read(path)
    except Exception as error:  # whatever a library raises about a file that was cut off
        raise SettingsError(f"{path}: damaged: {explain(error)}") from error


def _problems(run: Run) -> list[tuple[str, str]]:
    """What could not be computed, and why."""
    problems = [(name.upper(), reason) for name, reason in run.environment.get("not_computed", {}).items()]
    failed = run.leakage[run.leakage["status"] != OK]
    problems += [
        (f"{count} image{'s' * (count > 1)} by {attack}", status)
        for (attack, status), count in Counter(zip(failed["attack"], failed["status"], strict=True)).items()
    ]
    blank = blank_originals(run.leakage)
    if len(blank):
        problems.append((f"{len(blank)} original{'s' * (len(blank) > 1)} as evidence", _blank_because(blank)))
    problems += inversion_problems(run.inversion)
    planned, seen = run.settings.federation.rounds, len(run.rounds)
    if seen < planned:
        problems.append((f"{planned - seen} of {planned} rounds", "the run was stopped, or is still going on"))
    if (waiting := _waiting(run)) > 0:
        stopped = "stopped before they ended; fl-sim run --resume goes on with a run, fl-sim attack with what it began"
        why = stopped if run.settings.attack.in_run else f"captured, not attacked yet; to attack: {run.attack_command}"
        problems.append((f"{waiting} attack{'s' * (waiting > 1)}", why))
    for row in run.rounds.to_dict("records"):
        missing = zip(row["clients_missing"], row["missing_because"], strict=True)
        problems += [(f"Round {row['round']}, client {client}", reason) for client, reason in missing]
    return problems


def _waiting(run: Run) -> int:
    """How many attacks on the captures have not ended."""
    captured = {path.stem for path in run.directory.captures.glob("*.safetensors")}
    groups = run.leakage[["round", "client", "observer", "attack"]].drop_duplicates().itertuples(index=False)
    ended = {
        (stem, attack)
        for number, client, observer, attack in groups
        if (stem := UpdateId(number, client, observing_peer(observer)).stem) in captured
    }
    # An attack that was named by its path has another name in the table.
    attacks = {attack for _, attack in ended} | {name for name in run.settings.attack.names if ":" not in name}
    return len(captured) * max(len(attacks), len(run.settings.attack.names)) - len(ended)


def _blank_because(blank: pd.DataFrame) -> str:
    which = []
    for number, client, image in blank.to_numpy().tolist():
        whose = "sum of clients" if client < 0 else f"client {client}"
        which.append(f"round {number}, {whose}, {'mean image' if image == USER else f'image {image}'}")
    return (
        f"without content: a flat picture of the mean colour already reaches {RECOGNISABLE_DB:.0f} dB, so that "
        f"a reconstruction as good says nothing; left out of medians, shares and curves: {'; '.join(which)}"
    )


def _differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings in which runs differ: key -> one value per run."""
    flat = [_flatten(run.settings.model_dump(mode="json")) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    values = {key: [str(settings.get(key, "")) for settings in flat] for key in keys}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _figure(draw: Any, curves: dict[str, pd.DataFrame]) -> str | None:
    """The figure as a URI, None where there is nothing to draw."""
    drawable = {label: rows for label, rows in curves.items() if rows["psnr"].notna().any()}
    return data_uri(draw(drawable)) if drawable else None


def _by_timestep(curves: dict[str, pd.DataFrame]) -> str | None:
    """PSNR against the timestep, of images that have one."""
    return _figure(figures.psnr_by_timestep, {label: rows[rows["timestep"].notna()] for label, rows in curves.items()})


def _number(value: Any, form: str = "{:.1f}") -> str:
    """A figure as text, a dash if there is none."""
    return "\N{EN DASH}" if value is None or pd.isna(value) else form.format(value)


def _render(template: str, **content: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(data_file("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    html = environment.get_template(template).render(
        recognisable=RECOGNISABLE_DB, ok=OK, no_evidence=NO_EVIDENCE, **content
    )
    return printable_page(html)
