"""Exercises of lesson 1: text becomes integers."""
from expect import same


def test_1_1_takes_every_occurrence(m, rng):
    ids = tuple(rng.choice((1, 2, 3)) for _ in range(8)) + (1, 2, 3, 1, 2)
    same("merge((…, 1, 2, 3, 1, 2), (1, 2), 9): every pair 1 2 becomes 9", m.merge((1, 2, 3, 1, 2), (1, 2), 9),
         (9, 3, 9), "each occurrence is replaced, not only the first")
