"""Takes the pictures of docs/report.md: python -m tests.screenshots RUN [SWEEP]

RUN is the directory of a run of the demo; SWEEP that of a sweep with its report, without which figures are made up. The
run with failures and the one of 1,000 images are made up too: their reconstructions are the originals under some noise.
"""

import io
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from PIL import Image
from playwright.sync_api import Browser

from experiments.report import build_report, build_sweep_report
from tests.browser import chromium
from tests.experiments.made_up_run import make_up_run
from tests.experiments.report.test_sweep import grid

FOLDER = Path("docs/images/report")
WIDTHS = {"laptop": 1280, "phone": 390}
HEIGHT = 2600
"""More of a page is cut off."""


def failing(folder: Path) -> Path:
    """The report of a run in which one attack ended of many."""
    several = ("federation.clients=4", "federation.clients_per_round=4", "federation.rounds=3")
    run = make_up_run(folder / "failures", "attack.name=['residual', 'gidm']", *several)
    table = pd.read_csv(run.leakage_csv)
    reasons = (
        "timeout after 600 s",
        "RuntimeError: DefaultCPUAllocator: can't allocate memory",
        "the worker was killed",
    )
    failed = table.index > 0
    table.loc[failed, "status"] = [reasons[number % 3] for number in table.index[failed]]
    table.loc[failed, ["psnr", "ssim", "mse", "matching_loss", "timestep_recovered"]] = None
    table.to_csv(run.leakage_csv, index=False)
    for file in sorted(run.reconstructions.iterdir())[1:]:
        file.unlink()
    return build_report(run.path)


def thousand(folder: Path) -> Path:
    """The report of a run with 1,000 attacked images."""
    several = (
        "federation.clients=10",
        "federation.clients_per_round=10",
        "federation.rounds=25",
        "client.batch_size=4",
    )
    run = make_up_run(folder / "thousand", *several, "data.partition=iid", "data.tiles_per_side=6")
    return build_report(run.path)


def take(browser: Browser, page_file: Path, name: str) -> None:
    """The page on both screens, light and dark."""
    for screen, width in WIDTHS.items():
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
            page.goto(page_file.absolute().as_uri())
            page.evaluate("document.querySelectorAll('figure.chart').forEach(draw)")
            page.wait_for_function("views.length === document.querySelectorAll('figure.chart').length")
            page.wait_for_timeout(500)
            height = min(HEIGHT, page.evaluate("document.documentElement.scrollHeight"))
            shot = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height})
            Image.open(io.BytesIO(shot)).save(FOLDER / f"{name}-{screen}-{scheme}.webp", quality=70, method=6)
            page.close()


def main(run: str, sweep: str | None = None) -> None:
    """Take them all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder, chromium() as browser:
        made_up = Path(folder)
        swept = Path(sweep) / "report.html" if sweep else made_up / "sweep.html"
        if not sweep:
            build_sweep_report(grid(), ["client.batch_size", "client.local_steps"], swept)
        take(browser, build_report(Path(run)), "demo")
        take(browser, swept, "sweep")
        take(browser, failing(made_up), "failures")
        take(browser, thousand(made_up), "thousand")


if __name__ == "__main__":
    main(*sys.argv[1:])
