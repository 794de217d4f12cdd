"""What is trained: a network and its losses for a batch, one method per file."""

from config import MethodConfig, ModelConfig
from errors import UserError
from methods.base import Method
from methods.blpseg import BLPSeg
from methods.cc4s import CC4S
from methods.cisc_r import CISCR
from methods.dmpls import DMPLS
from methods.recurseed import RecurSeed
from methods.unimatch import UniMatch

METHODS: dict[str, type[Method]] = {
    "cc4s": CC4S,
    "blpseg": BLPSeg,
    "cisc_r": CISCR,
    "unimatch": UniMatch,
    "recurseed": RecurSeed,
    "dmpls": DMPLS,
}

SETTINGS: dict[str, type[MethodConfig]] = {name: method.settings for name, method in METHODS.items()}


def build_method(method: MethodConfig, model: ModelConfig, num_classes: int) -> Method:
    """The method that the settings are of, its backbone not yet filled. Raises UserError for a network that cannot be built."""
    if model.decoder != "none" and not METHODS[method.name].takes_decoder:
        raise UserError(
            f"--model.decoder {model.decoder}: the networks of {method.name} have no choice of decoder; leave it out"
        )
    return METHODS[method.name](method, model, num_classes)
