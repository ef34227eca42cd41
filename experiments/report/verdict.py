"""The report's first sentence: who could reconstruct what, from what share of the updates, against chance."""

import math
from dataclasses import dataclass

import pandas as pd

from experiments.inversion_table import BLIND, summarise_inversions
from experiments.report.gallery import Guess
from experiments.report.run import Run
from experiments.summary import RECOGNISABLE_DB, Summary, with_content

NO_PROOF = (
    "This is no proof that the updates are safe: another attack, a longer search or more updates may show more than "
    "these attacks did."
)


@dataclass(frozen=True)
class Verdict:
    """A sentence, and what to know before repeating it to others."""

    sentence: str
    notes: list[str]


def verdict(run: Run, guess: Guess | None) -> Verdict:
    """What the attacks on a run show, and what they do not."""
    if not run.summaries:
        return _of_the_model(run) if len(run.inversion) else Verdict(_nothing_known(run), [])
    told = [summary for summary in run.summaries if summary.images]
    if not told:
        return Verdict(
            "There is no evidence: every original is without content, so that its reconstruction says nothing.", []
        )
    best = max(told, key=_strength)
    if not any(summary.finished for summary in told):
        count = sum(summary.images for summary in told)
        return Verdict(
            f"No attack ended with a result: {count} of {count} attempts at a private image failed, so that it is not "
            "known what the updates leak.",
            [NO_PROOF],
        )
    return Verdict(_found(run, best, guess), [*_notes(run, best, guess), *_model_as_well(run)])


def _strength(summary: Summary) -> tuple[float, float]:
    return summary.share_recognisable, -math.inf if math.isnan(summary.median_psnr) else summary.median_psnr


def _nothing_known(run: Run) -> str:
    attack = run.settings.attack
    if attack.in_run:
        return "It is not known what the updates leak: no attack has ended yet."
    why = "the federation was captured, and not attacked yet" if attack.names else "nobody attacked the federation"
    return f"It is not known what the updates leak: {why}."


def _found(run: Run, best: Summary, guess: Guess | None) -> str:
    rows = with_content(run.leakage[run.leakage["attack"] == best.attack])
    peers = run.settings.federation.topology != "server"
    who = "Curious peers" if peers else "The server"
    if best.of_users:
        what = plural(best.images, "client's mean image" if best.images == 1 else "clients' mean image")
    else:
        what = plural(best.images, "private image")
    noun = "sum of updates" if bool((rows["client"] < 0).all()) else "update"
    attacked = _updates(rows)
    median = f"{decibels(best.median_psnr)} at the median"
    if best.finished < best.images:
        median += f" of the {best.finished} that did not fail"
    if best.recognisable:
        from_updates = f"{_updates(rows[rows['psnr'] >= RECOGNISABLE_DB])} of {_of_updates(attacked, noun)}"
        count = f"all {what}" if best.recognisable == best.images > 1 else f"{best.recognisable} of {what}"
        return f"{who} reconstructed {count}, from {from_updates}: {median}{_where_others(best, guess)}"
    found = f"at best {decibels(best.best_psnr)}, {median}"
    return (
        f"{who} reconstructed none of {what}, from {_of_updates(attacked, noun)}: {found}{_where_others(best, guess)}"
    )


def _where_others(best: Summary, guess: Guess | None) -> str:
    """The end of the sentence: what is reached without an update."""
    if guess is None:
        return "; what a guess reaches is not known."
    level, nearest = guess.level.get(best.attack, math.nan), decibels(guess.nearest_psnr)
    if math.isnan(level):
        return f", where the nearest public image reaches {nearest}."
    return f", where a guess reaches {decibels(level)} and the nearest public image {nearest}."


def _updates(rows: pd.DataFrame) -> int:
    return len(rows[["round", "client", "observer"]].drop_duplicates())


def _of_updates(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun.replace('sum', 'sums') if ' ' in noun else noun + 's'}"


def _notes(run: Run, best: Summary, guess: Guess | None) -> list[str]:
    settings = run.settings
    notes = [
        f"Reconstructed means: {RECOGNISABLE_DB:.0f} dB PSNR or more; such a picture shows what the original shows."
    ]
    if settings.federation.rounds > 1 or settings.client.local_steps > 1:
        notes.append("An image counts as often as a client has used it.")
    if len(run.summaries) > 1:
        notes.append(f"This is said of {best.attack}, the strongest of {len(run.summaries)} attacks.")
    if best.finished < best.images:
        failed = best.images - best.finished
        notes.append(f"The attack failed on {failed} of {best.images}; these count as not reconstructed.")
    if (sent := _sent(run)) > (attacked := _updates(run.leakage)):
        notes.append(f"{sent} updates were sent, of which {attacked} have been attacked.")
    if settings.defence.name != "none":
        known = "knew" if settings.attack.knows_defence else "did not know"
        notes.append(f"The clients' defence was {settings.defence.name}, of which the attacker {known}.")
    if guess is not None:
        if best.attack in guess.level:
            notes.append("A guess is what the reconstructions reach against private images that are not their own.")
        notes.append(f"The nearest public image is the best match to each original among {guess.source}.")
        if guess.nearest_recognisable:
            share = percent(guess.nearest_recognisable)
            notes.append(
                f"Of {share} of the originals a public image is just as near: reconstructions say little there."
            )
    return notes if best.recognisable else [*notes, NO_PROOF]


def _sent(run: Run) -> int:
    """Updates that the server saw; 0 where it saw none of its own, or only sums."""
    if run.settings.federation.topology != "server" or bool((run.leakage["client"] < 0).any()):
        return 0
    return int(run.rounds["clients_seen"].map(len).sum()) if len(run.rounds) else 0


def _of_the_model(run: Run) -> Verdict:
    summaries = [summary for summary in summarise_inversions(run.inversion) if summary.finished]
    attacks = [summary for summary in summaries if summary.method != BLIND]
    if not attacks:
        return Verdict("No model inversion ended with a result; it is not known what the global model gives away.", [])
    best = max(attacks, key=lambda summary: summary.top1)
    blind = [summary.top1 for summary in summaries if summary.method == BLIND and summary.round == best.round]
    drawn = f"public images drawn blindly reach {percent(blind[0])} and " if blind else ""
    return Verdict(
        f"From the global model alone, {best.method} found images of its classes: a judge names the class of "
        f"{percent(best.top1)} of {best.finished} correctly, where {drawn}a guess reaches {percent(best.chance_top1)}.",
        [] if best.top1 > max(blind, default=best.chance_top1) else [NO_PROOF.replace("updates are", "model is")],
    )


def _model_as_well(run: Run) -> list[str]:
    return [_of_the_model(run).sentence] if len(run.inversion) else []


def plural(count: int, noun: str) -> str:
    """So many of a thing.

    >>> plural(1, "image"), plural(2, "image")
    ('1 image', '2 images')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def decibels(value: float) -> str:
    """A level in dB as text that no line break parts.

    >>> decibels(12.34).split(), decibels(math.inf).split()
    (['12.3', 'dB'], ['∞', 'dB'])
    """
    return f"{'∞' if value == math.inf else f'{value:.1f}'}\N{NO-BREAK SPACE}dB"


def percent(share: float) -> str:
    """A share in [0, 1] as text that no line break parts, with the digits that tell 99.5 % from all.

    >>> percent(0.9953).split(), percent(1.0).split()
    (['99.5', '%'], ['100', '%'])
    """
    return f"{100 * share:.3g}\N{NO-BREAK SPACE}%"
