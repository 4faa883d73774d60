"""An adapter for the minimisers of SciPy, which run on the host."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bilevel import _check, _tree
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._stateful import require_plain, without_aux
from bilevel._tree import PyTree
from bilevel.solvers import _stopping
from bilevel.solvers._protocol import Informed
from bilevel.solvers._stopping import SolverInfo, SolverStatus

# What each method of `scipy.optimize.minimize` without constraints asks for beside the value.
_PRODUCTS = ("Newton-CG", "trust-ncg", "trust-krylov")
_GRADIENTS = ("BFGS", "CG", "L-BFGS-B", "SLSQP", "TNC")
_VALUES = ("COBYLA", "Nelder-Mead", "Powell")
METHODS = tuple(sorted((*_PRODUCTS, *_GRADIENTS, *_VALUES)))


@settings
class SciPy(Informed):
    """Minimises the loss by `scipy.optimize.minimize`, on the host: `SciPy("L-BFGS-B")`.

    Value, gradient and Hessian-vector products are compiled by JAX; the method itself runs in
    Python, in the precision of float64, and waits for the device at each evaluation. It works under
    `jit`, `scan` and `vmap` (one solve after the other). Prefer `Minimize(optax.lbfgs(), ...)` or
    `Newton` where they do the job.

    Its steps are not unrolled: `Implicit(SciPy(...), linear.CG())` differentiates the solution.

    Attributes:
        method: a method of `scipy.optimize.minimize` for problems without constraints.
        tolerance: its `tol`, whose meaning is the method's own; None for SciPy's default. In
            float32 much below 1e-6 cannot be met.
        num_steps: its `maxiter`; None for SciPy's default.
        options: more of the method's options.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: `method` is unknown, or a setting out of its range. When it is differentiated
            without a rule.
    """

    method: str = "L-BFGS-B"
    tolerance: float | jax.Array | None = None
    num_steps: int | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {self.method!r}.")
        _stopping.check_tolerance(self.tolerance)
        if self.num_steps is not None:
            _check.positive_integer("num_steps", self.num_steps)
        _scipy_minimize()

    def solve_with_info(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo]:
        """The minimiser, and how SciPy says that it ended."""
        require_plain("SciPy", init)
        run = lambda *args: self._run(without_aux(loss), *args)
        return _stopping.underived(run, "SciPy", outer, init, data)

    def _run(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo]:
        flat, unravel = ravel_pytree(_tree.strengthen(init))
        value_fn = lambda flat, outer, data: loss(outer, unravel(flat), data)
        # What the loss closes over may be traced: the host gets its value as an argument.
        pure, consts = _tree.hoist(value_fn, flat, outer, data)
        given = flat, consts, outer, data
        host = _Host(self, pure, jax.eval_shape(lambda: given))
        shapes = (
            jax.eval_shape(_packed, flat),
            jax.ShapeDtypeStruct((2,), jnp.int32),
        )
        tolerance = np.nan if self.tolerance is None else self.tolerance
        packed = jax.tree.map(_packed, given)
        found, ended = jax.pure_callback(host, shapes, packed, tolerance, vmap_method="sequential")
        found = jax.lax.bitcast_convert_type(found, flat.dtype)
        norm = _tree.norm(jax.grad(value_fn)(found, outer, data))
        status = jnp.where(jnp.isfinite(norm), ended[0], int(SolverStatus.NON_FINITE))
        return unravel(found), SolverInfo(status.astype(jnp.int32), ended[1], norm)


class _Host:
    """The call of SciPy, with functions that JAX compiles once for each trace."""

    def __init__(self, method: SciPy, pure: Any, like: PyTree) -> None:
        self.method, self.like = method, like
        self.x64 = jax.dtypes.canonicalize_dtype(float) == np.float64
        value = lambda flat, consts, outer, data: pure(consts, flat, outer, data)
        self.value, self.both = jax.jit(value), jax.jit(jax.value_and_grad(value))
        along = lambda flat, vector, *rest: jax.jvp(
            lambda y: jax.grad(value)(y, *rest), (flat,), (vector,)
        )[1]
        self.product = jax.jit(along)

    def __call__(self, packed: PyTree, tolerance: Any) -> tuple[np.ndarray, np.ndarray]:
        """Runs in a thread of its own, which does not inherit `jax.enable_x64` of the caller."""
        start, *rest = jax.tree.map(_unpacked, packed, self.like)
        dtype = start.dtype
        narrow = lambda vector: np.asarray(vector, dtype)
        wide = lambda value: np.asarray(value, np.float64)
        both = lambda y: tuple(map(wide, self.both(narrow(y), *rest)))
        settings: dict[str, Any] = {"fun": both, "jac": True}
        if self.method.method in _PRODUCTS:
            settings["hessp"] = lambda y, v: wide(self.product(narrow(y), narrow(v), *rest))
        if self.method.method in _VALUES:
            settings = {"fun": lambda y: float(self.value(narrow(y), *rest))}
        options = dict(self.method.options or {})
        if self.method.num_steps is not None:
            options["maxiter"] = self.method.num_steps
        tol = None if np.isnan(tolerance) else float(tolerance)
        with jax.enable_x64(self.x64), jax.default_device(jax.local_devices(backend="cpu")[0]):
            found = _scipy_minimize()(
                x0=wide(start), method=self.method.method, tol=tol, options=options, **settings
            )
        steps = int(found.get("nit", found.nfev))
        most = self.method.num_steps
        spent = most is not None and steps >= most
        failed = SolverStatus.MAX_STEPS if spent else SolverStatus.STALLED
        status = SolverStatus.CONVERGED if found.success else failed
        value = narrow(found.x)
        if dtype.itemsize == 8:
            value = value.view(np.uint32).reshape(-1, 2)
        return value, np.array([int(status), steps], np.int32)


def _packed(leaf: jax.Array) -> jax.Array:
    """64 bits as two times 32: JAX rounds what a callback gets to the precision of its thread."""
    leaf = jnp.asarray(leaf)
    return jax.lax.bitcast_convert_type(leaf, jnp.uint32) if leaf.dtype.itemsize == 8 else leaf


def _unpacked(leaf: Any, like: jax.ShapeDtypeStruct) -> np.ndarray:
    """A copy: the buffer of a callback is the device's."""
    return np.array(leaf).view(like.dtype).reshape(like.shape)


def _scipy_minimize() -> Any:
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise ImportError(
            "`SciPy` needs the package SciPy, which is not installed: `pip install scipy`, or"
            ' `pip install "bilevel[solvers]"`.'
        ) from error
    return minimize
