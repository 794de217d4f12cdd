"""The command line: config files, flags and error messages."""

import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import yaml
from conftest import REPOSITORY

import config as settings
from command_line import NUMBERS, parse
from config import Config, EvaluateConfig, PredictConfig
from errors import UserError
from methods import SETTINGS

CONFIGS = REPOSITORY / "configs"


def parse_train(arguments):
    """The configuration as train.py reads it."""
    return parse(Config, "", arguments, methods=SETTINGS)


def test_flags_override_files_and_later_files_override_earlier_files(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {lr: 0.5, steps: 7}\n")
    config = parse_train(["--config", str(CONFIGS / "cc4s/ss.yaml"), "--config", str(file), "--train.lr", "0.25"])
    assert (config.train.lr, config.train.steps, config.method.consistency) == (0.25, 7, 30)


STAGES = ("baseline", "ur", "ss", "ur_stage2", "ss_stage2")
DATASETS = [path for path in sorted((CONFIGS / "cc4s").glob("*.yaml")) if path.stem not in STAGES]


@cache
def stage_alone(stage):
    return parse_train(["--config", str(stage), "--data.labels", "runs/ss/pseudo_labels"])


@pytest.mark.parametrize("stage", [CONFIGS / f"cc4s/{stage}.yaml" for stage in STAGES], ids=lambda path: path.stem)
@pytest.mark.parametrize("dataset", DATASETS, ids=lambda path: path.stem)
def test_every_stage_config_combines_with_every_dataset_config(stage, dataset):
    """The dataset's config comes last, as in the scripts. It must not change the losses and labels of the stage."""
    stage_only = stage_alone(stage)
    both = parse_train(["--config", str(stage), "--data.labels", "runs/ss/pseudo_labels", "--config", str(dataset)])
    for section, values in yaml.safe_load(dataset.read_text()).items():
        for key, value in values.items():
            parsed = getattr(getattr(both, section), key)
            assert (list(parsed) if isinstance(parsed, tuple) else parsed) == value
    assert (both.method, both.data.labels) == (stage_only.method, stage_only.data.labels)


def test_every_config_file_names_the_method_of_its_folder():
    files = [path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in ("cost", "evaluate", "volumes")]
    assert len(files) >= 16
    for path in files:
        assert yaml.safe_load(path.read_text())["method"]["name"] == path.relative_to(CONFIGS).parts[0]


@pytest.mark.parametrize("peer, term", [("em", "entropy"), ("gated_crf", "gated_crf"), ("tel", "tree_energy")])
def test_a_peer_is_the_baseline_with_one_more_term_on_every_data_set(peer, term):
    baseline, config = (["--config", str(CONFIGS / f"cc4s/{name}.yaml")] for name in ("baseline", f"peers/{peer}"))
    for more in ([], ["--config", str(CONFIGS / "cc4s/acdc.yaml")]):
        plain, both = parse_train([*baseline, *more]), parse_train([*baseline, *config, *more])
        assert getattr(both.method, term) > 0
        assert replace(both, method=replace(both.method, **{term: 0.0})) == plain


def test_config_files_of_two_methods_are_refused():
    files = ["--config", "configs/blpseg/voc.yaml", "--config", "configs/cc4s/acdc.yaml"]
    wanted = "--config configs/blpseg/voc.yaml is for method blpseg, but --config configs/cc4s/acdc.yaml for cc4s"
    with pytest.raises(UserError, match=wanted):
        parse_train(files)
    with pytest.raises(UserError, match=r"acdc.yaml is for method cc4s, but --method.name for blpseg"):
        parse_train([*files[2:], "--method.name", "blpseg"])


@pytest.mark.parametrize("dataset", ["pascal_context", "acdc", "camvid", "demo"])
def test_the_blpseg_config_combines_with_every_dataset_config(dataset):
    first, last = (["--config", str(CONFIGS / f"blpseg/{name}.yaml")] for name in ("voc", dataset))
    published, ours = parse_train(first), parse_train([*first, *last])
    assert type(ours.method) is SETTINGS["blpseg"] and ours.method.gamma == 2
    assert ours.method.self_training_from != published.method.self_training_from
    assert (ours.data.labels, ours.train.optimizer) == ("scribbles", "adamw")


def test_the_blpseg_configs_have_the_published_schedules():
    """https://github.com/YudeWang/BLPSeg, experiment/blpseg-voc/config.py and blpseg-context/config.py."""
    voc = ["--config", str(CONFIGS / "blpseg/voc.yaml")]
    for flags, train, start in (
        (voc, (3e-5, 10, 40), 10_000),
        ([*voc, "--config", str(CONFIGS / "blpseg/pascal_context.yaml")], (2.4e-5, 8, 85), 20_000),
    ):
        config = parse_train(flags)
        assert (config.train.lr, config.train.batch_size, config.train.epochs) == train
        assert (config.train.optimizer, config.train.weight_decay, config.train.poly_power) == ("adamw", 0.01, 0.9)
        assert (config.data.crop, config.data.scale, config.data.rotation, config.data.blur) == (384, (0.75, 1.25), 0, 0)
        assert config.model.backbone == "resnet101"
        method = config.method
        assert (method.gamma, method.sigma, method.width, method.unlabelled_weight) == (2, 6, 256, 0.02)
        assert (method.self_training_from, method.threshold) == (start, 0.9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, stage", [*(("cisc_r", stage) for stage in ("supervised", "pairs", "self_training", "retrain")), ("unimatch", None)]
)
def test_the_configs_of_few_labels_combine(method, stage):
    """As in their scripts: VOC's first, then the stage's, then the data set's."""
    before = [CONFIGS / method / "voc.yaml", *([CONFIGS / method / f"{stage}.yaml"] if stage else [])]
    alone = parse_train([flag for file in before for flag in ("--config", str(file))])
    for name in ("cityscapes", "camvid", "acdc", "demo", *(["coco"] if method == "cisc_r" else [])):
        files = [*before, CONFIGS / method / f"{name}.yaml"]
        both = parse_train([flag for file in files for flag in ("--config", str(file))])
        assert both.data.photometric == alone.data.photometric and both.data.jitter == 0.8
        if method == "cisc_r":  # a background of anything is no class to share
            assert both.data.partners.first_class == (name in ("cityscapes", "camvid"))
        same_network = replace(both.method, network=alone.method.network)  # a data set's config may choose another network
        assert same_network == alone.method or (method, name) == ("unimatch", "cityscapes")
        if both.model.backbone == "timm:efficientnet_lite0":
            assert both.data.crop % 32 == 1 and both.train.optimizer == "adamw"


def test_the_configs_of_few_labels_have_the_published_schedules():
    """https://github.com/Luffy03/CISC-R, train.py; https://github.com/LiheYoung/UniMatch, configs/."""
    for method, name, (crop, batch, epochs, lr, head) in (
        ("cisc_r", "voc", (321, 32, 80, 1e-3, 10)), ("cisc_r", "cityscapes", (721, 32, 160, 4e-3, 10)),
        ("unimatch", "voc", (321, 8, 80, 1e-3, 10)), ("unimatch", "cityscapes", (769, 8, 240, 5e-3, 1)),
    ):  # fmt: skip
        files = dict.fromkeys([CONFIGS / method / "voc.yaml", CONFIGS / method / f"{name}.yaml"])
        config = parse_train([flag for file in files for flag in ("--config", str(file))])
        train, data = config.train, config.data
        assert (data.crop, train.batch_size, train.epochs, train.lr, train.head_lr_factor) == (crop, batch, epochs, lr, head)
        assert (train.optimizer, train.momentum, train.weight_decay, train.poly_power) == ("sgd", 0.9, 1e-4, 0.9)
        assert (data.jitter, data.jitter_strength, data.grey, data.blur) == (0.8, (0.5, 0.5, 0.5, 0.25), 0.2, 0.5)
        assert (data.blur_sigma, data.rotation) == ((0.1, 2.0), 0)
        assert config.data.partners.first_class == ((method, name) != ("cisc_r", "voc"))


def test_other_dataset_configs_have_the_published_sizes():
    def with_ur(name):
        return parse_train(["--config", str(CONFIGS / "cc4s/ur.yaml"), "--config", str(CONFIGS / f"cc4s/{name}.yaml")])

    context, cityscapes = with_ur("pascal_context"), with_ur("cityscapes")
    assert (context.model.backbone, context.data.crop, context.train.epochs) == ("resnet101", 465, 50)
    assert cityscapes.data.crop >= 720 and cityscapes.data.crop % 8 == 1


def test_every_restricted_number_type_has_an_error_text():
    kinds = {name for name, kind in vars(settings).items() if isinstance(kind, type) and issubclass(kind, (int, float))}
    assert {"PositiveInt", "WindowStride"} <= kinds <= set(NUMBERS)


def test_parsed_values_are_plain_numbers(tmp_path):
    config = parse_train(["--train.batch_size", "3", "--data.scale", "[0.5, 1]"])
    assert type(config.train.batch_size) is int and type(config.data.scale[1]) is float


@pytest.mark.parametrize("arguments, message", [
    (["--data.crpo", "3"], "unknown key data.crpo: did you mean data.crop?"),
    (["--batch_size", "3"], "unknown key batch_size: did you mean train.batch_size?"),
    (["--method.name", "blpseg", "--method.sigma", "1e-20"], "method.sigma: 0 or a number of at least 0.01 is expected"),
    (["--train.batch_size", "0"], "train.batch_size: a whole number over 0 is expected, not 0"),
    (["--train.steps", "0"], "train.steps: a whole number over 0 is expected, not 0"),
    (["--fresh", "yes", "--data.crpo", "3"], "did you mean data.crop?"),
    (["--train.steps", "many"], "train.steps: a whole number over 0 is expected, not many"),
    (["--train.lr", "fast"], "train.lr: a number over 0 is expected, not fast"),
    (["--data.flip", "2"], "data.flip: a number from 0 to 1 is expected, not 2"),
    (["--data.scale", "[1, inf]"], "data.scale is inf: a finite number is expected"),
    (["--fresh", "yes"], "yes: no flag takes this value"),
    (["--train.precision", "bfloat16"], "train.precision bfloat16: did you mean bf16? choose auto, fp32, bf16, fp16"),
    (["--method.view", "flap"], "method.view flap: did you mean flip? choose flip, crop, random"),
    (["--config", "no/such.yaml"], "no/such.yaml"),
    (["stray"], "stray"),
    (["--train.seed", "-1"], "train.seed"),
    (["--train.epochs", "inf"], "train.epochs is inf"),
    (["--data.scale", "[2.0, 0.5]"], "the smaller number comes first"),
    (["--method.name", "cc5s"], "method.name cc5s: choose cc4s, blpseg"),
    (["--method.name", "blpseg", "--method.soft_entropy", "1"], "unknown key method.soft_entropy"),
    (["--method.gama", "1", "--method.name=blpseg"], "did you mean method.gamma?"),
])  # fmt: skip
def test_mistakes_on_the_command_line_give_one_error_line(arguments, message):
    with pytest.raises(UserError) as caught:
        parse_train(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ['--method={"name": "blpseg"}', '--config={"method": {"name": "blpseg"}}'])
def test_a_method_name_inside_a_json_flag_is_refused(argument):
    with pytest.raises(UserError, match=r"method\.name blpseg: name the method by --method\.name"):
        parse_train([argument])


@pytest.mark.parametrize("content, message", [
    ("method: {name: [a]}", "choose cc4s, blpseg"),
    ("method: 3", "method"),
    ("data: {crpo: 3}", "did you mean data.crop?"),
    ("dta: {crop: 3}", "unknown key dta"),
    ("data: 3", "data is a section"),
    ("data: [1", "config"),
    (b"out: caf\xe9", "decode"),
])  # fmt: skip
def test_mistakes_in_a_config_file_give_one_error_line(tmp_path, content, message):
    file = tmp_path / "config.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        parse_train(["--config", str(file)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_override_a_preset():
    config = parse(EvaluateConfig, "", ["--checkpoint", "x", "--preset", "cc4s", "--inference.window", "97"])
    assert config.inference.window == 97
    assert config.inference.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    blpseg = parse(EvaluateConfig, "", ["--checkpoint", "x", "--preset", "blpseg"]).inference
    assert (blpseg.scales, blpseg.flip, blpseg.average) == ((0.5, 0.75, 1.0, 1.25), True, "logits")
    assert (blpseg.window, blpseg.long_side) == (None, None)
    assert parse(EvaluateConfig, "", ["--checkpoint", "x"]).inference.scales == (1.0,)
    with pytest.raises(UserError, match="choose blpseg, cc4s, cisc_r, fast, multi_scale"):
        parse(EvaluateConfig, "", ["--checkpoint", "x", "--preset=quick"])


def test_a_preset_in_a_file_is_refused_rather_than_ignored(tmp_path):
    (tmp_path / "config.yaml").write_text("preset: cc4s")
    with pytest.raises(UserError, match="give --preset cc4s"):
        parse(EvaluateConfig, "", ["--checkpoint", "x", "--config", str(tmp_path / "config.yaml")])


@pytest.mark.parametrize("flags", [["--inference.scales", "[]"], ["--inference.window_stride", "1.5"]])
def test_inference_settings_that_leave_gaps_are_refused(flags):
    with pytest.raises(UserError, match=flags[0].removeprefix("--")):
        parse(EvaluateConfig, "", ["--checkpoint", "x", *flags])


def test_a_boolean_flag_may_stand_alone_or_take_a_value():
    needed = ["--checkpoint", "x", "--images", "y", "--out", "z"]
    assert parse(PredictConfig, "", [*needed, "--pseudo_labels", "--threshold", "0.5"]).pseudo_labels
    assert not parse(PredictConfig, "", [*needed, "--pseudo_labels", "false"]).pseudo_labels
    assert not parse(PredictConfig, "", needed).pseudo_labels


@pytest.mark.slow
def test_help_shows_how_to_call_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "tools.scribbles", "generate", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.startswith("usage: python -m tools.scribbles generate ")
