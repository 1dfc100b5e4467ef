"""Pure tensor functions that methods share: no state, no I/O, every random draw from an explicit generator.

Import the module that is needed (``from dgbench.ops.losses import dice_loss``); each function cites its paper and
equation.
"""
