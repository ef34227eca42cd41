from pathlib import Path

from experiments.bench.provenance import hash_source, preface, revision


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return hash_source(root)


def test_the_hash_is_that_of_the_attacks_and_of_the_ground_floor(tmp_path: Path) -> None:
    first = write(tmp_path, {"attacks/a.py": "1", "attacks/deep/b.py": "2", "fl_sim/diffusion/loss.py": "3"})
    assert write(tmp_path, {"attacks/notes.txt": "4", "fl_sim/config.py": "5", "experiments/cli/run.py": "6"}) == first
    for name in ("attacks/deep/b.py", "fl_sim/diffusion/loss.py", "fl_sim/network/lora.py", "attacks/new.py"):
        changed = write(tmp_path, {name: "7"})
        assert changed != first
        first = changed
    (tmp_path / "attacks/a.py").rename(tmp_path / "attacks/c.py")
    assert hash_source(tmp_path) != first


def test_a_revision_is_the_version_and_twelve_digits() -> None:
    version, _, digits = revision().partition("+")
    assert version
    assert len(digits) == 12
    assert int(digits, 16) >= 0


def test_a_page_says_if_it_mixes_revisions() -> None:
    packages = dict.fromkeys(("fl-sim", "torch", "diffusers", "flwr"), "1.0")
    about = {"started": "2026-11-26T10:00:00", "device": "a CPU", "cpus": 2, "threads": 1, "jobs": 2}
    about |= {"python": "3.11", "packages": packages, "options": {"seed": 3}}
    assert preface(about, ["0.1.0+a"]).endswith("; seed 3.\nRevision: 0.1.0+a.")
    assert preface(about, ["0.1.0+a", "0.1.0+b"]).endswith(
        "\nRows of several revisions are mixed here: 0.1.0+a; 0.1.0+b."
    )
