"""The boxes of CutMix (Yun et al., ICCV 2019)."""

import torch


def cutmix_boxes(count: int, size: tuple[int, ...], probability: float = 0.5) -> torch.Tensor:
    """Draws the boxes of CutMix: (count, H, W) bool. With `probability`, an image has a box of 2 to 40% of its area, with sides
    of a ratio from 0.3 to 1 / 0.3, anywhere in the image."""
    height, width = size
    boxes = torch.zeros(count, height, width, dtype=torch.bool)
    for box in boxes:
        drawn, area, ratio, down, right = torch.rand(5).tolist()
        if drawn < probability:
            area, ratio = (0.02 + 0.38 * area) * height * width, 0.3 + (1 / 0.3 - 0.3) * ratio
            rows, columns = min(height, round((area * ratio) ** 0.5)), min(width, round((area / ratio) ** 0.5))
            top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
            box[top : top + rows, left : left + columns] = True
    return boxes
