"""A leakage table in a few figures."""

from dataclasses import dataclass

import pandas as pd

from experiments.leakage import OK

RECOGNISABLE_DB = 30.0
"""From this PSNR on a reconstruction shows what the original shows."""


@dataclass(frozen=True)
class Summary:
    """One attack in figures; the PSNRs are over the images that it finished, the shares over all."""

    attack: str
    images: int
    finished: int
    median_psnr: float
    best_psnr: float
    recognisable: int
    timesteps_recovered: int
    median_ssim: float
    median_evaluations: float
    median_seconds: float

    @property
    def share_recognisable(self) -> float:
        """Fraction of all attacked images that reached RECOGNISABLE_DB."""
        return self.recognisable / self.images


def summarise(leakage: pd.DataFrame) -> list[Summary]:
    """One summary per attack in a leakage table, by name."""
    return [_summarise(str(attack), rows) for attack, rows in leakage.groupby("attack", sort=True)]


def _summarise(attack: str, rows: pd.DataFrame) -> Summary:
    return Summary(
        attack=attack,
        images=len(rows),
        finished=int((rows["status"] == OK).sum()),
        median_psnr=float(rows["psnr"].median()),
        best_psnr=float(rows["psnr"].max()),
        recognisable=int((rows["psnr"] >= RECOGNISABLE_DB).sum()),
        timesteps_recovered=int((rows["timestep"] == rows["timestep_recovered"]).sum()),
        median_ssim=float(rows["ssim"].median()),
        median_evaluations=float(rows["evaluations"].astype("float64").median()),
        median_seconds=float(rows["seconds"].median()),
    )
