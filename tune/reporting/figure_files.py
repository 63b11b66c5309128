"""The files beside a report: of each figure a PNG and a CSV."""

from pathlib import Path

from myllm.system.files import whole_file, write_text
from tune.reporting.figures.base import Figure


def write_pictures(folder: Path, figures: list[Figure]) -> None:
    """Writes NAME.png and NAME.csv of each figure into `folder`."""
    from matplotlib.figure import Figure as Picture

    for figure in figures:
        picture = Picture(figsize=(7, 4), layout="constrained")
        figure.draw(picture)
        with whole_file(folder / f"{figure.name}.png") as file:
            picture.savefig(file, dpi=120, format="png")
        write_text(folder / f"{figure.name}.csv", figure.table.to_csv(index=False))
