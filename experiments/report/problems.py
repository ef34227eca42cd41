"""What a run could not compute, and why."""

from collections import Counter

import pandas as pd

from attacks.observation import UpdateId
from experiments.inversion_section import problems as inversion_problems
from experiments.leakage import OK, USER, observing_peer
from experiments.report.run import Run
from experiments.seen_updates import is_attacked
from experiments.summary import RECOGNISABLE_DB, blank_originals

MOST_NAMED = 12
"""Of originals without content; the pictures say of every one."""


def problems_of(run: Run) -> list[tuple[str, str]]:
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
    stems = {path.stem for path in run.directory.captures.glob("*.safetensors")}
    captured = {stem for stem in stems if is_attacked(run.settings, UpdateId.from_stem(stem))}
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
    for number, client, image in blank.head(MOST_NAMED).to_numpy().tolist():
        whose = "sum of clients" if client < 0 else f"client {client}"
        which.append(f"round {number}, {whose}, {'mean image' if image == USER else f'image {image}'}")
    if len(blank) > MOST_NAMED:
        which.append(f"and {len(blank) - MOST_NAMED} more")
    return (
        f"without content: a flat picture of the mean colour already reaches {RECOGNISABLE_DB:.0f} dB, so that "
        f"a reconstruction as good says nothing; left out of medians, shares and curves: {'; '.join(which)}"
    )
