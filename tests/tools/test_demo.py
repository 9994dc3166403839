"""The demo as a user meets it: its output, its picture, its exit codes; and the readers of the files it learns from."""

import copy
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import conv_ext
from conv_ext.__main__ import gpus, main, runs_on
from conv_ext.demo import compare as demo
from conv_ext.demo.data import load_digits
from conv_ext.demo.training import History, Recipe, Training, largest_difference, same_bits
from conv_ext.models import lenet5

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("numpy")


def started(arguments, folder, **options):
    """`python -m conv_ext` in another folder than the checkout."""
    path = os.pathsep.join([str(Path(conv_ext.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "conv_ext", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def outcome(capsys, *arguments):
    """The exit code, what went to stdout, what went to stderr."""
    try:
        code = main(list(map(str, arguments)))
    except SystemExit as stop:  # how argparse leaves
        code = stop.code
    return code, *capsys.readouterr()


def assert_picture(path):
    from matplotlib.image import imread

    pixels = imread(path)
    assert pixels.shape[0] > 600 and pixels.shape[1] > 900 and pixels.std() > 0.1


def test_demo_as_a_command(tmp_path):
    process = started(["demo", "--epochs", "1", "--threads", "1"], tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert "LeNet-5 (61,706 parameters)" in out and "1,437 images to train, 360 to test" in out
    assert re.search(r"test accuracy +\d+\.\d\d % +\d+\.\d\d %\n", out)
    assert re.search(r"time per epoch +\d+\.\d+ s +\d+\.\d+ s\n", out)
    assert re.search(r"same bits on repeating +(yes|no) +yes\n", out)
    assert float(re.search(r"largest relative difference (\S+), below", out)[1]) < 1e-4
    assert f"picture: {tmp_path / 'lenet5_digits.png'}" in out
    assert_picture(tmp_path / "lenet5_digits.png")
    assert re.search(r"torch \|.+\| 100 % .*epoch 1/1, loss \d\.\d+, accuracy \d+\.\d\d %", err)
    assert re.search(r"conv_ext \|.+\| 100 % .*epoch 1/1, loss \d\.\d+, accuracy \d+\.\d\d %", err)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_interrupt(tmp_path):
    listen = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = started(["demo", "--epochs", "100000", "--threads", "1"], tmp_path, **listen)
    seen = ""
    while "|" not in seen:  # the progress bar: training has begun
        read = process.stderr.read(1)
        assert read, seen
        seen += read
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.endswith("conv_ext demo: stopped by Ctrl-C; nothing was written\n") and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_equal_seeds_give_equal_runs_and_another_seed_another(tmp_path, capsys):
    def last_loss(seed):
        options = ("--epochs", 1, "--seed", seed, "--batch-size", 200, "--out", tmp_path / "a.png")
        code, out, _ = outcome(capsys, "demo", *options)
        assert code == 0
        return re.search(r"last loss.*", out)[0]

    assert last_loss(1) == last_loss(1) != last_loss(2)


def first_losses(net):
    images = load_digits()
    training = Training(net, images, epochs=20, recipe=Recipe(), seed=0, device=torch.device("cpu"))
    training.run_epoch(stop_after=20)
    return training.history.losses


def test_the_compared_losses_depend_on_every_gradient():
    torch.manual_seed(0)
    net = lenet5(connections="full", pooling="average")
    expected = first_losses(conv_ext.revert(copy.deepcopy(net)))
    assert largest_difference(expected, first_losses(copy.deepcopy(net))) < demo.DIFFERENCE_LIMIT
    for layer in ("c1", "c3", "c5"):
        wrong = copy.deepcopy(net)
        getattr(wrong, layer).weight.register_hook(lambda gradient: 1.01 * gradient)
        assert largest_difference(expected, first_losses(wrong)) > demo.DIFFERENCE_LIMIT


def test_a_wrong_gradient_is_noticed(tmp_path, capsys, monkeypatch):
    revert = conv_ext.revert

    def revert_badly(model):
        revert(model).c3.weight.register_hook(lambda gradient: 1.01 * gradient)
        return model

    monkeypatch.setattr(conv_ext, "revert", revert_badly)
    code, out, _ = outcome(capsys, "demo", "--epochs", 1, "--out", tmp_path / "a.png")
    assert code == 1 and "NOT BELOW the limit of 1e-04" in out
    assert_picture(tmp_path / "a.png")


def test_the_plain_recipe(tmp_path, capsys):
    """Images as they are, a fixed rate, no decay of biases: said, and done."""
    options = ["--plain", "--epochs", 1, "--batch-size", 300, "--out", tmp_path / "a.png"]
    code, out, err = outcome(capsys, "demo", *options)
    assert code == 0, out + err
    assert "rate 0.05, fixed; momentum 0.9; weight decay 0.0001 (not of biases); images as they are" in out
    recipe, net, images = Recipe().plain(), lenet5(connections="full", pooling="average"), load_digits()
    training = Training(net, images, epochs=2, recipe=recipe, seed=0, device=torch.device("cpu"))
    decays = {id(p): group["weight_decay"] for group in training.optimizer.param_groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in net.named_parameters()} == {
        name: 0.0 if name.endswith("bias") else 1e-4 for name, _ in net.named_parameters()
    }
    some = torch.arange(7)
    assert torch.equal(training._batch(some)[0], images.standardised(images.train_images[:7].float() / 255))
    training.run_epoch(tested=False)
    assert {group["lr"] for group in training.optimizer.param_groups} == {0.05}
    usual = Training(net, images, epochs=2, recipe=Recipe(), seed=0, device=torch.device("cpu"))
    assert len(usual.optimizer.param_groups) == 1 and not torch.equal(usual._batch(some)[0], training._batch(some)[0])
    usual.run_epoch(tested=False)
    assert usual.optimizer.param_groups[0]["lr"] == pytest.approx(0.025)


def test_parameters_that_are_chosen_are_all_that_learn():
    net = lenet5(connections="full", pooling="average")
    optimizer = Recipe().plain().optimizer(net, list(net.output.parameters()))
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in net.output.parameters()
    }


def test_a_validation_split(tmp_path, capsys):
    options = ["--validate", 237, "--epochs", 1, "--batch-size", 300, "--out", tmp_path / "a.png"]
    code, out, err = outcome(capsys, "demo", *options)
    assert code == 0, out + err
    assert "1,200 images to train, 237 to validate, 360 to test" in out
    assert re.search(r"validation accuracy +\d+\.\d\d % +\d+\.\d\d %\n +test accuracy +\d+\.\d\d %", out)
    assert_picture(tmp_path / "a.png")


def test_a_low_accuracy_is_noticed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(demo.EPOCHS, "digits", 1)
    code, out, _ = outcome(capsys, "demo", "--out", tmp_path / "a.png")
    assert code == 1 and "is BELOW the goal of 98 %" in out and ", below the limit" in out
    code, out, _ = outcome(capsys, "demo", "--batch-size", 300, "--out", tmp_path / "a.png")  # nothing is promised here
    assert code == 0 and "goal" not in out


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_precision_reaches_both_and_is_put_back(tmp_path, capsys, monkeypatch, precision):
    seen = []
    step = demo.Training._step

    def noting(self, indices):
        seen.append((torch.backends.mkldnn.conv.fp32_precision, conv_ext.settings.current_precision("cpu")))
        return step(self, indices)

    monkeypatch.setattr(demo.Training, "_step", noting)
    before = torch.backends.mkldnn.conv.fp32_precision
    code, out, _ = outcome(
        capsys, "demo", "--epochs", 1, "--batch-size", 1437, "--precision", precision, "--out", tmp_path / "a.png"
    )
    assert code == 0 and f"float32 as {precision}" in out and set(seen) == {(precision, precision)}
    assert ("no limit" in out) == (precision != "ieee")
    assert torch.backends.mkldnn.conv.fp32_precision == before


@pytest.mark.parametrize("arguments, message", [
    (["--epochs", "0"], "--epochs: must be from 1 to"),
    (["--epochs", "1.5"], "--epochs: must be a whole number, got '1.5'"),
    (["--batch-size", "-1"], "--batch-size: must be from 1"),
    (["--threads", "0"], "--threads: must be from 1"),
    (["--seed", "-1"], "--seed: must be from 0"),
    (["--data", "svhn"], "invalid choice: 'svhn'"),
    (["--precision", "fp8"], "invalid choice: 'fp8'"),
    (["--device", "tpu"], "--device must be cpu, cuda or cuda:N, got tpu"),
    (["--device", "meta"], "--device must be cpu, cuda or cuda:N, got meta"),
    (["--data", "mnist"], "--data mnist needs --root DIR"),
    (["--network", "vgg16"], "invalid choice: 'vgg16'"),
    (["--network", "mnist_convnet"], "--network mnist_convnet takes images of 28 x 28: --data mnist"),
    (["--root", "."], "--root goes with --data mnist or --data cifar10"),
    (["--download"], "--download goes with --data mnist or --data cifar10"),
    (["--data", "mnist", "--download"], "--data mnist needs --root DIR"),
    (["--validate", "1437"], "--validate must be from 1 to 1,436 training images, got 1,437"),
    (["--validate", "0"], "--validate: must be from 1"),
    (["transfer", "--plain"], "--plain and --validate go with the comparison"),
    (["--data", "mnist", "--root", "missing"], "missing: expected a folder with the data set's files, found nothing"),
    (["--out", "picture.jpg"], "--out must name a .png file, got picture.jpg"),
    (["--out", "missing/a.png"], "cannot write missing/a.png: no such folder"),
    (["--out", "a" * 300 + ".png"], "a.png: File name too long"),
    (["--data", "mnist", "--root", "a" * 300], "a: expected a folder with the data set's files, found nothing"),
    (["--wrong"], "unrecognized arguments: --wrong"),
])  # fmt: skip
def test_wrong_options(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = outcome(capsys, "demo", *arguments)
    assert code == 2 and message in err and out == "" and not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_here(capsys):
    code, _, err = outcome(capsys, "demo", "--device", "cuda")
    assert code == 2 and "--device cuda: torch" in err and "finds no CUDA device here" in err


@pytest.mark.parametrize("module", ["tqdm", "matplotlib", "sklearn"])
def test_missing_extras(capsys, tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)  # Python's own mark of a module that cannot be imported
    code, _, err = outcome(capsys, "demo")
    assert code == 2 and "pip install 'conv_ext[demo]'" in err and module.replace("sk", "scikit-") in err


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    """`conv-ext summary resnet152 | head -1`: less than a pipe holds, or more."""
    for network in ("resnet152", "lenet5"):
        with started(["summary", network], tmp_path) as child:
            child.stdout.close()
            said = child.stderr.read()
        assert child.returncode == 141 and not said, said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("to, code, said", [
    (">&-", 0, ""), ("> /dev/full", 1, "conv_ext: the output cannot be written: No space left on device\n"),
])  # fmt: skip
def test_an_output_that_cannot_be_written(tmp_path, to, code, said):
    path = os.pathsep.join([str(Path(conv_ext.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    words = ["sh", "-c", f'"{sys.executable}" -m conv_ext info {to}']
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, said)


def test_help_and_info(capsys):
    code, out, _ = outcome(capsys)
    assert code == 0 and "demo" in out and "info" in out
    code, out, _ = outcome(capsys, "demo", "--help")
    named = (
        "--data", "--network", "--root", "--epochs", "--batch-size", "--device", "--threads", "--precision", "--seed",
        "--out", "transfer", "--plain", "--validate", "--download",
    )  # fmt: skip
    assert code == 0 and all(option in out for option in named)
    code, out, _ = outcome(capsys, "info")
    assert code == 0 and torch.__version__ in out and all(key in out for key in conv_ext.build_info())
    assert conv_ext.build_info()["cuda"] or "docs/gpu.md says how to build with it" in out
    code, out, _ = outcome(capsys, "--version")
    assert code == 0 and out.strip() == conv_ext.__version__


@pytest.mark.gpu
@pytest.mark.parametrize("what", ["compare", "transfer"])
def test_on_a_gpu(capsys, tmp_path, what):
    code, out, err = outcome(capsys, "demo", what, "--device", "cuda", "--epochs", 2, "--out", tmp_path / "p.png")
    assert code == 0 and (tmp_path / "p.png").stat().st_size > 10_000, err
    if what == "compare":
        assert torch.cuda.get_device_name() in out and re.search(r"same bits on repeating +\w+ +yes", out)


@pytest.mark.parametrize(
    "major, minor, wanted", [(7, 5, True), (8, 6, True), (9, 0, True), (10, 0, True), (7, 0, False)]
)
def test_the_architectures_that_run_on_a_gpu(major, minor, wanted):
    assert runs_on(["sm_75", "sm_80", "compute_80", "sm_90a"], major, minor) is wanted
    assert runs_on(["sm_90a"], major, minor) is ((major, minor) == (9, 0))
    assert runs_on(["sm_80"], major, minor) is (major == 8)


def test_info_tells_of_gpus(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    for built, wanted in (
        ({"cuda": False}, "built without CUDA"),
        ({"cuda": False, "cuda_version": "99.1"}, "built for CUDA 99.1"),
        ({"cuda": True, "cuda_architectures": ["sm_80"]}, "TORCH_CUDA_ARCH_LIST=9.0"),
        ({"cuda": True, "cuda_architectures": ["sm_90a"]}, "three_tf32"),
    ):
        assert wanted in str(gpus(built)["cuda:0"])
    code, out, _ = outcome(capsys, "info")
    assert code == 0 and "a GPU" in out and "9.0" in out


def test_comparison_of_losses():
    assert largest_difference([1.0, 2.0, 4.0], [1.0, 2.0, 5.0]) == 0.25
    assert largest_difference([1.0] * 20 + [1.0], [1.0] * 20 + [2.0]) == 0  # the first 20 only
    assert largest_difference([0.0], [0.5]) == 0.5
    assert math.isnan(largest_difference([1.0, math.nan], [1.0, 2.0]))
    assert math.isnan(largest_difference([1.0], [math.nan]))
    with pytest.raises(ValueError):
        largest_difference([1.0], [1.0, 2.0])


def test_comparison_of_bits():
    losses, weights = [float(i) for i in range(30)], [torch.ones(3), torch.zeros(2)]
    whole = History(losses=losses, early_weights=weights)
    assert same_bits(whole, History(losses=losses[:20], early_weights=[each.clone() for each in weights]))
    assert not same_bits(whole, History(losses=losses[:19] + [19.5], early_weights=weights))
    nearly = [weights[0], torch.tensor([0.0, 1e-45])]
    assert not same_bits(whole, History(losses=losses[:20], early_weights=nearly))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_convnets_compared_losses_depend_on_every_gradient(seed):
    network, images = demo.NETWORKS["cifar10_convnet"], load_digits()
    torch.manual_seed(seed)
    net = network.make(10, 1)

    def losses(net):
        training = Training(net, images, epochs=1, recipe=network.recipe, seed=0, device=torch.device("cpu"))
        training.run_epoch(stop_after=network.compared_steps)
        return training.history.losses

    expected = losses(conv_ext.revert(copy.deepcopy(net)))
    assert largest_difference(expected, losses(copy.deepcopy(net))) < demo.DIFFERENCE_LIMIT / 10
    for layer in (0, 3):
        wrong = copy.deepcopy(net)
        wrong.features[layer].weight.register_hook(lambda gradient: 1.01 * gradient)
        assert largest_difference(expected, losses(wrong)) > demo.DIFFERENCE_LIMIT


def test_the_lectures_networks_learn_as_it_says():
    for name in ("mnist_convnet", "cifar10_convnet"):
        recipe = demo.NETWORKS[name].recipe
        assert (recipe.batch_size, recipe.learning_rate, recipe.weight_decay) == (128, 1e-2, 1e-2)
    assert load_digits().train_images.shape[2:] == (32, 32)


RECIPES = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"


def rows_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_page_of_recipes_has_the_demos():
    page = RECIPES.read_text(encoding="utf-8")
    rows = rows_of(page[page.index("| network | batch |") :].split("\n\n")[0])[2:]
    listed = {name: row[1:] for row in rows for name in row[0].split(", ")}
    assert listed.keys() == demo.NETWORKS.keys()
    for name, (batch, rate, momentum, decay) in listed.items():
        recipe = demo.NETWORKS[name].recipe
        said = int(batch), float(rate), float(momentum.split()[0]), float(decay)
        assert said == (recipe.batch_size, recipe.learning_rate, recipe.momentum, recipe.weight_decay)


def test_the_page_of_recipes_has_what_was_measured():
    """Errors are shares of the test images, the means theirs; nothing stands there that has no errors."""
    table = RECIPES.read_text(encoding="utf-8").split("<!-- recipes: begin -->\n")[1].split("<!-- recipes: end -->")[0]
    rows, tested = rows_of(table)[2:], {"digits": 360, "mnist": 10_000, "cifar10": 10_000}
    assert {tuple(row[:3]) for row in rows} >= {
        ("digits", network, recipe) for network in ("lenet5", "cifar10_convnet") for recipe in ("today's", "plain")
    }
    for data, _, _, epochs, mean, each in rows:
        errors = [float(value) for value in each.split(", ")]
        assert int(epochs) == demo.EPOCHS[data] and len(errors) == 3
        assert sum(errors) / 3 == pytest.approx(float(mean), abs=0.011)
        for error in errors:
            wrong = error / 100 * tested[data]
            assert abs(wrong - round(wrong)) < 0.006 / 100 * tested[data]
