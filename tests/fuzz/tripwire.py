"""What bad input names as code to run. Nobody may import it."""


def build(**_: object) -> None:
    raise AssertionError("code that a file names was run")
