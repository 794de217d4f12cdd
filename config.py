"""The settings: typed dataclasses with their defaults. command_line.py sets them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    restricted_number_type,
)

from errors import UserError

Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
Crf = Literal["none", "torch", "pydensecrf"]
if TYPE_CHECKING:
    Deviation = float
    ZeroOrDeviation = float
    HueTurn = float
    WindowStride = float
else:  # command_line.NUMBERS has their names for errors
    # The standard deviation of a Gaussian. Under 0.01, no pixel has a neighbour.
    Deviation = restricted_number_type("Deviation", float, [(">=", 0.01)])
    ZeroOrDeviation = restricted_number_type("ZeroOrDeviation", float, [("==", 0), (">=", 0.01)], join="or")
    HueTurn = restricted_number_type("HueTurn", float, [(">=", 0), ("<=", 0.5)])
    WindowStride = restricted_number_type("WindowStride", float, [(">", 0), ("<=", 1)])  # over 1, windows leave gaps


@dataclass
class LabelledConfig:
    """A second stream of images beside the training images, each with a label: for methods that learn from few labels."""

    split: str | None = None
    """list of labelled images: a name in the data set, or a path that ends in .txt; for methods that read them"""
    labels: str = "SegmentationClass"
    """their labels: a folder of root, or a path"""


@dataclass
class DataConfig:
    """Where the images and labels are, and how training images are augmented."""

    root: str = "data/demo"
    """the data set, in one of the layouts of docs/data.md; data/demo is drawn when missing"""
    labels: str = "scribbles"
    """training labels: a folder of root, or a path; palette or grey PNGs, 255 = unlabelled"""
    truth: str = "SegmentationClass"
    """dense masks for validation: a folder of root, or a path"""
    train_split: str = "train"
    """list of training images: a name in the data set, or a path that ends in .txt"""
    val_split: str = "val"
    """list of validation images: a name in the data set, or a path that ends in .txt"""
    superpixels: str = "superpixels"
    """what tools.superpixels wrote: a folder of root, or a path"""
    tags: Literal["labels", "file"] = "labels"
    """the classes that a training image shows, for methods that ask: those of its labels, or those that tags.json lists"""
    crop: PositiveInt = 257
    """side of the training crop in pixels; 8k + 1 fits the stride-8 feature map exactly"""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    """range of the random scale"""
    rotation: NonNegativeFloat = 10.0
    """largest random rotation, degrees either way"""
    rotation_probability: ClosedUnitInterval = 0.5
    """share of crops that are rotated"""
    flip: ClosedUnitInterval = 0.5
    """share of crops that are mirrored left-right"""
    blur: ClosedUnitInterval = 0.5
    """share of crops that are blurred (Gaussian)"""
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.15, 1.15)
    """range of the blur's standard deviation, pixels"""
    jitter: ClosedUnitInterval = 0.0
    """share of crops whose colours are jittered"""
    jitter_strength: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, HueTurn] = (0.5, 0.5, 0.5, 0.25)
    """largest change of brightness, contrast and saturation (shares) and of the hue (turns, at most 0.5)"""
    grey: ClosedUnitInterval = 0.0
    """share of crops that are made grey"""
    photometric: tuple[Literal["main", "labelled"], ...] = ("main",)
    """streams whose crops are blurred, jittered and made grey: the training images (main), those of labelled.split"""
    labelled: LabelledConfig = field(default_factory=LabelledConfig)

    def __post_init__(self):
        for name, (least, most) in (("scale", self.scale), ("blur_sigma", self.blur_sigma)):
            if least > most:
                raise UserError(f"data.{name} {[least, most]}: the smaller number comes first")


@dataclass
class ModelConfig:
    """The network."""

    backbone: Backbone = "resnet50"
    """torchvision ResNet: of stride 8 (CC4S), or with a deep stem and stride 32 (BLPSeg)"""
    weights: str = "imagenet"
    """where the backbone starts: none, imagenet, one of torchvision's names (IMAGENET1K_V1), or a state-dict file"""


@dataclass
class MethodConfig:
    """What is trained. Each method's own dataclass, beside its code, adds its settings."""

    name: str
    """which method; its own settings follow"""


@dataclass
class TrainConfig:
    """The loop."""

    batch_size: PositiveInt = 16
    """images a step, over all processes and accumulated parts"""
    accumulate: PositiveInt = 1
    """split each process's share of a batch into this many forward passes"""
    epochs: PositiveFloat = 50.0
    """passes over the training split"""
    steps: PositiveInt | None = None
    """optimizer steps; replaces epochs"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW"""
    lr: PositiveFloat = 1e-3
    """learning rate at the first step, but for lr_factor; it depends on the data and the network"""
    lr_factor: PositiveFloat = 1.0
    """the stage multiplies lr by this factor; a stage that goes on from a trained network may want a lower rate"""
    head_lr_factor: PositiveFloat = 1.0
    """the rate of all weights outside the backbone is multiplied by this factor"""
    momentum: NonNegativeFloat = 0.9
    """momentum of SGD"""
    weight_decay: NonNegativeFloat = 5e-4
    """L2 penalty (SGD) or decoupled decay (AdamW)"""
    poly_power: NonNegativeFloat = 0.9
    """learning rate at a step: lr * lr_factor * (1 - step / steps) ** poly_power"""
    precision: Precision = "auto"
    """autocast type; auto takes bf16 where the device computes in it, else fp32 (on CUDA as PyTorch has it, with
    convolutions in TF32); fp16 needs CUDA and scales its loss"""
    device: Device = "auto"
    """auto takes CUDA where there is one"""
    workers: NonNegativeInt = 2
    """processes that load data, for each process that trains"""
    loader_timeout: NonNegativeInt = 300
    """seconds that a batch may take to load before the run stops, naming the files that hang; 0 waits for ever"""
    seed: NonNegativeInt = 0
    """random seed of weights, order and augmentation"""
    val_epochs: PositiveFloat = 1.0
    """validate every so many epochs, and after the last step"""
    val_steps: PositiveInt | None = None
    """validate every so many steps; replaces val_epochs"""
    inspect_steps: PositiveInt | None = None
    """look inside every so many steps: gradients of the loss terms, the walk's figures; unset: with every validation"""
    log_every: PositiveInt = 20
    """steps between lines in metrics.jsonl and TensorBoard"""


@dataclass
class Config:
    """One stage of training."""

    method: MethodConfig
    out: str = "runs/train"
    """run folder: config.yaml, run.json, last.pt, best.pt, metrics.jsonl, pictures.png, report.html, TensorBoard events; a run
    that stopped goes on"""
    init: str | None = None
    """checkpoint to start from, an earlier stage's best.pt"""
    teacher: str | None = None
    """checkpoint of a trained network that a method learns from; the network stays as it is"""
    fresh: bool = False
    """start over where OUT holds a run, deleting it and its pseudo-labels"""
    skip_nonfinite: NonNegativeInt = 0
    """steps whose loss is not finite that are left out before the run stops; over 0, every step waits for its loss"""
    deterministic: bool = False
    """the same weights every time on the same machine, at some cost in speed on a GPU"""
    compile: bool = False
    """torch.compile the backbone; without a compiler it runs as it is"""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class InferenceConfig:
    """How an image is predicted: averaged over scales, flips and windows."""

    scales: tuple[PositiveFloat, ...] = (1.0,)
    """scales whose predictions are averaged"""
    average: Literal["probabilities", "logits"] = "probabilities"
    """what is averaged; of logits (as BLPSeg's released evaluation does), the softmax follows"""
    long_side: PositiveInt | None = None
    """the longer side at scale 1, pixels; unset: the image's own"""
    window: PositiveInt | None = None
    """side of the sliding window, pixels; unset: whole images"""
    window_stride: WindowStride = 2 / 3
    """step between windows, as a share of their side"""
    flip: bool = False
    """average with the mirrored image"""
    batch_pixels: PositiveInt = 1_000_000
    """pixels that go through the network at once: up to 4 images of one size, their windows and mirror images"""

    def __post_init__(self):
        if not self.scales:
            raise UserError("inference.scales is empty: give at least one, such as [1.0]")


@dataclass
class CrfConfig:
    """The dense CRF: mean-field steps and the two pairwise terms, CC4S's by default."""

    iterations: NonNegativeInt = 10
    """mean-field steps"""
    gaussian_sxy: Deviation = 3.0
    """standard deviation of the smoothness term, pixels"""
    gaussian_compat: NonNegativeFloat = 3.0
    """weight of the smoothness term"""
    bilateral_sxy: Deviation = 80.0
    """standard deviation of the appearance term in place, pixels"""
    bilateral_srgb: Deviation = 13.0
    """standard deviation of the appearance term in colour, values of 0-255"""
    bilateral_compat: NonNegativeFloat = 10.0
    """weight of the appearance term"""


@dataclass
class RunConfig:
    """Where a checkpoint is run."""

    device: Device = "auto"
    """auto takes CUDA where there is one"""
    precision: Precision = "auto"
    """autocast type; auto takes bf16 where the device computes in it, else fp32; fp16 needs CUDA"""


@dataclass
class SplitConfig:
    """The images to score and their truth."""

    root: str = "data/demo"
    """the data set, in one of the layouts of docs/data.md; data/demo is drawn when missing"""
    labels: str = "SegmentationClass"
    """dense masks: a folder of root, or a path; 255 does not count"""
    split: str = "val"
    """list of images"""


@dataclass
class EvaluateConfig:
    """An evaluation."""

    checkpoint: str
    """a run's best.pt"""
    out: str = "runs/evaluation"
    """folder for metrics.json and report.html"""
    preset: str = "fast"
    """settings of inference, configs/evaluate/NAME.yaml: fast (one scale, whole images), cc4s, multi_scale or blpseg"""
    crf: Crf = "none"
    """refine the averaged probabilities by a dense CRF, by the project's own code or by pydensecrf"""
    crf_per_scale: bool = False
    """refine each scale's probabilities before they are averaged, as CC4S's released code does; not with average: logits"""
    compare: str | None = None
    """another evaluation's folder, to set the classes' scores beside in report.html"""
    scribbles: str = "scribbles"
    """shown in report.html where an image has them: a folder of data.root, or a path"""
    save_masks: str | None = None
    """folder for the predicted masks, NAME.png in PASCAL VOC's colours"""
    workers: NonNegativeInt = 2
    """processes that load images"""
    data: SplitConfig = field(default_factory=SplitConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    crf_parameters: CrfConfig = field(default_factory=CrfConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class PredictConfig:
    """Prediction of images, as masks or as pseudo-labels."""

    checkpoint: str
    """a run's best.pt"""
    images: str
    """an image, a folder of images, a text file of paths (one per line, relative to it), or (with --split) a data set's root"""
    out: str
    """folder for the label PNGs, overlays, gallery.jpg, and predictions.json or pseudo_labels.json"""
    split: str | None = None
    """predict the images of this split of the data set"""
    pseudo_labels: bool = False
    """keep what is certain: pixels whose probability is over the threshold; the rest is 255"""
    threshold: ClosedUnitInterval = 0.9
    """probability over which a prediction is a pseudo-label"""
    class_thresholds: dict[str, ClosedUnitInterval] = field(default_factory=dict)
    """the same of some classes, by name, such as '{cat: 0.7}'"""
    classes: Literal["scribbled", "tags", "all"] = "scribbled"
    """which classes an image may have. scribbled: with --scribbles, those scribbled in it; if nothing is scribbled, all. tags:
    the first class and those that the data set's tags.json gives it (needs --split). all: any"""
    crf: Crf = "none"
    """refine the probabilities by a dense CRF"""
    probabilities: bool = False
    """write them too: OUT/probabilities/NAME.npz, float16"""
    shard: str = "1/1"
    """part of the images, i/n: run 1/4, 2/4, 3/4 and 4/4 on four machines"""
    scribbles: str | None = None
    """folder of label PNGs that win over the pseudo-labels where they are not 255"""
    truth: str = "SegmentationClass"
    """dense masks that pseudo-labels are compared with where they exist: a folder of the data set, or a path (--split)"""
    preset: str = "fast"
    """settings of inference, configs/evaluate/NAME.yaml"""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    crf_parameters: CrfConfig = field(default_factory=CrfConfig)
    run: RunConfig = field(default_factory=RunConfig)
