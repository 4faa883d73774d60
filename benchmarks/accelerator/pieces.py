"""What runs on an accelerator, most valuable first; each piece is a command of its own."""

import dataclasses
from collections.abc import Callable

from . import estimates, smollm2

PAGE = ("python", "-m", "applications")
CIFAR10 = ("--data", "cifar10", "--data-dir", "{data}", "--num-train", "45000", "--bfloat16")
TOY = ("--data", "npz:{toy}", "--model", "benchmarks.accelerator.toy:Network")
SETS = ("random", "class_matched", "worst_case", "lowest_loss")
ONE_STEP = ("--epochs", "1", "--outer-steps", "1", "--lower-epochs", "1", "--finetune-epochs", "1")


@dataclasses.dataclass(frozen=True)
class Piece:
    """One claim and the command that answers it.

    Attributes:
        name: of the piece and of its folder.
        question: what its numbers answer.
        command: at full size; `{data}`, `{out}` stand for folders and `{toy}` for a file.
        toy: the same at toy size.
        flops: operations at full size, as far as they can be counted beforehand.
        needs: folders below `{data}` without which it is skipped.
        compiling: seconds that its programs take beyond those of one page.
        limit: seconds after which it is ended.
    """

    name: str
    question: str
    command: tuple[str, ...]
    toy: tuple[str, ...]
    flops: Callable[[], float]
    needs: tuple[str, ...] = ()
    compiling: float = 0.0
    limit: float = 480.0


def page(name: str, *arguments: str) -> tuple[str, ...]:
    """An application's command, which goes on where an earlier try was ended."""
    return (*PAGE, name, *arguments, "--output", "{out}", "--resume")


def own(name: str, *arguments: str) -> tuple[str, ...]:
    """A command of this folder."""
    return ("python", "-m", f"benchmarks.accelerator.{name}", *arguments, "--output", "{out}")


def _images(network: str, epochs: float, points: int = 45_000) -> Callable[[], float]:
    return lambda: estimates.of_training(network) * epochs * points


def _tokens(count: int, params: float = 124e6) -> Callable[[], float]:
    # Six for each parameter and token of a training step; a hypergradient takes about as much again
    # forward, and twice that for the products with the Hessian.
    return lambda: 4 * 6 * params * count


# Epochs of a seed: the original; 20 outer steps of 2 lower ones and a forward pass; Retrain and
# finetuning on each set.
_SEARCH = 20 * (2 + 1 / 3)
_SETS = len(SETS) * (20 + 4)
NUM_METHODS = 16

PIECES = (
    Piece(
        "forget_set",
        "Are worst-case forget sets of CIFAR-10 forgotten by Retrain without a trace?",
        page("forget-set", *CIFAR10, "--fast", "--sets", *SETS, "--seeds", "0", "1", "2"),
        page("forget-set", *TOY, "--fast", *ONE_STEP, "--sets", *SETS, "--seeds", "0"),
        _images("resnet9", 3 * (20 + _SEARCH + _SETS)),
        needs=("cifar-10-batches-bin",),
    ),
    Piece(
        "images",
        "How fast and how well does the short recipe train a ResNet-9 on CIFAR-10?",
        own("images", "--data-dir", "{data}"),
        own("images", "--rehearse"),
        _images("resnet9", 3 * 20),
        needs=("cifar-10-batches-bin",),
        limit=120,
    ),
    Piece(
        "forget_set_authors",
        "Does the search find them with the settings of the authors' released code too?",
        page("forget-set", *CIFAR10, "--fast", "--authors", "--sets", *SETS, "--seeds", "0"),
        page(
            *("forget-set", *TOY, "--fast", "--authors", *ONE_STEP),
            *("--sets", "random", "worst_case", "--seeds", "0"),
        ),
        _images("resnet9", 20 + 20 * (10 + 1 / 3) + _SETS),
        needs=("cifar-10-batches-bin",),
    ),
    Piece(
        "unlearning",
        "How do all unlearning methods rank on random and on worst-case sets?",
        page(
            *("unlearning-table", *CIFAR10, "--fast", "--sets", "random", "worst_case"),
            *("--seeds", "0", "1"),
        ),
        page(
            *("unlearning-table", *TOY, "--fast", *ONE_STEP, "--methods", "FT", "SalUn"),
            *("--sets", "random", "worst_case", "--seeds", "0"),
        ),
        _images("resnet9", 2 * (20 + _SEARCH + 2 * (20 + 4 * NUM_METHODS))),
        needs=("cifar-10-batches-bin",),
    ),
    Piece(
        "language_weights",
        "What do 16 Adam steps of a GPT of 124M parameters cost to differentiate?",
        ("python", "-m", "benchmarks.language_weights", "--size", "gpt2", "--peak-tflops", "989"),
        ("python", "-m", "benchmarks.language_weights", "--size", "tiny"),
        _tokens(16 * 8 * 1024),
        limit=300,
    ),
    Piece(
        "language_weights_plain",
        "And by plain `jax.grad` through the loop, if it fits into memory?",
        (
            *("python", "-m", "benchmarks.language_weights", "--size", "gpt2"),
            *("--peak-tflops", "989", "--plain"),
        ),
        ("python", "-m", "benchmarks.language_weights", "--size", "tiny", "--plain"),
        _tokens(2 * 16 * 8 * 1024),
        limit=300,
    ),
    Piece(
        "smollm2",
        "What do unlearning methods reach on TOFU's forget10 and forget05 with SmolLM2-135M?",
        own("smollm2", "--data-dir", "{data}"),
        own("smollm2", "--rehearse"),
        smollm2.flops,
        needs=("tofu",),
        compiling=60.0,
        limit=540,
    ),
    Piece(
        "lifelong",
        "Does a robust coreset keep more robustness than a clean one over five tasks of CIFAR-10?",
        page(
            *("lifelong", *CIFAR10, "--model", "resnet18", "--eps", "0.03137", "--memory", "500"),
            *("--rows", "none", "uniform", "clean_coreset", "robust_coreset"),
            *("--steps", "250", "--attack-steps", "5", "--seeds", "0", "1"),
            *("--num-test", "1000", "--checked"),
        ),
        page(
            *("lifelong", *TOY, "--rows", "uniform", "robust_coreset", "--steps", "2"),
            *("--memory", "10", "--num-test", "20", "--seeds", "0", "--batch-size", "4"),
            *("--attack-steps", "2", "--checked"),
        ),
        # An attack of five steps makes a step six gradients.
        _images("resnet18", 4 * 2 * 5 * 250 * 256 * 6 / 45_000),
        needs=("cifar-10-batches-bin",),
    ),
    Piece(
        "pruning",
        "Which source classes are worth pretraining on, by ratio and method?",
        page(
            *("pruning", "--data", "cifar100", "--targets", "cifar10", "fashion_mnist"),
            *("--data-dir", "{data}", "--model", "resnet18", "--side", "32", "--bfloat16"),
        ),
        page(
            *("pruning", "--data", "npz:{toy}", "--targets", "npz:{toy}", "--num-target", "20"),
            *("--num-target-test", "20", "--ratios", "0.5", "--epochs", "1", "--regimes", "epochs"),
            *("--methods", "full", "random", "lm", "--random-draws", "1", "--seeds", "0"),
            *("--model", "benchmarks.accelerator.toy:Network"),
        ),
        _images("resnet18", 3 * 2 * 4 * 8 * 15 * 0.5, 10_000),
        needs=("cifar-100-binary", "cifar-10-batches-bin", "fashion_mnist"),
    ),
    Piece(
        "condensation",
        "What do RCIG, DC and DM reach on CIFAR-10 at one and at ten images a class?",
        page(
            *("condensation", "--data", "cifar10", "--data-dir", "{data}", "--ipc", "1"),
            *("--methods", "random", "herding", "k_means", "dc", "dm", "rcig"),
            *("--width", "128", "--num-steps", "1000", "--seeds", "0", "1", "2"),
        ),
        page(
            *("condensation", "--data", "npz:{toy}", "--methods", "random", "dm", "--width", "4"),
            *("--num-steps", "2", "--checkpoints", "1", "--networks", "1", "--judge-steps", "2"),
        ),
        _images("small_cnn", 3 * 3 * 1000 * 0.1, 10_000),
        needs=("cifar-10-batches-bin",),
    ),
    Piece(
        "attribution",
        "Which methods of attribution predict a bank of 100 retrained models on CIFAR-10?",
        page(
            *("attribution", "--data", "cifar10", "--data-dir", "{data}", "--model", "smooth_cnn"),
            *("--num-train", "2000", "--num-steps", "512", "--bank-size", "100"),
            *("--num-queries", "50", "--seeds", "0"),
        ),
        page(
            *("attribution", "--data", "npz:{toy}", "--model", "smooth_cnn", "--num-train", "40"),
            *("--num-steps", "4", "--batch-size", "8", "--bank-size", "5", "--num-queries", "4"),
            *("--designs", "drop", "--seeds", "0"),
        ),
        # Two banks of 140 trainings of 512 steps, and half as much again for 50 queries backward.
        _images("small_cnn", 1.5 * 2 * 140 * 512 * 64 / 45_000),
        needs=("cifar-10-batches-bin",),
        compiling=60.0,
        limit=300,
    ),
    Piece(
        "overhead",
        "Does an algorithm cost no more than the same loop written by hand?",
        ("python", "-m", "pytest", "benchmarks/test_overhead.py", "--benchmark-only"),
        ("python", "-m", "pytest", "benchmarks/test_overhead.py", "--collect-only"),
        lambda: 0.0,
        limit=180,
    ),
    Piece(
        "exactness",
        "Are the hypergradients those of the closed forms on this device too?",
        (
            *("python", "-m", "pytest", "-q", "-n", "4", "tests/test_exactness.py"),
            *("tests/test_memory.py", "tests/test_reversible.py"),
        ),
        ("python", "-m", "pytest", "-q", "--collect-only", "tests/test_exactness.py"),
        lambda: 0.0,
        limit=240,
    ),
    Piece(
        "seeds",
        "What does one more seed cost: one after the other, by vmap, by lax.map?",
        own("seeds"),
        own("seeds", "--rehearse"),
        _images("resnet9", 2 * (1 + 2 + 4 + 8), 512 * 10),
        limit=180,
    ),
)
