"""What is trained: a network and its losses for a batch, one method per file."""

from config import MethodConfig, ModelConfig
from errors import UserError
from methods.base import Method
from methods.cc4s import CC4S

METHODS: dict[str, type[Method]] = {"cc4s": CC4S}


def build_method(method: MethodConfig, model: ModelConfig, num_classes: int) -> Method:
    """The method named by `method.name`, its backbone not yet filled. Raises UserError for an unknown name."""
    if method.name not in METHODS:
        raise UserError(f"--method.name {method.name}: choose {', '.join(METHODS)}")
    return METHODS[method.name](method, model, num_classes)
