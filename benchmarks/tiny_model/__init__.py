"""The embedded base model: the pictures it learns from, its training, its bars."""


def main(argv: list[str]) -> int:
    """`fastsd benchmark tiny-model`: print the bars."""
    from benchmarks.tiny_model import bars

    return bars.main(argv)
