"""Who is who: references by instances similarity, Hungarian assignment, leakage, confusion.

Pure functions, used by the stages and by the evaluation. Letters: R references (subjects), n
instances, D embedding width. S is always references by instances.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from focusdpo.pipeline.parts import Vectors

Matrix = NDArray[np.float64]
NOBODY = -1
"""In an assignment: this subject has no instance."""


def similarity_matrix(references: Sequence[Vectors], instances: Vectors) -> Matrix:
    """S (R, n): S[i, k] is the mean over subject i's pictures of their cosine to instance k.

    `references[i]` is (pictures, D), `instances` (n, D), both of unit length.
    """
    if not len(instances):
        return np.zeros((len(references), 0))
    wide = np.asarray(instances, dtype=np.float64)
    return np.stack([(np.asarray(r, dtype=np.float64) @ wide.T).mean(axis=0) for r in references])


def assign(similarity: Matrix) -> list[int]:
    """The instance of each subject under the assignment of greatest total similarity.

    Every instance serves at most one subject; with fewer instances than subjects the subjects
    left over get `NOBODY`.
    """
    given = [NOBODY] * similarity.shape[0]
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        given[row] = column
    return given


def at_places(similarity: Matrix, assignment: Sequence[int], absent: float) -> Matrix:
    """S (R, R): column j is the instance at subject j's place, `absent` where there is none."""
    places = np.full((similarity.shape[0], len(assignment)), absent, dtype=np.float64)
    for place, instance in enumerate(assignment):
        if instance != NOBODY:
            places[:, place] = similarity[:, instance]
    return places


def leakage_margins(places: Matrix) -> NDArray[np.float64]:
    """S[i, i] - max over j != i of S[i, j] for each subject of S (R, R).

    Positive: reference i fits its own place best. With one subject there is no other place and
    the rival counts as -1, the least cosine.
    """
    count = places.shape[0]
    if count == 1:
        return np.diag(places) + 1.0
    rivals = np.where(np.eye(count, dtype=bool), -np.inf, places).max(axis=1)
    return np.diag(places) - rivals


def confused(similarity: Matrix, assignment: Sequence[int]) -> NDArray[np.bool_]:
    """Whether the instance at each subject's place looks more like another reference.

    A subject without an instance is not confused (it is missing). Ties are not confusion.
    """
    wrong = np.zeros(len(assignment), dtype=bool)
    for subject, instance in enumerate(assignment):
        if instance != NOBODY:
            column = similarity[:, instance]
            wrong[subject] = column.max() > column[subject]
    return wrong


def failed(
    similarity: Matrix, assignment: Sequence[int], *, claim: float, least: float
) -> NDArray[np.bool_]:
    """Whether each subject failed: it is missing, comes twice, has another's looks, or its matched
    identity is below `least`. `claim` as in `claims`."""
    matched = np.diag(at_places(similarity, assignment, absent=-np.inf))
    doubled = claims(similarity, claim) > 1
    return (matched < least) | doubled | confused(similarity, assignment)


def claims(similarity: Matrix, least: float) -> NDArray[np.int64]:
    """How many instances look most like each reference, with at least similarity `least`."""
    count = np.zeros(similarity.shape[0], dtype=np.int64)
    for column in similarity.T:
        best = int(column.argmax())
        count[best] += bool(column[best] >= least)
    return count
