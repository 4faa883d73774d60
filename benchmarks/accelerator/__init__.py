"""The evidence that needs an accelerator, as one command that fits into minutes.

    make accelerator DATA=data BUDGET=480          # on the device, most valuable piece first
    python -m benchmarks.accelerator --plan        # what would run, what it costs, what fits
    python -m benchmarks.accelerator --rehearse    # every piece at toy size, on any device

`pieces.py` lists what runs; docs/accelerator.md says what each piece shows, and what it showed.
"""
