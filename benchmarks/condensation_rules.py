"""One condensation problem, many gradient rules: bias, memory and time beside the final accuracy.

    python -m benchmarks.condensation_rules

The problem is that of RCIG (`applications.condensing.implicit`): digits, one image per class, fixed
labels. Its lower level is quadratic, so that an exact hypergradient exists to measure the bias of
each rule against. One line of a Markdown table for each rule, accuracies over `SEEDS` of the
condensation, each the mean of `NETWORKS` fresh networks.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from applications.components.data import load
from applications.components.judging import Judge
from applications.components.models import make
from applications.components.points import Points
from applications.components.training import initialise
from applications.condensing.condense import Budget, condense
from applications.condensing.implicit import Convexified, NewtonStep, Seen
from applications.condensing.methods import Recipe
from applications.condensing.synthetic import ConvNet, flattened, make_real, start
from bilevel import Implicit, Minimize, Truncated, linear

NUM_STEPS = 300
SEEDS = range(3)
NETWORKS = 5
DATASET = load("digits")
MODEL = make(ConvNet(10, width=8, smooth=True), DATASET)
EXACT = Implicit(NewtonStep(linear.CG(400)), linear.CG(400))


def detached(loss, outer, init, data):
    """The lower level's solution as a constant: no implicit term."""
    return jax.lax.stop_gradient(NewtonStep(linear.CG(20))(loss, outer, init, data))


def rules(curvature):
    """Name to solver; `curvature` bounds the Hessian of the lower level from above."""
    solve, rate = NewtonStep(linear.CG(20)), 1 / curvature
    steps = Minimize(optax.sgd(rate, 0.9), 60)
    # What H is where no image pulls: all that a sketch leaves out.
    ridge = Convexified(MODEL).relative_ridge / 10
    return {
        "no implicit term": detached,
        "CG 1": Implicit(solve, linear.CG(1)),
        "CG 5": Implicit(solve, linear.CG(5)),
        "CG 20": Implicit(solve, linear.CG(20)),
        "closed form (dual)": None,
        "Neumann 20": Implicit(solve, linear.Neumann(20, rate)),
        "Nystrom 20": Implicit(solve, linear.Nystrom(20, ridge=ridge)),
        "Nystrom 100": Implicit(solve, linear.Nystrom(100, ridge=ridge)),
        "unrolled 60": steps,
        "truncated 15 of 60": Truncated(steps, 15),
    }


@jax.jit
def largest_curvature(outer, params, batch):
    """Largest eigenvalue of the lower level's Hessian, by 100 steps of the power method.

    (`info.linear.max_curvature` of CG is a lower bound, on which the series diverges.)
    """
    problem, seen = Convexified(MODEL).problem, Seen(params, *flattened(batch))
    gradient = jax.grad(lambda inner: problem.inner_loss(outer, inner, seen))
    at = jax.tree.map(jnp.zeros_like, params)

    def step(vector, _):
        vector = optax.tree.scale(1 / optax.tree.norm(vector), vector)
        product = jax.jvp(gradient, (at,), (vector,))[1]
        return product, optax.tree.norm(product)

    vector = optax.tree.random_like(jax.random.key(0), params, jax.random.normal)
    return jax.lax.scan(step, vector, length=100)[1][-1]


def measured(method, exact, *args):
    """Error and cosine of the image gradient, MB of scratch memory, the best of 15 times in ms."""
    compiled = jax.jit(method.hypergradient).lower(*args).compile()
    got = compiled(*args).hypergrad.x
    error = jnp.linalg.norm(got - exact) / jnp.linalg.norm(exact)
    cosine = jnp.vdot(got, exact) / jnp.linalg.norm(got) / jnp.linalg.norm(exact)
    times = []
    for _ in range(15):
        clock = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - clock)
    memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
    return float(error), float(cosine), memory, 1e3 * min(times)


def spread(values):
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def main():
    real, test = make_real(DATASET.train, 10, 1), DATASET.test.on_device()
    starts = [start(real, 1, jax.random.key(seed)) for seed in SEEDS]
    network = make(ConvNet(10, 16), DATASET)
    judge = Judge(network, learning_rate=3e-3, networks=NETWORKS, adam=True)

    def score(outer, seed):
        points = Points(outer.x, outer.y)
        return np.mean(judge.accuracies(points, test, jax.random.key(seed + 100)))

    args = starts[0], initialise(MODEL, starts[0].x, jax.random.key(1))
    args += (real.sample(jax.random.key(2), 12),)
    reference = jax.jit(Convexified(MODEL, EXACT).hypergradient)(*args)
    print(f"exact: residual {float(reference.info.linear.residual_norm):.1e}")
    print("| rule | relative error | cosine | temporary memory, MB | ms a step | test accuracy |")
    print("|---|---|---|---|---|---|")
    begin = spread([score(outer, seed) for seed, outer in zip(SEEDS, starts, strict=True)])
    print(f"| random images | | | | | {begin} |", flush=True)
    for name, solver in rules(1.05 * float(largest_curvature(*args))).items():
        method = Convexified(MODEL, solver)
        error, cosine, memory, ms = measured(method, reference.hypergrad.x, *args)
        recipe = Recipe(
            method,
            MODEL,
            image_rate=0.05,
            networks=5,
            network_steps=4,
            max_uses=20,
            per_class=12,
            average=0.95,
        )
        scores = []
        for seed, outer in zip(SEEDS, starts, strict=True):
            course = condense(recipe, real, outer, Budget(NUM_STEPS), jax.random.key(seed + 50))
            scores.append(score(course[-1].outer, seed))
        print(
            f"| {name} | {error:.2g} | {cosine:.3f} | {memory:.1f} | {ms:.1f} | {spread(scores)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
