"""A mixed table with gaps, made by hand after the Palmer penguins: 344 rows, an unnamed index, texts, NA."""

import csv

import numpy as np

HEAD = ["species", "island", "bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g", "sex", "year"]
SPECIES, ISLANDS = ("Adelie", "Chinstrap", "Gentoo"), ("Biscoe", "Dream", "Torgersen")
MEANS = np.array([[38.8, 18.3, 190.0, 3700.0], [48.8, 18.4, 196.0, 3730.0], [47.5, 15.0, 217.0, 5080.0]])
SPREAD = [2.8, 1.0, 6.5, 400.0]


def penguins(rows=344, seed=0):
    """Rows of texts."""
    draw = np.random.default_rng(seed)
    species = draw.integers(0, 3, rows)
    island = np.where(species == 0, draw.integers(0, 3, rows), np.where(species == 1, 1, 0))
    numbers = MEANS[species] + draw.normal(size=(rows, 4)) * SPREAD
    sexes, years = draw.choice(["male", "female", "NA"], rows, p=[0.49, 0.48, 0.03]), draw.integers(2007, 2010, rows)
    table = []
    for i in range(rows):
        size = [
            f"{numbers[i, 0]:.1f}",
            f"{numbers[i, 1]:.1f}",
            f"{numbers[i, 2]:.0f}",
            f"{25 * round(numbers[i, 3] / 25)}",
        ]
        size = ["NA"] * 4 if i % 100 == 3 else size
        table.append([SPECIES[species[i]], ISLANDS[island[i]], *size, sexes[i], str(years[i])])
    return table


def write_table(path, rows, head=HEAD, index=False):
    """Write a .csv, under an index without a name if asked for; return its path."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*([""] if index else []), *head])
        writer.writerows([*([i] if index else []), *row] for i, row in enumerate(rows))
    return path
