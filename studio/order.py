"""Which picture to label next, and why."""

from collections.abc import Mapping

import numpy as np

TYPICAL = "the most typical of the pictures"
UNLIKE = "looks least like the pictures with labels"
UNSURE = "the network is unsure here, and it looks unlike the pictures with labels"
FIRST = 4  # pictures that are chosen by their looks alone


def next_picture(
    vectors: Mapping[str, np.ndarray], labelled: set[str], unsure: Mapping[str, float], passed: set[str]
) -> tuple[str, str] | None:
    """Returns the picture to label next and the reason; None if all pictures have labels or were passed over.

    vectors: picture -> vector of length 1, alike for pictures that look alike. unsure: picture -> mean entropy of the network's
    prediction in [0, 1]. passed: pictures that the person does not want now.

    The first is nearest to the mean of all. The others are farthest from those with labels (k-center, Sener and Savarese, ICLR
    2018); after `FIRST` pictures, the distance is multiplied by the entropy.
    """
    open_ = [name for name in vectors if name not in labelled and name not in passed]
    if not open_:
        return None
    matrix = np.stack([vectors[name] for name in open_])
    known = [vectors[name] for name in vectors if name in labelled]
    if not known:
        centre = np.mean(list(vectors.values()), axis=0)
        return open_[int((matrix @ centre).argmax())], TYPICAL
    distance = (1 - matrix @ np.stack(known).T).min(axis=1)
    if len(known) >= FIRST and all(name in unsure for name in open_):
        return open_[int((distance * [unsure[name] for name in open_]).argmax())], UNSURE
    return open_[int(distance.argmax())], UNLIKE
