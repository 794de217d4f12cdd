"""The settings: typed dataclasses with their defaults. command_line.py fills them from files and flags."""

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

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
Crf = Literal["none", "torch", "pydensecrf"]
BoardName = Literal["tensorboard", "mlflow", "wandb"]
if TYPE_CHECKING:
    Deviation = float
    ZeroOrDeviation = float
    HueTurn = float
    WindowStride = float
else:  # command_line.NUMBERS describes these types in error messages
    # The standard deviation of a Gaussian. Under 0.01, the Gaussian reaches no other pixel.
    Deviation = restricted_number_type("Deviation", float, [(">=", 0.01)])
    ZeroOrDeviation = restricted_number_type("ZeroOrDeviation", float, [("==", 0), (">=", 0.01)], join="or")
    HueTurn = restricted_number_type("HueTurn", float, [(">=", 0), ("<=", 0.5)])
    WindowStride = restricted_number_type("WindowStride", float, [(">", 0), ("<=", 1)])  # over 1 would leave gaps


@dataclass
class LabelledConfig:
    """Labelled images beside the training images, for methods that learn from few labels."""

    split: str | None = None
    """list of labelled images: a split of the data set, or a path that ends in .txt; only some methods read it"""
    labels: str = "SegmentationClass"
    """labels of data.labelled.split: a folder of data.root, or a path"""


@dataclass
class PartnersConfig:
    """Partners of the training images, for CISC-R: labelled images that show the same class."""

    lists: str | None = None
    """names of the labelled images by class, partners.json of tools.reliable; unset: a class lists each labelled image in which
    the class covers 3% of the labelled pixels"""
    first_class: bool = True
    """whether class 0 may be the shared class; false if class 0 is a background of anything"""


@dataclass
class DataConfig:
    """Images and labels, and augmentation of the training images."""

    root: str = "data/demo"
    """folder of the data set, in a layout of docs/data.md; data/demo is drawn if it is missing"""
    labels: str = "scribbles"
    """training labels: a folder of data.root, or a path; palette or grey PNGs of class ids, 255 = unlabelled"""
    truth: str = "SegmentationClass"
    """dense masks for validation: a folder of data.root, or a path"""
    train_split: str = "train"
    """list of training images: a split of the data set, or a path that ends in .txt"""
    val_split: str = "val"
    """list of validation images: a split of the data set, or a path that ends in .txt"""
    superpixels: str = "superpixels"
    """superpixels that tools.superpixels made: a folder of data.root, or a path"""
    tags: Literal["labels", "file"] = "labels"
    """source of a training image's tags (its classes), for methods that read tags: the image's labels, or tags.json"""
    crop: PositiveInt = 257
    """side of the training crop, pixels; a side of 8k + 1 fits the stride-8 feature map exactly"""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    """range of the random scale factor"""
    rotation: NonNegativeFloat = 10.0
    """largest random rotation, degrees in either direction"""
    rotation_probability: ClosedUnitInterval = 0.5
    """share of crops that are rotated"""
    flip: ClosedUnitInterval = 0.5
    """share of crops that are mirrored left-right"""
    blur: ClosedUnitInterval = 0.5
    """share of crops that are blurred by a Gaussian"""
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.15, 1.15)
    """range of the blur's standard deviation, pixels"""
    jitter: ClosedUnitInterval = 0.0
    """share of crops with jittered colours"""
    jitter_strength: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, HueTurn] = (0.5, 0.5, 0.5, 0.25)
    """largest relative change of brightness, contrast and saturation; largest turn of the hue (full turns, at most 0.5)"""
    grey: ClosedUnitInterval = 0.0
    """share of crops that are converted to grey"""
    photometric: tuple[Literal["main", "labelled", "partner", "strong"], ...] = ("main",)
    """images to blur, jitter and convert to grey: main (the training images), labelled (data.labelled.split), partner, strong
    (two more versions of the training images, for UniMatch)"""
    labelled: LabelledConfig = field(default_factory=LabelledConfig)
    partners: PartnersConfig = field(default_factory=PartnersConfig)

    def __post_init__(self):
        for name, (least, most) in (("scale", self.scale), ("blur_sigma", self.blur_sigma)):
            if least > most:
                raise UserError(f"data.{name} {[least, most]}: the smaller number comes first")


@dataclass
class ModelConfig:
    """The network and its first weights."""

    backbone: str = "resnet50"
    """the encoder: a torchvision ResNet (resnet18, 34, 50, 101, 152), or timm:NAME for a timm network; docs/encoders.md"""
    weights: str = "imagenet"
    """first weights of the backbone: none (random), imagenet, a name of torchvision (IMAGENET1K_V1) or timm (in1k), or a file
    of a state dict (.pt, .pth, .safetensors)"""
    maps: Literal["auto", "dilated", "fused"] = "auto"
    """how networks make a map of stride 8 (not BLPSeg's). dilated: dilate the last stages. fused: fuse the encoder's maps.
    auto: dilated for torchvision's ResNets, fused for timm's networks"""
    decoder: Literal["none", "lowlevel", "unet"] = "none"
    """finer maps for CC4S's networks: none (stride 8, as published), lowlevel (stride 4) or unet (full size)"""


@dataclass
class MethodConfig:
    """The method. Each method has its own dataclass beside its code, with more settings."""

    name: str
    """name of the method"""


@dataclass
class TrainConfig:
    """The training loop."""

    batch_size: PositiveInt = 16
    """images per step, over all processes and accumulated parts"""
    accumulate: PositiveInt = 1
    """number of forward passes that share a process's part of a batch"""
    epochs: PositiveFloat = 50.0
    """passes over the training split"""
    steps: PositiveInt | None = None
    """number of optimizer steps; replaces train.epochs"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """optimizer: SGD with momentum, or AdamW"""
    lr: PositiveFloat = 1e-3
    """learning rate at the first step, before train.lr_factor; the best value depends on the data and the network"""
    lr_factor: PositiveFloat = 1.0
    """factor of the stage on train.lr; a stage that starts from a trained network may need a lower rate"""
    head_lr_factor: PositiveFloat = 1.0
    """factor on the learning rate of all weights outside the backbone"""
    momentum: NonNegativeFloat = 0.9
    """momentum of SGD"""
    weight_decay: NonNegativeFloat = 5e-4
    """L2 penalty (sgd) or decoupled weight decay (adamw)"""
    poly_power: NonNegativeFloat = 0.9
    """exponent of the learning rate schedule, lr * lr_factor * (1 - step / steps) ** poly_power"""
    precision: Precision = "auto"
    """type for autocast. auto: bf16 if the device has bf16 instructions, else fp32. fp32 on CUDA: PyTorch's default, with
    convolutions in TF32. fp16: needs CUDA and scales the loss"""
    device: Device = "auto"
    """device; auto: CUDA if there is a GPU, else the CPU"""
    workers: NonNegativeInt = 2
    """loader workers of each training process"""
    loader_timeout: NonNegativeInt = 300
    """seconds to wait for a batch; then the run stops and names the files that the workers read; 0 waits forever"""
    seed: NonNegativeInt = 0
    """random seed of weights, image order and augmentation"""
    val_epochs: PositiveFloat = 1.0
    """epochs between validations; the run also validates after the last step"""
    val_steps: PositiveInt | None = None
    """steps between validations; replaces train.val_epochs"""
    inspect_steps: PositiveInt | None = None
    """steps between looks inside (gradients of the loss terms, figures of the method); unset: with every validation"""
    log_every: PositiveInt = 20
    """steps between lines in metrics.jsonl and TensorBoard"""


@dataclass
class Config:
    """One stage of training."""

    method: MethodConfig
    out: str = "runs/train"
    """run folder for config.yaml, run.json, last.pt, best.pt, metrics.jsonl, pictures, report.html and TensorBoard events;
    a stopped run in this folder resumes"""
    init: str | None = None
    """checkpoint with the first weights, such as an earlier stage's best.pt"""
    teacher: str | None = None
    """checkpoint of a trained network that the method learns from; training does not change this network"""
    fresh: bool = False
    """start over: delete the run in --out and its pseudo-labels"""
    skip_nonfinite: NonNegativeInt = 0
    """number of non-finite steps to skip before stopping; over 0, every step waits for its loss"""
    deterministic: bool = False
    """repeated runs on one machine end with the same weights; slower on a GPU"""
    log: tuple[BoardName, ...] = ("tensorboard",)
    """where to watch the run, beside metrics.jsonl: tensorboard, mlflow, wandb; [] for none"""
    compile: bool = False
    """compile the backbone with torch.compile; without a compiler, the backbone runs uncompiled"""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class InferenceConfig:
    """Prediction of an image, averaged over scales, mirror images and windows."""

    scales: tuple[PositiveFloat, ...] = (1.0,)
    """scales of the image; the predictions at all scales are averaged"""
    average: Literal["probabilities", "logits"] = "probabilities"
    """average probabilities, or average logits and then take the softmax (as in BLPSeg's released evaluation)"""
    long_side: PositiveInt | None = None
    """longer side of the image at scale 1, pixels; unset: the image's own size"""
    window: PositiveInt | None = None
    """side of the sliding window, pixels; unset: predict whole images"""
    window_stride: WindowStride = 2 / 3
    """step between windows, as a share of the window's side"""
    flip: bool = False
    """predict the mirrored image, too, and average"""
    nearest: bool = False
    """resize logits and probabilities by nearest neighbour (as in RecurSeed's released evaluation). For recurseed"""
    tag_gate: ClosedUnitInterval | None = None
    """keep a class only if the classifier of tags gives it at least this probability, a mean over all views. With --classes
    tags, predict.py takes the tags of tags.json instead. For recurseed"""
    seed_scores: bool = False
    """divide the probabilities of each class by their largest in the image, and take class 0 (the background) where all other
    classes are low"""
    background_power: PositiveFloat = 2.0
    """exponent of seed_scores: the score of class 0 is (1 - largest score of the others) ** background_power"""
    batch_pixels: PositiveInt = 1_000_000
    """most pixels in a forward pass, which takes up to 4 images of one size with their windows and mirror images"""

    def __post_init__(self):
        if not self.scales:
            raise UserError("inference.scales is empty: give at least one scale, such as [1.0]")
        if self.seed_scores and self.tag_gate is None:  # a class that is nowhere would have a score of 1 somewhere
            raise UserError("--inference.seed_scores requires --inference.tag_gate")
        if self.background_power != 2 and not self.seed_scores:
            raise UserError("--inference.background_power requires --inference.seed_scores")


@dataclass
class CrfConfig:
    """The dense CRF: mean-field steps and two pairwise terms, with CC4S's defaults."""

    iterations: NonNegativeInt = 10
    """mean-field steps of the CRF"""
    gaussian_sxy: Deviation = 3.0
    """standard deviation of the CRF's smoothness term, pixels"""
    gaussian_compat: NonNegativeFloat = 3.0
    """weight of the CRF's smoothness term"""
    bilateral_sxy: Deviation = 80.0
    """standard deviation of the CRF's appearance term in space, pixels"""
    bilateral_srgb: Deviation = 13.0
    """standard deviation of the CRF's appearance term in colour, where colours are 0 to 255"""
    bilateral_compat: NonNegativeFloat = 10.0
    """weight of the CRF's appearance term"""


@dataclass
class RunConfig:
    """Device and precision."""

    device: Device = "auto"
    """device; auto: CUDA if there is a GPU, else the CPU"""
    precision: Precision = "auto"
    """type for autocast. auto: bf16 if the device has bf16 instructions, else fp32. fp16: needs CUDA"""


@dataclass
class SplitConfig:
    """The images to score and their dense masks."""

    root: str = "data/demo"
    """folder of the data set, in a layout of docs/data.md; data/demo is drawn if it is missing"""
    labels: str = "SegmentationClass"
    """dense masks: a folder of data.root, or a path; pixels of 255 are ignored"""
    split: str = "val"
    """list of images to score: a split of the data set, or a path that ends in .txt"""


@dataclass
class EvaluateConfig:
    """An evaluation."""

    checkpoint: str
    """checkpoint, such as a run's best.pt; or a shared model: a folder, or hf:USER/NAME"""
    out: str = "runs/evaluation"
    """folder for metrics.json and report.html"""
    preset: str = "fast"
    """inference settings from configs/evaluate/NAME.yaml: fast (one scale, whole images), cc4s, multi_scale, blpseg,
    cisc_r or recurseed"""
    crf: Crf = "none"
    """refine the averaged probabilities by a dense CRF: torch (the project's own code) or pydensecrf"""
    crf_per_scale: bool = False
    """refine the probabilities of each scale before averaging, as in CC4S's released code; not with averaged logits"""
    compare: str | None = None
    """folder of another evaluation; report.html compares the class scores"""
    scribbles: str = "scribbles"
    """scribbles to show in report.html if they exist: a folder of data.root, or a path"""
    save_masks: str | None = None
    """folder for the predicted masks, NAME.png in PASCAL VOC's colours"""
    volumes: str | None = None
    """regular expression for images that are slices of scans: images with an equal match are a volume, such as
    'patient\\d+_frame\\d+'; also scores 3-D Dice and the 95% Hausdorff distance"""
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """distance of slices, rows and columns in mm, for --volumes; if unset: from the data set's spacing.json; without this file,
    distances are in pixels"""
    workers: NonNegativeInt = 2
    """loader workers of each process"""
    data: SplitConfig = field(default_factory=SplitConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    crf_parameters: CrfConfig = field(default_factory=CrfConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class PredictConfig:
    """Prediction of masks or pseudo-labels."""

    checkpoint: str
    """checkpoint, such as a run's best.pt; or a shared model: a folder, or hf:USER/NAME"""
    images: str
    """an image, a folder of images, a text file of paths (one per line, relative to the file), or, with --split, a data set"""
    out: str
    """folder for the label PNGs, overlays, gallery.jpg, and predictions.json or pseudo_labels.json"""
    split: str | None = None
    """predict this split of the data set in --images"""
    pseudo_labels: bool = False
    """write pseudo-labels: the class where its probability is over the threshold, 255 elsewhere"""
    threshold: ClosedUnitInterval = 0.9
    """a pixel gets a pseudo-label if its probability is over this threshold"""
    class_thresholds: dict[str, ClosedUnitInterval] = field(default_factory=dict)
    """thresholds of some classes by name, such as '{cat: 0.7}'; the others have --threshold"""
    classes: Literal["scribbled", "tags", "all"] = "scribbled"
    """classes that an image may have. scribbled: the classes of the image's scribbles (all classes without a scribble). tags:
    class 0 and the image's classes in tags.json (needs --split). all: any class"""
    crf: Crf = "none"
    """refine the probabilities by a dense CRF: torch (the project's own code) or pydensecrf"""
    probabilities: bool = False
    """also write the probabilities, OUT/probabilities/NAME.npz, float16"""
    shard: str = "1/1"
    """part i/n of the images to predict: run 1/4, 2/4, 3/4 and 4/4 on four machines"""
    scribbles: str | None = None
    """folder of scribbles (label PNGs); a scribble replaces the pseudo-label where it is not 255"""
    truth: str = "SegmentationClass"
    """dense masks to compare pseudo-labels with, if they exist (needs --split): a folder of the data set, or a path"""
    preset: str = "fast"
    """inference settings from configs/evaluate/NAME.yaml: fast (one scale, whole images), cc4s, multi_scale, blpseg,
    cisc_r or recurseed"""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    crf_parameters: CrfConfig = field(default_factory=CrfConfig)
    run: RunConfig = field(default_factory=RunConfig)
