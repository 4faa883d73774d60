"""One condensation problem, many gradient rules: bias, memory and time beside the final accuracy.

    python -m benchmarks.condensation_rules

The problem is that of RCIG (`applications.condensing.implicit`): digits, one image per class, fixed
labels. Its lower level is quadratic, so that an exact hypergradient exists to measure the bias of
each rule against. One line of a Markdown table for each rule.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from applications.common.data import load
from applications.common.training import Points, initialise
from applications.condensing.condense import condense
from applications.condensing.evaluation import Judge
from applications.condensing.implicit import Convexified, NewtonStep
from applications.condensing.methods import Recipe
from applications.condensing.synthetic import ConvNet, make_real, start
from bilevel import Implicit, Minimize, Truncated, linear

NUM_STEPS = 150
MODEL = ConvNet(10, width=4, smooth=True)
EXACT = Implicit(NewtonStep(linear.CG(400)), linear.CG(400))


def detached(loss, init, outer, batch):
    """The lower level's solution as a constant: no implicit term."""
    return jax.lax.stop_gradient(NewtonStep(linear.CG(20))(loss, init, outer, batch))


def rules(curvature):
    """Name to solver; `curvature` bounds the Hessian of the lower level."""
    solve, rate = NewtonStep(linear.CG(20)), 1 / curvature
    steps = Minimize(optax.sgd(rate, 0.9), 60)
    return {
        "no implicit term": detached,
        "CG 1": Implicit(solve, linear.CG(1)),
        "CG 5": Implicit(solve, linear.CG(5)),
        "CG 20": Implicit(solve, linear.CG(20)),
        "Neumann 20": Implicit(solve, linear.Neumann(20, rate)),
        "Nystrom 20": Implicit(solve, linear.Nystrom(20, ridge=1e-5 * curvature)),
        "unrolled 60": steps,
        "truncated 15 of 60": Truncated(steps, 15),
    }


def main():
    dataset = load("digits")
    real, test = make_real(dataset.train, 10, 1), Points.from_split(dataset.test)
    outer = start(real, 1, jax.random.key(0))
    params = initialise(MODEL, outer.x, jax.random.key(1))
    batch = real.sample(jax.random.key(2), 32)
    reference = jax.jit(Convexified(MODEL, EXACT).hypergradient)(outer, params, batch)
    judge = Judge(ConvNet(10, 8), networks=5)
    exact = reference.hypergrad.x
    print(f"exact: residual {float(reference.info.linear.residual_norm):.1e}")
    print("| rule | relative error | cosine | temporary memory, MB | ms a step | test accuracy |")
    print("|---|---|---|---|---|---|")
    begin = judge.accuracy(outer, test, jax.random.key(5))
    print(
        f"| random images | | | | | {np.mean(begin):.1f} ± {np.std(begin, ddof=1):.1f} |",
        flush=True,
    )
    for name, solver in rules(float(reference.info.linear.max_curvature)).items():
        method = Convexified(MODEL, solver)
        compiled = jax.jit(method.hypergradient).lower(outer, params, batch).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
        got = compiled(outer, params, batch).hypergrad.x
        error = jnp.linalg.norm(got - exact) / jnp.linalg.norm(exact)
        cosine = jnp.vdot(got, exact) / jnp.linalg.norm(got) / jnp.linalg.norm(exact)
        times = []
        for _ in range(15):
            clock = time.perf_counter()
            jax.block_until_ready(compiled(outer, params, batch))
            times.append(time.perf_counter() - clock)
        recipe = Recipe(method, MODEL, networks=5, network_steps=1, max_uses=20)
        last = condense(recipe, real, outer, NUM_STEPS, jax.random.key(3))[-1].outer
        scores = judge.accuracy(last, test, jax.random.key(5))
        print(
            f"| {name} | {float(error):.2g} | {float(cosine):.3f} | {memory:.1f} |"
            f" {1e3 * min(times):.1f} | {np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
