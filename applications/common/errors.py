"""Errors that the person at the keyboard can mend; the command line prints them as one line."""


class InputError(ValueError):
    """A setting or a file that cannot be used; the message names it, its value and the remedy."""


class NonFiniteError(ArithmeticError):
    """A computation that left the finite numbers; the message names the step and the reason."""
